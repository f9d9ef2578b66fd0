"""Which pairs a number runs over: means that would differ under another rule, worked out by hand."""

import numpy as np
import pytest

from smile_fast.evaluation import Outcome, PairScore, format_table, score_case, summarise
from smile_fast.supervision import State

ORGANS = ("liver", "spleen")


def pair(case, organ, outcome, truth, predicted, dice=None, source=""):
    return PairScore(case, organ, State.ANNOTATED, outcome, truth, predicted, dice, None, None, source)


PAIRS = [
    pair("a", "liver", Outcome.SCORED, 10.0, 20.0, 0.5, "north"),  # both share 7.5 ml
    pair("b", "liver", Outcome.SCORED, 100.0, 100.0, 0.9, "north"),  # 90 ml
    pair("c", "liver", Outcome.MISSED, 50.0, 0.0, 0.0, "south"),
    pair("d", "liver", Outcome.FALSE_ALARM, 0.0, 40.0, source="south"),
    pair("e", "liver", Outcome.FALSE_ALARM, 0.0, 4.0, source="south"),
    pair("f", "liver", Outcome.FALSE_ALARM, 0.0, 6.0, source="south"),
    pair("g", "liver", Outcome.BOTH_EMPTY, 0.0, 0.0, source="south"),
    pair("h", "liver", Outcome.NOT_DRAWN, 0.0, 1000.0, source="south"),
]


def evaluation(pairs=PAIRS):
    return summarise(pairs, ORGANS, split="test", nsd_tolerance_mm=None)


def test_means_run_over_the_pairs_that_hold_the_organ():
    liver = evaluation().organs[0]
    assert liver.dice.pairs == 3
    assert liver.dice.mean == pytest.approx((0.5 + 0.9 + 0.0) / 3)  # not over six, false alarms as 0: 0.233
    assert (liver.false_alarms.pairs, liver.false_alarms.of, liver.false_alarms.median_ml) == (3, 4, 6.0)
    assert liver.false_alarms.rate == 0.75


def test_false_alarms_do_not_choose_which_pairs_are_averaged():
    """A method that is right on empty cases would get another mean, if its false alarms counted as Dice 0."""
    clean = [
        PairScore(*[*vars(each).values()][:3], Outcome.BOTH_EMPTY, 0.0, 0.0, None, None, None)
        if each.outcome is Outcome.FALSE_ALARM
        else each
        for each in PAIRS
    ]
    assert evaluation(clean).dice == evaluation().dice
    assert evaluation(clean).organs[0].pooled_dice > evaluation().organs[0].pooled_dice


def test_pooled_dice_and_volumes_run_over_all_drawn_pairs():
    liver, spleen = evaluation().organs
    assert liver.pooled_dice == pytest.approx(2 * (7.5 + 90) / (160 + 120 + 50))
    assert liver.volume_ratio == pytest.approx((20 + 100 + 0 + 40 + 4 + 6) / (10 + 100 + 50))
    assert liver.median_volume_ratio == 1.0  # of 2, 1 and 0
    assert (spleen.pooled_dice, spleen.volume_ratio, spleen.false_alarms.rate) == (None, None, None)


def test_pooled_dice_is_that_of_all_cases_as_one_volume():
    """Cases of other voxel sizes count by millilitres."""
    rng = np.random.default_rng(7)
    states, pairs, sums = {"liver": State.ANNOTATED}, [], np.zeros(2)
    for case, spacing in (("a", (1.0, 1.0, 1.0)), ("b", (4.0, 2.0, 1.0)), ("c", (1.0, 3.0, 1.0))):
        truth, prediction = (rng.integers(0, 2, (3, 4, 5)).astype(np.uint8) for _ in range(2))
        pairs += score_case(case, truth, prediction, states, ("liver",), spacing, nsd_tolerance_mm=None)
        sums += np.array([2 * (truth & prediction).sum(), truth.sum() + prediction.sum()]) * np.prod(spacing)
    (liver,) = summarise(pairs, ("liver",), split="test", nsd_tolerance_mm=None).organs
    assert liver.pooled_dice == pytest.approx(sums[0] / sums[1])
    assert liver.pooled_dice != pytest.approx(liver.dice.mean)


def test_sources_have_rows_of_their_own_where_there_are_any():
    north, south = evaluation().sources
    assert (north.source, north.cases, north.dice) == ("north", 2, pytest.approx(0.7))
    assert (south.cases, south.dice, south.organs[0].false_alarms.of) == (6, 0.0, 4)
    lines = format_table(evaluation()).splitlines()
    assert any(line.startswith("north, 2 cases") and "0.700" in line for line in lines)
    without = [pair("a", "liver", Outcome.SCORED, 1.0, 1.0, 0.5)]
    assert evaluation(without).sources == ()
    assert "source" not in format_table(evaluation(without))


def test_a_sheared_volume_has_its_longest_diagonal():
    truth = np.ones((1, 2, 3), np.uint8)
    directions = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.6], [0.0, 0.0, 0.8]])  # columns z, y, x
    options = {"nsd_tolerance_mm": 1.0, "directions": directions}
    (found,) = score_case("a", truth, 0 * truth, {"liver": State.ANNOTATED}, ("liver",), (1.0, 1.0, 1.0), **options)
    assert found.hd95_mm == pytest.approx((1 + (2 + 1.8) ** 2 + 2.4**2) ** 0.5)
