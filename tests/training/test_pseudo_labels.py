"""When the relabelling of a case is queued, captured and replayed. Stand-ins capture here, CUDA graphs in tests/gpu."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from smile_fast.ops import pseudo_labels_upsampled
from smile_fast.training import pseudo_labels as module
from smile_fast.training.pseudo_labels import PseudoLabeller, Replay, Results


class Recorder:
    """Captures like a CUDA graph: the results have a place, and a replay fills it from the inputs' memory."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, work: Callable[[], Results]) -> tuple[Results, Replay]:
        self.captures += 1
        results = work()

        def replay() -> None:
            self.replays += 1
            for place, value in zip(results, work(), strict=True):
                place.copy_(value)

        return results, replay


def case(seed: int, depth: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(depth, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (depth, 8, 10), generator=generator).clamp(max=1).byte()
    return logits, labels


ROUND = ([0, 2], 0.5, 2, "volume")


def assert_right(found: Results, seed: int, depth: int = 2) -> None:
    wanted = pseudo_labels_upsampled(*case(seed, depth), *ROUND)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_the_second_case_of_a_kind_is_captured_and_all_are_right() -> None:
    recorder = Recorder()
    labeller = PseudoLabeller(recorder)
    found = [labeller(*case(seed), *ROUND) for seed in range(4)]
    assert (recorder.captures, recorder.replays) == (1, 3)
    for seed, results in enumerate(found):  # also those that came before others
        assert_right(results, seed)


@pytest.mark.parametrize("change", [{0: [0, 1]}, {1: 0.25}, {3: "slice"}])
def test_another_round_is_another_kind(change: dict[int, object]) -> None:
    recorder = Recorder()
    labeller = PseudoLabeller(recorder)
    other = tuple(change.get(position, value) for position, value in enumerate(ROUND))
    for arguments in (ROUND, other):
        labeller(*case(0), *arguments)  # type: ignore[arg-type]
    assert recorder.captures == 0
    for arguments in (ROUND, other):
        found = labeller(*case(0), *arguments)  # type: ignore[arg-type]
        assert torch.equal(found[0], pseudo_labels_upsampled(*case(0), *arguments)[0])  # type: ignore[arg-type]
    assert recorder.captures == 2


def test_the_least_recently_used_sequences_go() -> None:
    recorder = Recorder()
    labeller = PseudoLabeller(recorder)
    kinds = range(module.MAX_CAPTURED + 1, 0, -1)
    for depth in kinds:
        for seed in range(2):
            labeller(*case(seed, depth), *ROUND)
    assert recorder.captures == len(kinds)
    assert_right(labeller(*case(5, 2), *ROUND), 5, depth=2)
    assert recorder.captures == len(kinds)
    assert_right(labeller(*case(5, kinds[0]), *ROUND), 5, depth=kinds[0])  # was dropped
    assert recorder.captures == len(kinds) + 1
    assert labeller.captured == module.MAX_CAPTURED


def test_all_sequences_share_the_memory_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, read = Recorder(), set()

    def noted(logits: Tensor, labels: Tensor, *others: Any) -> Results:
        read.add((logits.data_ptr(), labels.data_ptr()))
        return pseudo_labels_upsampled(logits, labels, *others)

    labeller = PseudoLabeller(recorder)
    for depth in (4, 2, 3):
        assert_right(labeller(*case(0, depth), *ROUND), 0, depth)
    with monkeypatch.context() as patch:
        patch.setattr(module, "pseudo_labels_upsampled", noted)
        for depth in (4, 2, 3):
            for seed in (1, 2):
                assert_right(labeller(*case(seed, depth), *ROUND), seed, depth)
    assert recorder.captures == 3
    assert len(read) == 1
    for seed in range(2):  # does not fit: the others are captured anew
        assert_right(labeller(*case(seed, 5), *ROUND), seed, 5)
    assert labeller.captured == 1
    assert_right(labeller(*case(7, 3), *ROUND), 7, 3)
    assert_right(labeller(*case(8, 5), *ROUND), 8, 5)
    assert recorder.captures == 5


def test_where_a_capture_fails_everything_is_queued() -> None:
    attempts = 0

    def fails(work: Callable[[], Results]) -> tuple[Results, Replay]:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    labeller = PseudoLabeller(fails)
    for seed in range(3):
        assert_right(labeller(*case(seed), *ROUND), seed)
    assert attempts == 1
    assert labeller.captured == 0


def test_on_the_cpu_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDAGraph", "graph_pool_handle", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: pytest.fail("captured"))
    labeller = PseudoLabeller()
    for seed in range(3):
        assert_right(labeller(*case(seed), *ROUND), seed)
