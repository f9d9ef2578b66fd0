"""What the peers of several ops share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch

from smile_fast import ops

Function = TypeVar("Function", bound=Callable[..., object])

OURS, IN_PLACE = "ours", "ours in place"
EAGER, COMPILE, ONE_GRAPH = "eager", "compile", "compile, one graph"
COPY, READ = "copy", "one read"
WRONG_VOXELS = "wrong voxels"


@dataclass(frozen=True)
class Scale:
    """How much of a workload is run.

    Attributes:
        shrink: every spatial axis, or the number of voxels, is divided by this.
        backend: of torch.compile.
    """

    shrink: int = 1
    backend: str = "inductor"


FULL = Scale()
SMOKE = Scale(shrink=8, backend="aot_eager")  # seconds in all: whether everything runs and agrees


def compiled(function: Function, scale: Scale) -> Function:
    """Compile for exactly the shapes that come: dynamic=False is the compiler's best setting for a benchmark."""
    torch.compiler.reset()  # each workload has its own shapes; without this the compiler gives up after eight
    return torch.compile(function, dynamic=False, backend=scale.backend)


def op_or_skip(name: str) -> Callable[..., Any]:
    """Return an op, or skip the benchmark that asks for it where this version does not have it."""
    if name not in ops.OPS:
        pytest.skip(f"smile_fast.ops has no {name} yet")
    op: Callable[..., Any] = getattr(ops, name)
    return op
