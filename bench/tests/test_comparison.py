import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import interleaved
from bench.agreement import Result, assert_agrees, gradient_ulps, relative_error, ulps_of_largest
from bench.interleaved import REPETITIONS, Contest, Contestant, Run, ratio, summary
from bench.measure import MILLISECONDS, measure
from bench.ops.peers import EAGER, IN_PLACE, OURS
from bench.ops.select_top_fraction import KTHVALUE, TOPK, Problem, _assert_as_good, exact
from bench.scenes import blobs, scene


def runs(*seconds: float) -> list[Run]:
    return [Run(value, 0, 0) for value in seconds]


def test_ratios_are_of_medians_and_of_minima() -> None:
    assert ratio(runs(10, 30, 20), runs(1, 2, 50)) == {"medians": 10, "minima": 10}
    found = summary([Run(0.001, 5, 0), Run(0.003, 7, 4), Run(0.002, 6, 0)])
    assert found == {"median": 2, "minimum": 1, "repetitions": 3, "page faults": 6, "preemptions": 0}


def test_refreshing_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only refreshing and running move on."""
    now = [100.0]

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(interleaved, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert Contestant("one", takes(0.25), takes(8.0)).measured().seconds == 0.25
    assert now == [108.25]


def test_everybody_starts_with_empty_caches_but_for_what_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Input(torch.Tensor):
        def sum(self, *_: Any, **__: Any) -> torch.Tensor:
            order.append("warm")
            return torch.zeros(())

    monkeypatch.setattr(interleaved, "scrub", lambda: order.append("scrub"))
    names = (OURS, IN_PLACE, EAGER)
    first, second, peer = (
        Contestant(name, lambda name=name: order.append(name), lambda: order.append("refresh"))  # type: ignore[misc]
        for name in names
    )
    given = Contest([first, second], [peer], dict, warm=[torch.zeros(1).as_subclass(Input)])
    benchmark = Pedantic()
    measure(benchmark, "masked_bce/K3-half", given)  # type: ignore[arg-type]
    turn = [["refresh", "scrub", "warm", name] for name in (IN_PLACE, EAGER, OURS)]
    assert order == [step for one in turn for step in one] * REPETITIONS
    told = benchmark.extra_info[MILLISECONDS]
    assert {name: told[name]["repetitions"] for name in names} == dict.fromkeys(names, REPETITIONS)


class Pedantic:
    """What measure() uses of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(
        self, target: Callable[[], None], setup: Callable[[], None], teardown: Callable[[], None], rounds: int
    ) -> None:
        for _ in range(rounds):
            setup()
            target()
            self.stats.stats.data.append(1.0)
            teardown()


def test_errors_are_in_units_in_the_last_place() -> None:
    exact_value = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64)
    given = exact_value.float()
    assert gradient_ulps(given, exact_value) == 0
    given[1] += 2 * 2.0**-22  # 3 has the exponent of 2
    assert gradient_ulps(given, exact_value) == 2
    assert ulps_of_largest(given, exact_value) == 2
    assert gradient_ulps(torch.tensor([1.0078125]).bfloat16(), torch.tensor([1.001]).double()) == 1
    assert relative_error(torch.tensor(0.0), torch.tensor(0.0)) == 0


def test_disagreement_is_noticed() -> None:
    truth = Result(torch.tensor(2.0).double(), torch.tensor([1.0, -1.0]).double())
    assert_agrees("same", Result(truth.loss.float(), truth.gradient.float()), truth)
    with pytest.raises(AssertionError, match="twice: loss"):
        assert_agrees("twice", Result(2 * truth.loss.float(), truth.gradient.float()), truth)
    with pytest.raises(AssertionError, match="sign: gradient"):
        assert_agrees("sign", Result(truth.loss.float(), -truth.gradient.float()), truth)
    with pytest.raises(AssertionError, match="nan"):
        assert_agrees("nan", Result(truth.loss.float(), truth.gradient.float() * math.nan), truth)


def test_a_selection_of_lower_scores_is_noticed() -> None:
    given = Problem(torch.tensor([0.9, 0.8, 0.7, 0.7]), torch.tensor([True, False, True, True]), 0.5, 4)
    wanted = exact(given)
    assert wanted.tolist() == [True, False, True, False]
    other_tie = torch.tensor([True, False, False, True])
    _assert_as_good(TOPK, other_tie, wanted, given)
    _assert_as_good(KTHVALUE, torch.tensor([True, False, True, True]), wanted, given)
    for wrong in ([True, True, False, False], [False, False, True, True], [True, False, True, True]):
        with pytest.raises(AssertionError):
            _assert_as_good(TOPK, torch.tensor(wrong), wanted, given)


@pytest.mark.parametrize(("missing", "pairs"), [(0.0, 0), (0.5, 26), (0.7, 36)])
def test_an_exact_share_of_the_pairs_is_missing(missing: float, pairs: int) -> None:
    made = scene(4, 13, (64, 64), missing)
    assert made.missing == pairs
    hidden = sum(
        not (made.labels[image] == organ + 1).any() and bool((made.truth[image] == organ + 1).any())
        for image in range(4)
        for organ in range(13)
    )
    drawn = sum(int(len(image.unique()) - 1) for image in made.truth)
    assert hidden <= pairs
    assert hidden >= pairs - (4 * 13 - drawn)  # an organ may lie under others


def test_organs_cover_what_organs_cover() -> None:
    covered = [
        float((blobs((256, 256), organs, np.random.default_rng(seed)) > 0).mean())
        for organs in (3, 13)
        for seed in range(5)
    ]
    assert 0.06 < np.mean(covered) < 0.18
