"""The extension module itself, or the reason why there is none."""

import importlib.util
from typing import Any

import torch

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""The dtypes of logits and scores that the core computes with, and its names for them."""

MAX_STRIDE = 64  # of upsampled logits: kMaxStride of csrc/core/upsampled_labels/cell_grid.h


def _load() -> tuple[Any, str]:
    """Return the extension module, or None and the reason why there is none."""
    if importlib.util.find_spec("smile_fast._native") is None:
        return None, "the native core was not built (SMILE_FAST_BUILD=none); reinstall with a C++20 compiler"
    try:
        return importlib.import_module("smile_fast._native"), ""
    except ImportError as error:
        return None, f"the native core does not load: {error}"


CORE, UNUSABLE = _load()


def refused_dtype(dtype: torch.dtype) -> str:
    """Return why the core cannot compute with a dtype; empty when it can."""
    if dtype not in DTYPES:
        return f"it computes in float32 and takes {', '.join(DTYPES.values())} input, got {dtype}"
    return ""


def check_core_stride(stride: int) -> None:
    """Raise ValueError for a stride that the core's buffers have no room for."""
    if not 1 <= stride <= MAX_STRIDE:
        raise ValueError(f"stride must lie in 1..{MAX_STRIDE}, got {stride}")


def refused_stride(stride: int) -> str:
    """Return why the core cannot upsample by a stride; empty when it can."""
    return "" if stride <= MAX_STRIDE else f"it upsamples by at most {MAX_STRIDE}, got {stride}"
