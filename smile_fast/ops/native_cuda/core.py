"""The extension module itself, or the reason why there is none, and how its functions are called."""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from smile_fast.ops.native.core import DTYPES

OLDEST = (8, 0)
"""Compute capability of the oldest GPUs that the kernels are compiled for."""


def _load() -> tuple[Any, str]:
    """Return the extension module, or None and the reason why there is none."""
    if importlib.util.find_spec("smile_fast._native_cuda") is None:
        return (
            None,
            "the CUDA core was not built; reinstall with nvcc 11.8 or later (SMILE_FAST_CUDA=ON says what fails)",
        )
    try:
        return importlib.import_module("smile_fast._native_cuda"), ""
    except ImportError as error:
        return None, f"the CUDA core does not load: {error}"


CORE, UNUSABLE = _load()


@functools.cache
def _refused_device(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        return f"it needs compute capability 8.0 or later, cuda:{index} has {capability[0]}.{capability[1]}"
    return ""


def refusal(values: Tensor) -> str:
    """Return why the core cannot compute with a tensor's dtype and device; empty when it can."""
    if values.dtype not in DTYPES:
        return f"it computes in float32 and takes {', '.join(DTYPES.values())} input, got {values.dtype}"
    return _refused_device(values.get_device()) if values.is_cuda else ""


def queue(name: str, device: torch.device, **arguments: Any) -> None:
    """Queue a kernel that works in a workspace on the current stream of a device.

    The workspace goes back to torch's allocator at once: what is queued later on this stream runs later.
    """
    with torch.cuda.device(device):
        size = getattr(CORE, name + "_workspace")(**arguments)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        getattr(CORE, name)(**arguments, workspace=workspace.data_ptr(), stream=stream)
