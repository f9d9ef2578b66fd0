"""The Triton implementations: what runs on a GPU without a compiler at installation.

`core` says whether Triton can be used and loads the file of an op at its first call, so that importing the package
costs nothing and works where Triton is not installed. With TRITON_INTERPRET=1 the kernels run on the CPU, one
program after the other, when they are asked for by name: that is how they are tested without a GPU.

Three rules for a kernel, which `tests/ops/test_triton_compile.py` checks for every kernel whose name ends in `_kernel`:

- Triton makes an integer argument that equals 1 a constant of the compiler, which has no `.to`; the interpreter, in
  turn, counts loops in Python's integers, which have none either. List integers in `do_not_specialize`, unless a kernel
  gains wide accesses from knowing that one is a multiple of 16, and add a number to a tensor (`tl.zeros([], tl.int32)
  + number`) before its type is changed.
- Numbers that may exceed 2^31 arrive as 64-bit integers, all others as 32-bit ones: widen what is multiplied.
- A launch passes `core.ROUNDING`.
"""
