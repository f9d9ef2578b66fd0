"""How runs are timed: calls take turns in one process, so that what the machine does to one it does to the others.

A timer is what pytest-benchmark calls before and after a run: the difference of its moments is seconds. On a CPU a
moment is the clock's; on a GPU it is an event in the stream, and the difference waits until the GPU has passed it.
"""

import functools
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bench.comparison import CUDA, Call

SCRUBBED = 2**27  # bytes: several times what a CPU's caches hold
L2_SCRUBBED = 2**28  # bytes: larger than any L2
EXTRA_MEMORY = "extra memory, bytes"
QUEUE_CYCLES = 4_000_000  # some 2 ms in which the GPU idles and the host queues all that is timed


class Timer(Protocol):
    """How one device is timed.

    Attributes:
        repetitions: how often everybody runs.
        warmups: runs of everybody that are not timed, beside the one that is checked.
    """

    repetitions: int
    warmups: int

    def now(self) -> Any:
        """A moment; the difference of two is seconds, as a float."""

    def prepare(self, warm: Sequence[Tensor]) -> None:
        """Empty the caches, but for what is warm."""

    def costs(self, call: Call) -> dict[str, float]:
        """What a call costs beside time, as far as this device can say."""


@dataclass
class CpuTimer:
    """The clock. Also for what begins and ends on the host, wherever it computes in between."""

    repetitions: int = 11
    warmups: int = 0

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def prepare(self, warm: Sequence[Tensor]) -> None:
        """Empty the caches of all threads' cores, but for what is warm."""
        scrub()
        for tensor in warm:
            tensor.sum()

    def costs(self, call: Call) -> dict[str, float]:
        """Nothing is known."""
        return {}


class ProcessTimer(CpuTimer):
    """CPU seconds of this process and its threads, of which other processes take none."""

    def now(self) -> float:
        """Seconds."""
        return time.process_time()


@functools.cache
def _unrelated() -> Tensor:
    return torch.zeros(SCRUBBED // 4)


def scrub() -> None:
    """Push everything out of the caches of all threads' cores; 4 ms.

    After one pass an L3 of 32 MiB still held much of 12.6 MB (read in 0.20 ms; 0.12 warm, 0.32 after both). The second
    pass only reads: no measured time then holds the writing back of these bytes.
    """
    _unrelated().add_(1)
    _unrelated().sum()


class CudaMoment:
    """A place in the current stream."""

    def __init__(self) -> None:
        self.event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def __sub__(self, begin: "CudaMoment") -> float:
        """Seconds of the GPU since another moment; waits until it has come to this one."""
        self.event.synchronize()
        return float(begin.event.elapsed_time(self.event)) / 1e3


class CudaTimer:
    """Events in the stream: the GPU's own time, with a cold L2, of work that is queued before it begins."""

    def __init__(self, repetitions: int = 21, *, queued: bool = True, device: str = CUDA) -> None:
        """Take memory to scrub with.

        Args:
            repetitions: how often everybody runs.
            queued: False for steps as in a training loop, host included: nothing is scrubbed, the GPU does not wait.
            device: of the memory.
        """
        self.repetitions, self.warmups = repetitions, 2
        self._unrelated = torch.zeros(L2_SCRUBBED // 4, device=device) if queued else None

    def now(self) -> CudaMoment:
        """Record an event."""
        return CudaMoment()

    def prepare(self, warm: Sequence[Tensor]) -> None:
        """Empty the L2 but for what is warm, and let the GPU idle while the host queues the run."""
        if self._unrelated is None:
            return
        self._unrelated.sum()  # reads: no line is left that would have to be written back during the run
        for tensor in warm:
            tensor.sum()
        torch.cuda._sleep(QUEUE_CYCLES)  # type: ignore[no-untyped-call]

    def costs(self, call: Call) -> dict[str, float]:
        """Bytes of the GPU that the call needs at its peak beyond what was there before."""
        call.refresh()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call.run()
        torch.cuda.synchronize()
        return {EXTRA_MEMORY: torch.cuda.max_memory_allocated() - before}


class Run(NamedTuple):
    """One run: how long it took, and what the kernel of the system did to the process meanwhile."""

    seconds: float
    faults: int
    preemptions: int


class Counters:
    """The system's counters of this process, from now on."""

    def __init__(self) -> None:
        self._start = resource.getrusage(resource.RUSAGE_SELF)

    def since(self) -> tuple[int, int]:
        """Page faults, and how often a thread lost its core to another process."""
        now = resource.getrusage(resource.RUSAGE_SELF)
        return now.ru_minflt - self._start.ru_minflt, now.ru_nivcsw - self._start.ru_nivcsw


def prepare(call: Call, timer: Timer, warm: Sequence[Tensor]) -> None:
    """Bring inputs and caches into the state in which every run starts: nothing is cached but what is warm."""
    call.refresh()
    timer.prepare(warm)


def timed(call: Call, timer: Timer, warm: Sequence[Tensor] = (), steps: int = 1) -> Run:
    """Run once; the seconds are of one of its steps."""
    prepare(call, timer, warm)
    counters = Counters()
    begin = timer.now()
    call.run()
    end = timer.now()
    return Run((end - begin) / steps, *counters.since())


def ratio(theirs: Sequence[Run], ours: Sequence[Run]) -> dict[str, float]:
    """Their time over ours: of the medians and of the minima."""
    their_times, our_times = ([run.seconds for run in runs] for runs in (theirs, ours))
    return {
        "medians": rounded(statistics.median(their_times) / statistics.median(our_times)),
        "minima": rounded(min(their_times) / min(our_times)),
    }


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """What is recorded of one call's runs: milliseconds, and medians of the counters."""
    seconds, faults, preemptions = zip(*runs, strict=True)
    return {
        "median": rounded(1e3 * statistics.median(seconds)),
        "minimum": rounded(1e3 * min(seconds)),
        "repetitions": len(runs),
        "page faults": statistics.median(faults),
        "preemptions": statistics.median(preemptions),
    }


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
