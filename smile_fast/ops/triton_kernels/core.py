"""Whether Triton can be used, and how the ops load and launch their kernels. Imports Triton at the first call only."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smile_fast.ops.native.core import Core, refused_dtype
from smile_fast.ops.registry import Implementation, Refusal

LARGEST_AXIS = 32_000
"""Of low-resolution logits and of the labels they are interpolated to: 2 h (H + 1) fits in an int32."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels run in Triton's interpreter, on the CPU. Triton reads the variable when a kernel is defined."""
ROUNDING = {"enable_fp_fusion": False}
"""An option of every launch: products and sums are fused only where a kernel says so, as in the interpreter."""
ON_REQUEST = ("cpu",) if INTERPRETED else ()


def _unusable() -> str:
    """Return why no kernel can run in this installation; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; there are packages for Linux)"
    return ""


UNUSABLE = _unusable()


def refused_axes(*lengths: int) -> str:
    """Return why the kernels cannot take axes, or a stride, of these lengths; empty when they can."""
    largest = max(lengths)
    return f"it takes axes and strides of up to {LARGEST_AXIS} pixels, got {largest}" if largest > LARGEST_AXIS else ""


class TritonCore(Core):
    """The kernels of this package: a file an op, imported, and Triton with it, at the first call."""

    def run(self, op: str, dtype: torch.dtype, **arguments: Any) -> None:
        """See `Core.run`; calls the file's function of the op's name with tensors, which are contiguous."""
        tensors = {name: value.contiguous() for name, value in arguments.items() if isinstance(value, Tensor)}
        with torch.cuda.device_of(next(iter(tensors.values()))):
            getattr(importlib.import_module(f"smile_fast.ops.triton_kernels.{op}"), op)(**{**arguments, **tensors})


def triton(launch: Callable[..., Any], *limits: Refusal) -> Implementation:
    """Return the registry's entry of an op's Triton kernels; arguments as those of `native.core.native`."""
    run = functools.partial(launch, TritonCore())
    return Implementation("triton", run, ("cuda",), UNUSABLE, (refused_dtype, *limits), ON_REQUEST)


class Configuration(NamedTuple):
    """One way to cut the work of a kernel into pieces."""

    constants: dict[str, Any]
    """Constants of the kernel, by name."""
    warps: int = 4
    registers: int | None = None
    """A limit for the assembler, which else chooses one for itself and may spill to reach it."""

    @property
    def launch_options(self) -> dict[str, Any]:
        """The keyword arguments of a launch."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {**self.constants, "num_warps": self.warps, **limit, **ROUNDING}


_CHOSEN: dict[tuple[object, ...], Configuration] = {}


def size_bucket(size: int) -> int:
    """Return the bucket of a size: sizes within a factor of four share a configuration."""
    return size.bit_length() // 2


def tuned(
    key: tuple[object, ...],
    configurations: Sequence[Configuration],
    run: Callable[[Configuration], Any],
) -> Any:
    """Run with the fastest configuration, which the first call for a key finds out.

    Measuring waits for the device, so nothing is measured while a CUDA graph is captured, while torch reports
    synchronisations, and when torch is asked for deterministic algorithms (another configuration adds in another
    order): the first configuration runs then, or the one that an earlier call has found.

    Args:
        key: whatever the choice may depend on: op, dtype, number of organs, bucket of the size, device.
        configurations: the candidates, the best guess first.
        run: does the work with a configuration; may be called many times.
    """
    if key not in _CHOSEN and len(configurations) > 1 and _may_wait():
        _CHOSEN[key] = _fastest(configurations, run)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return run(configurations[0] if deterministic else _CHOSEN.get(key, configurations[0]))


def _may_wait() -> bool:
    """Return whether nobody minds that the host waits for the device now."""
    if INTERPRETED or torch.are_deterministic_algorithms_enabled():
        return False
    return torch.cuda.get_sync_debug_mode() == 0 and not torch.cuda.is_current_stream_capturing()


def _fastest(configurations: Sequence[Configuration], run: Callable[[Configuration], Any]) -> Configuration:
    measure = importlib.import_module("triton.testing").do_bench
    times = [measure(lambda c=c: run(c), warmup=5, rep=20, return_mode="min") for c in configurations]
    return configurations[times.index(min(times))]
