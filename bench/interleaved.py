"""Several ways to do one thing, timed in turn in one process: what the machine does to one, it does to the others."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

    def seconds(self) -> float:
        """Time one run."""
        self.refresh()
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started


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


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Their time over ours: of the medians and of the minima."""
    return {
        "medians": _rounded(statistics.median(theirs) / statistics.median(ours)),
        "minima": _rounded(min(theirs) / min(ours)),
    }


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Median and minimum of times in seconds."""
    return {
        "median": _rounded(1e3 * statistics.median(times)),
        "minimum": _rounded(1e3 * min(times)),
        "repetitions": len(times),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
