"""One workload: agreement first, then all calls in turn, then figures beside pytest-benchmark's own."""

import statistics
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.comparison import Call, Comparison
from bench.timing import Counters, Run, Timer, prepare, ratio, rounded, summary, timed

MILLISECONDS, RATIOS, ERRORS = "milliseconds", "peer / ours", "errors"
COSTS = "costs"  # what a workload costs beside time: bytes, seconds of other processes


def measure(benchmark: BenchmarkFixture, name: str, comparison: Comparison, timer: Timer) -> None:
    """Time a comparison.

    pytest-benchmark times the first of ours; all others run in the set-up of each of its rounds, so that every round
    holds one run of each.

    Args:
        benchmark: the fixture; its timer is `timer.now`.
        name: "op/workload".
        comparison: what is compared.
        timer: of the device; says how often everybody runs.
    """
    errors = comparison.check()  # everybody's first run: compiles
    first, *others = comparison.calls
    for call in comparison.calls * timer.warmups:
        call.refresh()
        call.run()
    runs: dict[str, list[Run]] = {call.name: [] for call in others}
    counters: list[Counters] = []
    counted: list[tuple[int, int]] = []

    def run_the_others() -> None:
        for call in others:
            runs[call.name].append(timed(call, timer, comparison.warm, comparison.steps_of(call)))
        prepare(first, timer, comparison.warm)
        counters[:] = [Counters()]

    def run() -> None:  # returns nothing: the result is freed inside of the timed part, as for the others
        first.run()

    benchmark.pedantic(
        run,
        setup=run_the_others,
        teardown=lambda: counted.append(counters[0].since()),
        rounds=timer.repetitions,
    )
    times = benchmark.stats.stats.data
    runs[first.name] = [
        Run(seconds / comparison.steps_of(first), *counts) for seconds, counts in zip(times, counted, strict=True)
    ]
    derived = comparison.derived(statistics.median(run.seconds for run in runs[first.name]))
    derived = {name: rounded(value) for name, value in derived.items()}
    costs = comparison.facts.get(COSTS, {}) | derived | timer.costs(first)
    benchmark.extra_info.update(figures(name, comparison, runs, errors) | ({COSTS: costs} if costs else {}))


def figures(name: str, comparison: Comparison, runs: dict[str, list[Run]], errors: dict[str, float]) -> dict[str, Any]:
    """What is recorded of a comparison: facts, errors, times, and for each of ours the ratio to each peer."""

    def ratios(ours: Call) -> dict[str, dict[str, float]]:
        return {peer.name: ratio(runs[peer.name], runs[ours.name]) for peer in comparison.peers}

    return {
        "name": name,
        **comparison.facts,
        ERRORS: errors,
        MILLISECONDS: {call.name: summary(runs[call.name]) for call in comparison.calls},
        RATIOS: {ours.name: ratios(ours) for ours in comparison.ours},
    }
