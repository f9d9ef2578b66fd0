"""Two callables timed in turn in one process: what the machine does to one, it does to the other."""

import statistics
import time
from collections.abc import Callable

REPETITIONS = 11


def ratio_of_medians(ours: Callable[[], object], peer: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """Peer's median time over ours, from interleaved runs after one warm-up of each."""
    times: dict[Callable[[], object], list[float]] = {ours: [], peer: []}
    for run in times:
        run()
    for _ in range(repetitions):
        for run, taken in times.items():
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return statistics.median(times[peer]) / statistics.median(times[ours])
