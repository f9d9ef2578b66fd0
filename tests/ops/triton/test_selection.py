"""select_top_fraction in Triton against the reference, and against what a list that is sorted by hand gives."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from smile_fast.ops import select_top_fraction
from tests.ops.test_select_top_fraction import by_hand

INF, NAN = torch.inf, torch.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEGMENTS = [3, 3, 37, 38, 120, 120, 390]  # empty ones, several within a tile of 64, one over many tiles, a rest


def select(scores: Tensor, candidates: Tensor, gamma: float | Tensor, segments: list[int]) -> Tensor:
    return select_top_fraction(scores, candidates, gamma, torch.tensor(segments), implementation="triton")


def assert_selects_like_a_sort(scores: Tensor, candidates: Tensor, percent: list[int], segments: list[int]) -> None:
    shares = torch.tensor(percent).double() / 100
    found = select(scores, candidates, shares, segments)
    assert torch.equal(found, by_hand(scores, candidates, [Fraction(p, 100) for p in percent], segments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_random_segments(dtype: torch.dtype, ties: bool) -> None:
    generator = torch.Generator().manual_seed(int(ties))
    scores = torch.randn(400, generator=generator) * 4
    if ties:
        special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, 2.0**-24])
        picked = special[torch.randint(0, 7, (400,), generator=generator)]
        scores = torch.where(torch.rand(400, generator=generator) < 0.2, picked, scores.round() / 4)
    candidates = torch.rand(400, generator=generator) < 0.6
    percent = torch.randint(0, 101, (6,), generator=generator).tolist()
    assert_selects_like_a_sort(scores.to(dtype), candidates, percent, SEGMENTS)


@pytest.mark.parametrize("percent", [0, 1, 7, 50, 100])
def test_one_value_everywhere_goes_by_index(percent: int) -> None:
    assert_selects_like_a_sort(torch.full((200,), 0.5), torch.ones(200).bool(), [percent], [0, 200])


def test_scores_that_differ_in_the_last_bit_only() -> None:
    steps = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    scores = (torch.tensor(1.0).view(torch.int32) + steps).view(torch.float32)
    assert_selects_like_a_sort(scores, torch.ones(200).bool(), [33], [0, 200])
    assert_selects_like_a_sort(-scores, torch.ones(200).bool(), [33], [0, 200])


def test_special_values_are_ranked() -> None:
    tiny = 2.0**-149
    scores = torch.tensor([NAN, -INF, -tiny, -0.0, 0.0, tiny, INF, NAN, -NAN])
    for percent in range(0, 100, 11):
        assert_selects_like_a_sort(scores, torch.ones(9).bool(), [percent], [0, 9])


def test_counts_are_those_of_exact_arithmetic() -> None:
    assert 0.07 * 100 > 7  # so that a plain ceil would be caught
    for percent, total in [(7, 100), (29, 100), (57, 100), (58, 100), (14, 50)]:
        found = select(torch.zeros(total), torch.ones(total).bool(), percent / 100, [0, total])
        assert int(found.sum()) == -(-percent * total // 100)


def test_share_that_is_no_share_is_clipped() -> None:
    arguments = (torch.arange(4.0), torch.ones(4).bool())
    run = torch.ops.smile_fast.select_top_fraction.triton
    for share, count in [(NAN, 0), (-1.0, 0), (7.0, 4)]:
        found = run(*arguments, torch.tensor([share], dtype=torch.float64), torch.tensor([0, 4]))
        assert int(found.sum()) == count


def test_wrong_offsets_stay_inside() -> None:
    offsets = torch.tensor([-5, 10, 9999])
    found = torch.ops.smile_fast.select_top_fraction.triton(
        torch.arange(70.0), torch.ones(70).bool(), torch.tensor([0.5, 1.0], dtype=torch.float64), offsets
    )
    assert int(found.sum()) == 65


@pytest.mark.parametrize(("length", "segments"), [(0, [0]), (0, [0, 0]), (3, [0]), (3, [3, 3]), (3, [0, 0, 0])])
def test_nothing_to_select(length: int, segments: list[int]) -> None:
    found = select(torch.ones(length), torch.ones(length).bool(), 1.0, segments)
    assert found.tolist() == [False] * length


def test_no_candidates() -> None:
    assert not select(torch.ones(70), torch.zeros(70).bool(), 1.0, [0, 70]).any()


def test_strided_inputs() -> None:
    scores, candidates = torch.randn(80, 2)[:, 0], (torch.arange(160) % 3 > 0)[::2]
    expected = select(scores.contiguous(), candidates.contiguous(), 0.4, [5, 80])
    assert torch.equal(select(scores, candidates, 0.4, [5, 80]), expected)


def test_opcheck() -> None:
    shares, segments = torch.tensor([0.5, 0.2], dtype=torch.float64), torch.tensor([0, 20, 40])
    torch.library.opcheck(
        torch.ops.smile_fast.select_top_fraction.triton, (torch.randn(40), torch.rand(40) < 0.5, shares, segments)
    )


def test_double_scores_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'triton' of select_top_fraction cannot be used: it computes in float32"):
        select(torch.ones(3).double(), torch.ones(3).bool(), 1.0, [0, 3])
