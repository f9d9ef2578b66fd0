"""Ours and its peers on one workload, and under which conditions they run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from smile_fast.ops import OPS, available

Function = TypeVar("Function", bound=Callable[..., object])
CPU, CUDA = "cpu", "cuda"
OURS = "ours"


def _nothing() -> None:
    pass


def _nothing_of(_: float) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Conditions:
    """Where a workload runs, and how much of it.

    Attributes:
        device: of the tensors.
        shrink: every spatial axis, or the number of voxels, is divided by this.
        backend: of torch.compile.
        rehearsed: on a CPU, everything that a GPU would run: its variants of ours, its peers.
    """

    device: str = CPU
    shrink: int = 1
    backend: str = "inductor"
    rehearsed: bool = False

    @property
    def gpu(self) -> bool:
        """Whether a GPU's variants of ours and a GPU's peers take part."""
        return self.device == CUDA or self.rehearsed

    def compiled(self, function: Function) -> Function:
        """Compile for exactly the shapes that come: dynamic=False is the compiler's best setting for a benchmark."""
        torch.compiler.reset()  # each workload has its own shapes; without this the compiler gives up after eight
        fast: Any = torch.compile(function, dynamic=False, backend=self.backend)
        return cast(Function, fast)


SMOKE = Conditions(shrink=8, backend="aot_eager")  # seconds in all: whether everything runs and agrees


@dataclass(frozen=True)
class Call:
    """One way to compute it.

    Attributes:
        name: what tables and goals call it.
        run: what is timed, freeing of the result included.
        refresh: brings the inputs into their first state before each run; not timed.
        steps: how often a run does it, where that differs from the others; None: as often as the comparison says.
    """

    name: str
    run: Callable[[], Any]
    refresh: Callable[[], object] = _nothing
    steps: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Ours and its peers on one workload.

    Attributes:
        ours: the op as users call it, then its variants.
        peers: what else computes the same, and floors that no implementation can pass.
        check: raises AssertionError unless all agree; returns our errors by name.
        facts: what describes the workload, for the record.
        warm: inputs that are in the caches when the clock starts, because that is where users have them.
        steps: how often a run does it; times are of one.
        derived: what follows from the median seconds of the first of ours, for the costs of the record.
        close: ends what was started for it.
    """

    ours: Sequence[Call]
    peers: Sequence[Call]
    check: Callable[[], dict[str, float]]
    facts: dict[str, Any] = field(default_factory=dict)
    warm: Sequence[Tensor] = ()
    steps: int = 1
    derived: Callable[[float], dict[str, float]] = _nothing_of
    close: Callable[[], object] = _nothing

    @property
    def calls(self) -> list[Call]:
        """Everybody, the first of ours first."""
        return [*self.ours, *self.peers]

    def steps_of(self, call: Call) -> int:
        """How often a run of a call does it."""
        return self.steps if call.steps is None else call.steps


def chosen(op: str, device: str) -> str:
    """The implementation that an op runs on a device."""
    return next(name for name, usable, _ in available(op, device) if usable)


def listed(op: str, device: str) -> list[str]:
    """The implementations that an op has for a device, best first, whether or not they can run on this machine.

    Without the reference; none for what is no op.
    """
    rows = available(op, device) if op in OPS else []
    return [name for name, usable, why in rows if name != "reference" and (usable or not why.endswith(" only"))]


def variants(op: str, conditions: Conditions, run: Callable[..., Any]) -> list[Call]:
    """Ours as users call it and, on a GPU, every other implementation that the device has, as "ours, triton".

    Args:
        op: name of the op.
        conditions: which device.
        run: calls the op; takes `implementation`, None for what the op chooses.
    """
    calls = [Call(OURS, lambda: run(implementation=None))]
    if conditions.gpu:
        others = [name for name, usable, _ in available(op, conditions.device) if usable and name != "reference"][1:]
        calls += [Call(f"{OURS}, {name}", lambda name=name: run(implementation=name)) for name in others]  # type: ignore[misc]
    return calls
