"""The Triton implementations: what runs on a GPU without a compiler at installation.

`core` says whether Triton can be used and loads the file of an op at its first call, so that importing the package
costs nothing and works where Triton is not installed. With TRITON_INTERPRET=1 the kernels run on the CPU, one
program after the other, when they are asked for by name: that is how they are tested without a GPU.
"""
