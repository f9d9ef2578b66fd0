"""The statistics of two sets of scores of the same things."""

import math

import pytest

from smile_fast.evaluation.comparison import paired_difference


def test_the_exact_p_of_eight_pairs_that_all_rise_is_two_of_two_to_the_eighth() -> None:
    found = paired_difference([(10 + n * n) / 100 for n in range(1, 9)], [0.1] * 8)
    assert found.pairs == 8
    assert found.p == 2 / 2**8
    assert 0 < found.low < found.mean < found.high


def test_a_difference_turns_with_the_order_and_is_the_same_twice() -> None:
    a, b = [0.9, 0.8, 0.3, 0.6, 0.7], [0.5, 0.9, 0.1, 0.6, 0.2]
    there, again, back = paired_difference(a, b), paired_difference(a, b), paired_difference(b, a)
    assert there == again
    assert (there.mean, there.p) == (-back.mean, back.p)


def test_equal_scores_differ_by_nothing() -> None:
    found = paired_difference([0.5, 0.7], [0.5, 0.7])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_pair_has_a_difference_and_no_interval() -> None:
    found = paired_difference([0.75], [0.5])
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.p)


@pytest.mark.parametrize(("a", "b"), [([0.1], [0.1, 0.2]), ([math.nan, 1.0], [0.0, 1.0])])
def test_what_is_no_pair_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="a and b: "):
        paired_difference(a, b)
