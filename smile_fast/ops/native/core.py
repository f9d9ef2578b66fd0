"""The extension module itself, or the reason why there is none, and how an op is launched on it."""

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from smile_fast.ops.registry import Implementation, Refusal

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""The dtypes of logits and scores that compiled implementations compute with, and the cores' names for them."""

MAX_STRIDE = 64  # of upsampled logits: kMaxStride of csrc/core/upsampled_labels/cell_grid.h
_NO_TENSORS = {int, float, bool, list, tuple, torch.Size}
POOLED_BYTES = 1 << 20  # smaller tensors come from torch, whose allocator keeps such blocks itself


def load(name: str, not_built: str) -> tuple[Any, str]:
    """Return an extension module of smile_fast, or None and the reason why there is none."""
    if importlib.util.find_spec(f"smile_fast.{name}") is None:
        return None, not_built
    try:
        return importlib.import_module(f"smile_fast.{name}"), ""
    except ImportError as error:
        return None, f"the {'CUDA' if name == '_native_cuda' else 'native'} core does not load: {error}"


NOT_BUILT = "the native core was not built (SMILE_FAST_BUILD=none); reinstall with a C++20 compiler"
CORE, UNUSABLE = load("_native", NOT_BUILT)


def addresses(arguments: dict[str, Any]) -> list[Tensor]:
    """Put addresses in the place of tensors, 0 in that of None; return the tensors, to be kept while a kernel runs."""
    kept = []
    for name, value in arguments.items():
        if value is None:
            arguments[name] = 0
        elif type(value) not in _NO_TENSORS:  # it takes longer to ask whether it is a Tensor
            kept.append(value if value.is_contiguous() else value.contiguous())
            arguments[name] = kept[-1].data_ptr()
    return kept


class Core:
    """What an op's launcher needs of a core: written once, it serves the CPU and, by subclasses, CUDA and Triton."""

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a contiguous tensor with the dtype and on the device of another, with unspecified contents.

        Large ones are in memory that the core keeps (csrc/core/common/memory_pool.h). A training step frees its
        gradient and asks for the same size again. The system would take the pages back and hand out others, which are
        zeroed one by one at first touch: that costs several times what the kernels need to fill them.
        """
        size = math.prod(shape) * like.itemsize
        if size < POOLED_BYTES or CORE is None or like.is_cuda:
            return like.new_empty(shape)
        return torch.frombuffer(CORE.Memory(size), dtype=like.dtype).view(shape)

    def run(self, op: str, dtype: torch.dtype, **arguments: Any) -> None:
        """Run a kernel, on as many threads as torch uses; they never change a bit.

        Args:
            op: its name in the extension module.
            dtype: of logits or scores, one of DTYPES.
            arguments: fields of the kernel's struct of arguments. Tensors are handed over as addresses, None as null;
                one that is not contiguous is copied first, so that a result must be contiguous to be seen.
        """
        _kept = addresses(arguments)
        getattr(CORE, op)(dtype=DTYPES[dtype], **arguments, threads=torch.get_num_threads())


def refused_dtype(values: Tensor, *others: object) -> str:
    """Return why a compiled implementation cannot compute with a tensor's dtype; empty when it can."""
    if values.dtype not in DTYPES:
        return f"it computes in float32 and takes {', '.join(DTYPES.values())} input, got {values.dtype}"
    return ""


def refused_stride(stride: int) -> str:
    """Return why the core cannot upsample by a stride; empty when it can."""
    return "" if stride <= MAX_STRIDE else f"it upsamples by at most {MAX_STRIDE}, got {stride}"


def native(launch: Callable[..., Any], *limits: Refusal) -> Implementation:
    """Return the registry's entry of an op's kernel on the CPU.

    Args:
        launch: called with a `Core` and the schema's arguments.
        limits: what the kernel does not take, beside dtypes.
    """
    run = functools.partial(launch, Core())
    return Implementation("native", run, ("cpu",), UNUSABLE, (refused_dtype, *limits))
