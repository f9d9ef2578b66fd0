import os
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from smile_fast.ops import available, select_top_fraction
from tests.ops.problems import taken

INF, NAN = torch.inf, torch.nan
IMPLEMENTATIONS = [name for name, usable, _ in available("select_top_fraction", "cpu") if usable]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_native_is_there_where_it_must_be() -> None:
    usable = dict((name, reason) for name, ok, reason in available("select_top_fraction", "cpu") if not ok)
    required = os.environ.get("SMILE_FAST_REQUIRE_NATIVE") == "1"
    assert "native" not in usable or not required, usable["native"]


def by_hand(scores: Tensor, candidates: Tensor, shares: list[Fraction], segments: list[int]) -> Tensor:
    """Select by sorting a list per segment, with exact arithmetic for the counts."""
    selected = torch.zeros_like(candidates)
    for share, start, end in zip(shares, segments[:-1], segments[1:], strict=True):
        eligible = [i for i in range(start, end) if candidates[i]]
        values = {i: float(scores[i]) for i in eligible}
        ranked = sorted(
            eligible, key=lambda i: (values[i] != values[i], -values[i] if values[i] == values[i] else 0, i)
        )
        count = -(-share.numerator * len(eligible) // share.denominator)  # ceil
        selected[ranked[:count]] = True
    return selected


def select(scores: list[float], gamma: float, candidates: list[int] | None = None) -> list[int]:
    """Indices that are selected of one segment."""
    eligible = torch.tensor(candidates if candidates is not None else [1] * len(scores)).bool()
    whole = torch.tensor([0, len(scores)])
    found = select_top_fraction(torch.tensor(scores, dtype=torch.float32), eligible, gamma, whole)
    return [int(index) for index in found.nonzero()]


@pytest.mark.parametrize(("implementation", "dtype"), taken("select_top_fraction"), ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_segments_with_ties(implementation: str, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    segments = [0, 0, 37, 38, 120, 120, 200]
    special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, 2.0**-24])
    scores = torch.randn(200, generator=generator).mul(4).round().div(4)  # many ties
    scores = torch.where(
        torch.rand(200, generator=generator) < 0.2, special[torch.randint(0, 7, (200,), generator=generator)], scores
    ).to(dtype)
    candidates = torch.rand(200, generator=generator) < 0.6
    hundredths = torch.randint(0, 101, (6,), generator=generator)
    shares = [Fraction(int(hundredth), 100) for hundredth in hundredths]
    gamma = hundredths.double() / 100
    found = select_top_fraction(scores, candidates, gamma, torch.tensor(segments), implementation=implementation)
    assert torch.equal(found, by_hand(scores, candidates, shares, segments))


@pytest.mark.parametrize(
    ("percent", "total"), [(7, 100), (29, 100), (57, 100), (58, 100), (33, 300), (66, 50), (14, 50)]
)
def test_counts_are_those_of_exact_arithmetic(percent: int, total: int) -> None:
    gamma = percent / 100
    exact = -(-percent * total // 100)
    assert len(select([0.0] * total, gamma)) == exact


def test_some_product_is_above_its_integer() -> None:
    assert 0.07 * 100 > 7  # so that the test above would catch a plain ceil


@pytest.mark.parametrize(
    ("gamma", "count"), [(0.0, 0), (1e-9, 1), (0.2, 1), (0.2 + 1e-9, 2), (0.999, 5), (1.0, 5), (1, 5)]
)
def test_counts_round_up(gamma: float, count: int) -> None:
    assert select([1, 2, 3, 4, 5], gamma) == list(range(5 - count, 5))


def test_ties_go_to_the_lowest_index() -> None:
    assert select([0.5, 0.7, 0.5, 0.7, 0.5], 0.6) == [0, 1, 3]
    assert select([0.5] * 9, 0.5) == [0, 1, 2, 3, 4]


def test_zeros_are_equal_whatever_their_sign() -> None:
    assert select([-0.0, 0.0, -0.0, 0.0], 0.25) == [0]
    assert select([0.0, -0.0], 0.5) == [0]


def test_order_of_special_values() -> None:
    scores = [NAN, -INF, 0.0, INF, NAN, -1.0]
    picked = [set(select(scores, count / 6)) for count in range(1, 7)]
    order = [(later - earlier).pop() for earlier, later in zip([set(), *picked], picked, strict=False)]
    assert order == [3, 2, 5, 1, 0, 4]


def test_only_candidates_are_selected_and_counted() -> None:
    assert select([9, 8, 7, 6, 5, 4], 0.5, [0, 1, 0, 1, 1, 1]) == [1, 3]
    assert select([9, 8, 7], 1.0, [0, 0, 0]) == []


def test_voxels_outside_of_the_segments_are_not_selected() -> None:
    scores = torch.arange(6.0)
    found = select_top_fraction(scores, torch.ones(6).bool(), 1.0, torch.tensor([2, 3, 5]))
    assert found.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize(("length", "segments"), [(0, [0]), (0, [0, 0]), (3, [0]), (3, [3, 3]), (3, [0, 0, 0])])
def test_nothing_to_select(length: int, segments: list[int]) -> None:
    found = select_top_fraction(torch.ones(length), torch.ones(length).bool(), 1.0, torch.tensor(segments))
    assert found.tolist() == [False] * length


def test_strided_scores_that_require_gradients() -> None:
    scores = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])[:, 0].requires_grad_()
    found = select_top_fraction(scores, torch.ones(3).bool(), 0.5, torch.tensor([0, 3]))
    assert found.tolist() == [True, False, True]
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_long_segments_are_those_of_the_reference(dtype: torch.dtype, density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 200001, generator=generator).to(dtype).T.flatten()[::2]  # not contiguous
    candidates = torch.rand(2 * len(scores), generator=generator)[::2] < density
    segments = torch.tensor([5, 100000, 100000, 220001, len(scores) - 3])
    gamma = torch.tensor([0.33, 0.5, 0.66, 1.0], dtype=torch.float64)
    found, expected = (
        select_top_fraction(scores, candidates, gamma, segments, implementation=implementation)
        for implementation in (None, "reference")
    )
    assert torch.equal(found, expected)


def test_threads_change_nothing() -> None:
    scores, candidates = torch.randn(100_000), torch.rand(100_000) < 0.5
    segments, selections = torch.tensor([0, 30, 60_000, 100_000]), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        selections.append(select_top_fraction(scores, candidates, 0.33, segments))
    assert all(torch.equal(selections[0], other) for other in selections[1:])


@pytest.mark.slow
@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the reference would need 100 GB")
def test_more_than_two_to_the_31_voxels() -> None:
    small, length = 1000, 2**31 + 5000
    scores = torch.zeros(length, dtype=torch.bfloat16)
    candidates = torch.zeros(length, dtype=torch.bool)
    places = torch.arange(3, length, length // small)[:small]
    places = torch.cat([places, torch.arange(length - 100, length)])
    candidates[places] = True
    scores[places] = torch.randn(len(places), generator=torch.Generator().manual_seed(0)).bfloat16()
    offsets = torch.tensor([64, length - 50, length])  # the selection is aligned: stored past the caches
    found = select_top_fraction(scores, candidates, 0.33, offsets)
    packed = torch.searchsorted(places, offsets)  # the same segments without the voxels between the candidates
    expected = select_top_fraction(scores[places], candidates[places], 0.33, packed, implementation="reference")
    assert torch.equal(found.nonzero()[:, 0], places[expected])


def test_opcheck_and_compile() -> None:
    scores, candidates = torch.randn(9), torch.ones(9).bool()
    segments, gamma = torch.tensor([0, 4, 9]), torch.tensor([0.5, 0.3], dtype=torch.float64)
    op = torch.ops.smile_fast.select_top_fraction
    for kernel in (op.default, *(getattr(op, name) for name in IMPLEMENTATIONS)):
        torch.library.opcheck(kernel, (scores, candidates, gamma, segments))
        torch.library.opcheck(kernel, (scores.clone().requires_grad_(), candidates, gamma, segments))
    compiled = torch.compile(
        lambda z: select_top_fraction(z, candidates, 0.5, segments), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(scores), select_top_fraction(scores, candidates, 0.5, segments))


SCORES, ALL, WHOLE = torch.randn(4), torch.ones(4).bool(), torch.tensor([0, 4])
HALF = torch.tensor([0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"scores": [1.0]}, TypeError, "scores must be a tensor, got list"),
        ({"scores": SCORES.int()}, TypeError, "scores must have dtype .*, got torch.int32"),
        ({"scores": SCORES[None]}, ValueError, r"scores must have shape \[N\], got \[1, 4\]"),
        ({"candidates": ALL.byte()}, TypeError, "candidates must have dtype torch.bool, got torch.uint8"),
        ({"candidates": ALL[:3]}, ValueError, r"candidates must have shape \[N\] = \[4\], got \[3\]"),
        ({"gamma": "0.5"}, TypeError, "gamma must be a float or a tensor of torch.float64, got str"),
        ({"gamma": True}, TypeError, "gamma must be a float or a tensor of torch.float64, got bool"),
        ({"gamma": 1.1}, ValueError, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"gamma": NAN}, ValueError, r"gamma must lie in \[0, 1\], got nan"),
        ({"gamma": HALF.float()}, TypeError, "gamma must have dtype torch.float64, got torch.float32"),
        ({"gamma": HALF[:0]}, ValueError, r"gamma must have shape \[S\] = \[1\], got \[0\]"),
        ({"gamma": HALF * 3}, ValueError, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"gamma": HALF * NAN}, ValueError, r"gamma must lie in \[0, 1\], got nan"),
        ({"segments": WHOLE.int()}, TypeError, "segments must have dtype torch.int64, got torch.int32"),
        ({"segments": WHOLE[:0]}, ValueError, r"segments must have shape \[S \+ 1\], got \[0\]"),
        ({"segments": torch.tensor([0, 5])}, ValueError, r"segments must .* in 0..4, got \[0, 5\]"),
        ({"segments": torch.tensor([-1, 4])}, ValueError, r"segments must .* in 0..4, got \[-1, 4\]"),
        ({"segments": torch.tensor([0, 3, 2])}, ValueError, r"segments must not decrease .*, got \[0, 3, 2\]"),
        ({"implementation": "sort"}, ValueError, "implementation of select_top_fraction must be .*, got 'sort'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"scores": SCORES, "candidates": ALL, "gamma": 0.5, "segments": WHOLE} | change
    with pytest.raises(kind, match=message):
        select_top_fraction(**arguments)  # type: ignore[arg-type]
