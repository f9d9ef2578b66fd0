import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import timing
from bench.agreement import Result, assert_agrees, gradient_ulps, relative_error, ulps_of_largest
from bench.comparison import OURS, Call, Comparison
from bench.measure import COSTS, MILLISECONDS, RATIOS, measure
from bench.ops.names import EAGER, IN_PLACE
from bench.ops.select_top_fraction import KTHVALUE, TOPK, Problem, assert_as_good, assert_best_scores, exact
from bench.scenes import blobs, masks, scene
from bench.timing import EXTRA_MEMORY, QUEUE_CYCLES, CpuTimer, CudaTimer, Run, ratio, summary, timed
from smile_fast.ops import reference


def runs(*seconds: float) -> list[Run]:
    return [Run(value, 0, 0) for value in seconds]


def test_ratios_are_of_medians_and_of_minima() -> None:
    assert ratio(runs(10, 30, 20), runs(1, 2, 50)) == {"medians": 10, "minima": 10}
    assert ratio(runs(10, 30, 20), runs(4, 5, 50)) == {"medians": 4, "minima": 2.5}
    found = summary([Run(0.001, 5, 0), Run(0.003, 7, 4), Run(0.002, 6, 0)])
    assert found == {"median": 2, "minimum": 1, "repetitions": 3, "page faults": 6, "preemptions": 0}


def test_refreshing_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only refreshing and running move on."""
    now = [100.0]

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert timed(Call("one", takes(0.25), takes(8.0)), CpuTimer()).seconds == 0.25
    assert now == [108.25]
    assert timed(Call("five", takes(0.25)), CpuTimer(), steps=5).seconds == 0.05


class Input(torch.Tensor):
    """Says that it is read."""

    order: list[str]

    def sum(self, *_: Any, **__: Any) -> torch.Tensor:
        self.order.append("warm")
        return torch.zeros(())


def says(order: list[str], what: str) -> Callable[..., None]:
    return lambda *_: order.append(what)


def test_everybody_starts_with_empty_caches_but_for_what_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    warm = torch.zeros(1).as_subclass(Input)
    warm.order = order
    monkeypatch.setattr(timing, "scrub", says(order, "scrub"))
    names = (OURS, IN_PLACE, EAGER)
    first, second, peer = (Call(name, says(order, name), says(order, "refresh")) for name in names)
    given = Comparison([first, second], [peer], dict, warm=[warm])
    benchmark = Pedantic()
    timer = CpuTimer()
    measure(benchmark, "masked_bce/K3-half", given, timer)  # type: ignore[arg-type]
    turn = [["refresh", "scrub", "warm", name] for name in (IN_PLACE, EAGER, OURS)]
    assert order == [step for one in turn for step in one] * timer.repetitions
    recorded = benchmark.extra_info[MILLISECONDS]
    assert timer.repetitions == 11
    assert {name: recorded[name]["repetitions"] for name in names} == dict.fromkeys(names, timer.repetitions)


class Stream:
    """A GPU that takes a second for every call that is queued, stands still meanwhile, and says what happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.order: list[str] = []
        self.memory = 100
        stream = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.passed = False

            def record(self) -> None:
                self.at = stream.seconds
                stream.order.append("event")

            def synchronize(self) -> None:
                self.passed = True

            def elapsed_time(self, end: "Event") -> float:
                assert end.passed, "no one has waited for it"
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.queue(f"sleep {cycles}"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.memory)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.memory + 24)
        monkeypatch.setattr(timing, "L2_SCRUBBED", 4)

    def queue(self, what: str, seconds: float = 1.0) -> None:
        self.order.append(what)
        self.seconds += seconds


def test_on_a_gpu_events_enclose_what_is_queued_behind_a_cold_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(monkeypatch)
    warm = torch.zeros(1).as_subclass(Input)
    warm.order = stream.order
    timer = CudaTimer(3, device="cpu")
    ours = Call(OURS, functools.partial(stream.queue, OURS, 0.25), functools.partial(stream.queue, "refresh"))
    peer = Call(EAGER, functools.partial(stream.queue, EAGER, 2.0))
    benchmark = Pedantic(timer.now)
    measure(benchmark, "masked_bce/K3-half", Comparison([ours], [peer], dict, warm=[warm]), timer)  # type: ignore[arg-type]
    sleep = f"sleep {QUEUE_CYCLES}"
    warmups = ["refresh", OURS, EAGER] * timer.warmups
    one_round = ["warm", sleep, "event", EAGER, "event", "refresh", "warm", sleep, "event", OURS, "event"]
    assert stream.order == warmups + one_round * 3 + ["refresh", OURS]
    found = benchmark.extra_info
    assert {name: taken["median"] for name, taken in found[MILLISECONDS].items()} == {OURS: 250, EAGER: 2000}
    assert found[RATIOS] == {OURS: {EAGER: {"medians": 8, "minima": 8}}}
    assert found[COSTS] == {EXTRA_MEMORY: 24}


def test_steps_of_a_training_loop_are_timed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(monkeypatch)
    timer = CudaTimer(2, queued=False, device="cpu")
    ours = Call(OURS, functools.partial(stream.queue, OURS, 5.0))
    benchmark = Pedantic(timer.now)
    measure(benchmark, "training_step/a", Comparison([ours], [], dict, steps=5), timer)  # type: ignore[arg-type]
    assert set(stream.order) == {"event", OURS}
    assert benchmark.extra_info[MILLISECONDS][OURS]["median"] == 1000


class Pedantic:
    """What measure() uses of pytest-benchmark's fixture."""

    def __init__(self, timer: Callable[[], Any] | None = None) -> None:
        self.extra_info: dict[str, Any] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.timer = timer

    def pedantic(
        self, target: Callable[[], None], setup: Callable[[], None], teardown: Callable[[], None], rounds: int
    ) -> None:
        for _ in range(rounds):
            setup()
            begin = self.timer() if self.timer else 0.0
            target()
            self.stats.stats.data.append(self.timer() - begin if self.timer else 1.0)
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
    assert_as_good(TOPK, other_tie, wanted, given)
    assert_as_good(KTHVALUE, torch.tensor([True, False, True, True]), wanted, given)
    for wrong in ([True, True, False, False], [False, False, True, True], [True, False, True, True]):
        with pytest.raises(AssertionError):
            assert_as_good(TOPK, torch.tensor(wrong), wanted, given)


def test_the_best_scores_of_a_batch_are_compared_with_what_is_wanted() -> None:
    given = Problem(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, True]), 0.5, 4)
    wanted = exact(given)
    assert_best_scores(TOPK, torch.tensor([[0.7, 0.9, 0.6]]), wanted, given)
    for wrong in ([0.9, 0.8], [0.7, 0.6]):
        with pytest.raises(AssertionError, match=TOPK):
            assert_best_scores(TOPK, torch.tensor([wrong]), wanted, given)


def test_the_peers_masks_are_those_of_the_table() -> None:
    made = scene(2, 40, (16, 16), 0.5)
    known, positive = masks(made, 40, torch.float32)
    for organ, bits in enumerate(reference.decode(made.labels, made.table, 40)):
        assert torch.equal(known[:, organ].bool(), bits[0])
        assert torch.equal(positive[:, organ].bool(), bits[1])


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
