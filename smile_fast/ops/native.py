"""The C++ implementations: what they refuse, and how tensors become pointers.

The native core knows no torch. Every function here makes its inputs contiguous, allocates the results, and hands
addresses and sizes over. The core releases the GIL while it works.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from smile_fast.ops.checks import check_shape, check_table, check_tensor

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _load() -> tuple[Any, str]:
    """Return the extension module, or None and the reason why there is none."""
    if importlib.util.find_spec("smile_fast._native") is None:
        return None, "the native core was not built (SMILE_FAST_BUILD=none); reinstall with a C++20 compiler"
    try:
        return importlib.import_module("smile_fast._native"), ""
    except ImportError as error:
        return None, f"the native core does not load: {error}"


_CORE, UNUSABLE = _load()


def masked_bce_refusal(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool) -> str:
    """Return why `masked_bce` cannot take these arguments; empty when it can."""
    if logits.dtype not in _DTYPES:
        return f"it computes in float32 and takes {', '.join(_DTYPES.values())} logits, got {logits.dtype}"
    return ""


def masked_bce(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce`; results as in `smile_fast.ops.reference.masked_bce`."""
    # The op can be called without its public function, and a wrong size would read foreign memory.
    batch, organs, *spatial = logits.shape
    check_tensor("logits", logits, tuple(_DTYPES), torch.device("cpu"))
    check_tensor("labels", labels, (torch.uint8,), logits.device)
    check_tensor("table", table, (torch.int32,), logits.device)
    check_shape("labels", labels, (batch, *spatial), "[B, *S]")
    check_table(table, batch, organs)
    logits, labels, table = logits.contiguous(), labels.contiguous(), table.contiguous()
    sums = logits.new_empty((batch, organs), dtype=torch.float64)
    counts = logits.new_empty((batch, organs), dtype=torch.int64)
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    _CORE.masked_bce(
        dtype=_DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        labels=labels.data_ptr(),
        table=table.data_ptr(),
        batch=batch,
        organs=organs,
        voxels=labels[0].numel() if batch else 0,
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        gradient=grad.data_ptr() if with_grad else 0,
        threads=torch.get_num_threads(),
    )
    return sums, counts, grad
