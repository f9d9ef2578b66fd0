"""How calls are timed on a GPU; on a CPU, where only the tests run them, by the clock."""

import statistics
import time
from collections.abc import Callable

import torch

REPETITIONS = 21
SCRUB_FLOATS = 64 << 20  # 256 MB, larger than any L2: what a call finds there is not its own
QUEUE_CYCLES = 4_000_000  # some 2 ms in which the GPU idles and the host queues all that is timed
STEPS = 5  # training steps at a time

Calls = dict[str, Callable[[], object]]
Times = dict[str, dict[str, float]]


def times(calls: Calls, device: str, repetitions: int = REPETITIONS) -> Times:
    """Milliseconds of the GPU's work of every call, from interleaved runs with a cold L2: median and minimum."""
    scrub = torch.zeros(SCRUB_FLOATS if device == "cuda" else 1, device=device)

    def once(call: Callable[[], object]) -> float:
        scrub.sum()  # reads: no line is left that would have to be written back during the call
        if device == "cuda":
            torch.cuda._sleep(QUEUE_CYCLES)
        return elapsed(call, device)

    return _interleaved(calls, once, repetitions)


def step_times(calls: Calls, device: str, repetitions: int = REPETITIONS) -> Times:
    """Milliseconds of every call among others of its kind, host included, as in a training loop: median and minimum."""

    def several(call: Callable[[], object]) -> float:
        call()  # the caches and the allocator are those of this call, not of the one before
        return elapsed(lambda: [call() for _ in range(STEPS)], device) / STEPS

    return _interleaved(calls, several, repetitions)


def elapsed(call: Callable[[], object], device: str) -> float:
    """Milliseconds from the begin to the end of what a call queues."""
    if device != "cuda":
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _interleaved(calls: Calls, measure: Callable[[Callable[[], object]], float], repetitions: int) -> Times:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(repetitions):
        for name, call in calls.items():
            taken[name].append(measure(call))
    return {name: {"median": statistics.median(some), "min": min(some)} for name, some in taken.items()}
