"""Several ways to do one thing, timed in turn in one process: what the machine does to one, it does to the others."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

REPETITIONS = 11
PATIENCE = 2.0  # seconds: a contestant that takes longer runs less often, for REPETITIONS of this in all
FEWEST_REPETITIONS = 3


def _nothing() -> None:
    pass


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

    def measured(self) -> "Run":
        """Run once."""
        self.refresh()
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
    """

    ours: Sequence[Contestant]
    peers: Sequence[Contestant]
    check: Callable[[], dict[str, float]]
    facts: dict[str, Any] = field(default_factory=dict)


def repetitions(seconds: float) -> int:
    """How often something is run that takes so long."""
    return max(FEWEST_REPETITIONS, min(REPETITIONS, int(REPETITIONS * PATIENCE / max(seconds, 1e-9))))


class Schedule:
    """Rounds, and which contestants take part in each: those with few repetitions are spread over all rounds."""

    def __init__(self, wanted: Mapping[str, int], rounds: int) -> None:
        self._wanted = {name: min(count, rounds) for name, count in wanted.items()}
        self._rounds = rounds
        self._round = 0

    def next_round(self) -> list[str]:
        """Names of those that take part in the next round."""
        now, self._round = self._round, self._round + 1
        return [
            name
            for name, count in self._wanted.items()
            if self._round * count // self._rounds > now * count // self._rounds
        ]


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
