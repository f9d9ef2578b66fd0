"""One workload: agreement first, then all contestants in turn, then figures beside pytest-benchmark's own."""

from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.interleaved import REPETITIONS, Contest, Contestant, Counters, Run, ratio, summary
from smile_fast.ops import available

MILLISECONDS, RATIOS, ERRORS = "milliseconds", "peer / ours", "errors"
COSTS = "costs"  # what a contest measured beside times: bytes, seconds of other processes


def measure(benchmark: BenchmarkFixture, name: str, contest: Contest, rounds: int = REPETITIONS) -> None:
    """Time a contest.

    pytest-benchmark times the first of ours; all others run in the set-up of each of its rounds, so that its JSON
    keeps its own format and every round holds one run of each.

    Args:
        benchmark: the fixture.
        name: "op/workload".
        contest: what is compared.
        rounds: how often everybody runs.
    """
    errors = contest.check()  # everybody's first run: compiles
    first, *others = [*contest.ours, *contest.peers]
    runs: dict[str, list[Run]] = {one.name: [] for one in others}
    counters: list[Counters] = []
    counted: list[tuple[int, int]] = []

    def run_the_others() -> None:
        for one in others:
            runs[one.name].append(one.measured(contest.warm))
        first.prepare(contest.warm)
        counters[:] = [Counters()]

    def run() -> None:  # returns nothing: the result is freed inside of the timed part, as for the others
        first.run()

    benchmark.pedantic(run, setup=run_the_others, teardown=lambda: counted.append(counters[0].since()), rounds=rounds)
    times = benchmark.stats.stats.data
    runs[first.name] = [Run(seconds, *counts) for seconds, counts in zip(times, counted, strict=True)]
    benchmark.extra_info.update(figures(name, contest, runs, errors))


def figures(name: str, contest: Contest, runs: dict[str, list[Run]], errors: dict[str, float]) -> dict[str, Any]:
    """What is recorded of a contest: facts, errors, times, and for each of ours the ratio to each peer."""

    def ratios(ours: Contestant) -> dict[str, dict[str, float]]:
        return {peer.name: ratio(runs[peer.name], runs[ours.name]) for peer in contest.peers}

    return {
        "name": name,
        "implementation": contest.facts.get("implementation") or _implementation(name.split("/")[0]),
        **contest.facts,
        ERRORS: errors,
        MILLISECONDS: {one.name: summary(runs[one.name]) for one in (*contest.ours, *contest.peers)},
        RATIOS: {ours.name: ratios(ours) for ours in contest.ours},
    }


def _implementation(op: str) -> str:
    return next(name for name, usable, _ in available(op, "cpu") if usable)
