"""The extension module itself, or the reason why there is none, and how an op is queued on a device."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smile_fast.ops.native.core import DTYPES, Core, addresses, load, refused_dtype
from smile_fast.ops.registry import Implementation, Refusal

OLDEST = (8, 0)
"""Compute capability of the oldest GPUs that the kernels are compiled for."""

NOT_BUILT = "the CUDA core was not built; reinstall with nvcc 11.8 or later (SMILE_FAST_CUDA=ON says what fails)"
CORE, UNUSABLE = load("_native_cuda", NOT_BUILT)


class CudaCore(Core):
    """The kernels of smile_fast._native_cuda."""

    def run(self, op: str, dtype: torch.dtype, **arguments: Any) -> None:
        """See `Core.run`; queued on the current stream of the tensors' device.

        Workspace and copies go back to torch's allocator at once: what is queued later on this stream runs later.
        """
        kept = addresses(arguments)
        device = kept[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            size = getattr(CORE, op + "_workspace")(dtype=DTYPES[dtype], **arguments)
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
            getattr(CORE, op)(dtype=DTYPES[dtype], **arguments, workspace=workspace.data_ptr(), stream=stream)


@functools.cache
def _refused_device(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        return f"it needs compute capability 8.0 or later, cuda:{index} has {capability[0]}.{capability[1]}"
    return ""


def _refused(values: Tensor, *others: object) -> str:
    return _refused_device(values.get_device()) if values.is_cuda else ""


def cuda(launch: Callable[..., Any], *limits: Refusal) -> Implementation:
    """Return the registry's entry of an op's kernel on CUDA; arguments as those of `native.core.native`."""
    run = functools.partial(launch, CudaCore())
    return Implementation("cuda", run, ("cuda",), UNUSABLE, (refused_dtype, _refused, *limits))
