"""Several ways to do one thing, timed in turn in one process: what the machine does to one, it does to the others."""

import functools
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

REPETITIONS = 11
SCRUBBED = 2**27  # bytes: several times what the caches hold


def _nothing() -> None:
    pass


@functools.cache
def _unrelated() -> Tensor:
    return torch.zeros(SCRUBBED // 4)


def scrub() -> None:
    """Push everything out of the caches of all threads' cores; 4 ms.

    After one pass an L3 of 32 MiB still held much of 12.6 MB (read in 0.20 ms; 0.12 warm, 0.32 after both). The second
    pass only reads: nobody's time then holds the writing back of these bytes.
    """
    _unrelated().add_(1)
    _unrelated().sum()


@dataclass(frozen=True)
class Contestant:
    """One way to do it.

    Attributes:
        name: what tables and goals call it.
        run: what is timed, freeing of the result included.
        refresh: brings the inputs into their first state before each run; not timed.
    """

    name: str
    run: Callable[[], Any]
    refresh: Callable[[], object] = _nothing

    def prepare(self, warm: Sequence[Tensor]) -> None:
        """Bring inputs and caches into the state in which every run starts: nothing is cached but what is warm."""
        self.refresh()
        scrub()
        for tensor in warm:
            tensor.sum()

    def measured(self, warm: Sequence[Tensor] = ()) -> "Run":
        """Run once."""
        self.prepare(warm)
        counters = Counters()
        started = time.perf_counter()
        self.run()
        return Run(time.perf_counter() - started, *counters.since())


class Run(NamedTuple):
    """One run: how long it took, and what the kernel did to the process meanwhile."""

    seconds: float
    faults: int
    preemptions: int


class Counters:
    """The kernel's counters of this process, from now on."""

    def __init__(self) -> None:
        self._start = resource.getrusage(resource.RUSAGE_SELF)

    def since(self) -> tuple[int, int]:
        """Page faults, and how often a thread lost its core to another process."""
        now = resource.getrusage(resource.RUSAGE_SELF)
        return now.ru_minflt - self._start.ru_minflt, now.ru_nivcsw - self._start.ru_nivcsw


@dataclass(frozen=True)
class Contest:
    """Ours and its peers on one workload.

    Attributes:
        ours: the op as users call it, then its variants.
        peers: what else computes the same, and floors that no implementation can pass.
        check: raises AssertionError unless all agree; returns our errors by name.
        facts: what describes the workload, for the record.
        warm: inputs that are in the caches when the clock starts, because that is where users have them.
    """

    ours: Sequence[Contestant]
    peers: Sequence[Contestant]
    check: Callable[[], dict[str, float]]
    facts: dict[str, Any] = field(default_factory=dict)
    warm: Sequence[Tensor] = ()


def ratio(theirs: Sequence[Run], ours: Sequence[Run]) -> dict[str, float]:
    """Their time over ours: of the medians and of the minima."""
    their_times, our_times = ([run.seconds for run in runs] for runs in (theirs, ours))
    return {
        "medians": _rounded(statistics.median(their_times) / statistics.median(our_times)),
        "minima": _rounded(min(their_times) / min(our_times)),
    }


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """What is recorded of one contestant's runs: milliseconds, and medians of the counters."""
    seconds, faults, preemptions = zip(*runs, strict=True)
    return {
        "median": _rounded(1e3 * statistics.median(seconds)),
        "minimum": _rounded(1e3 * min(seconds)),
        "repetitions": len(runs),
        "page faults": statistics.median(faults),
        "preemptions": statistics.median(preemptions),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
