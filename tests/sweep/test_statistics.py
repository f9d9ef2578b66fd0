"""Statistics of a sweep on scores that are known."""

import pytest

from smile_fast.evaluation.scores import Outcome, PairScore
from smile_fast.supervision import State
from smile_fast.sweep.cell import CellRecord
from smile_fast.sweep.grid import Cell
from smile_fast.sweep.statistics import holm, summary_rows
from smile_fast.sweep.statistics import tests as method_tests


def pair(case: str, organ: str, dice: float | None, outcome: Outcome = Outcome.SCORED) -> PairScore:
    return PairScore(case, organ, State.ANNOTATED, outcome, 1.0, 1.0, dice, None, None)


def record(method: str, fold: int, *pairs: PairScore) -> CellRecord:
    return CellRecord(1, "plan", Cell(method, 0.5, fold), 1.0, pairs)


def test_pairs_count_by_their_truth_alone() -> None:
    missed, alarm = Outcome.MISSED, Outcome.FALSE_ALARM
    rows = summary_rows(
        [record("smile", 0, pair("a", "liver", 0.8), pair("b", "liver", 0.0, missed), pair("c", "liver", 0.0, alarm))]
    )
    liver, mean = rows
    assert (liver.organ, liver.mean, liver.pairs, liver.false_alarms) == ("liver", 0.4, 2, 1)
    assert (mean.organ, mean.mean) == ("mean", 0.4)
    assert (liver.low, liver.high) == (0.0, 0.8)  # of two cases, either may be drawn twice


def test_std_is_over_the_means_of_folds() -> None:
    rows = summary_rows([record("smile", fold, pair("a", "liver", dice)) for fold, dice in enumerate((0.2, 0.6))])
    assert rows[0].mean == pytest.approx(0.4)
    assert rows[0].std == pytest.approx(0.2 * 2**0.5)


def test_methods_are_tested_on_the_cases_that_both_have() -> None:
    one = record("smile", 0, *(pair(f"case_{n}", "liver", 0.5 + 0.01 * n) for n in range(8)))
    two = record("baseline", 0, *(pair(f"case_{n}", "liver", 0.4 - 0.01 * n) for n in range(7)))
    liver, _ = method_tests([one, two])
    assert (liver.first, liver.second, liver.cases) == ("smile", "baseline", 7)
    assert liver.p == pytest.approx(2 / 2**7)  # exact: all seven differences have one sign
    assert liver.turned().difference == -liver.difference
    same, _ = method_tests([one, record("baseline", 0, *one.pairs)])
    assert (same.difference, same.p) == (0.0, 1.0)


def test_a_case_of_several_folds_and_organs_counts_once() -> None:
    """Case a differs by 0.1 and 0.3 in two folds, case b by 0.2; the pancreas of a by 0.6 in the first fold."""
    ours = [
        record("smile", 0, pair("a", "liver", 0.5), pair("a", "pancreas", 0.9)),
        record("smile", 1, pair("a", "liver", 0.6), pair("b", "liver", 0.7)),
    ]
    theirs = [
        record("baseline", 0, pair("a", "liver", 0.4), pair("a", "pancreas", 0.3)),
        record("baseline", 1, pair("a", "liver", 0.3), pair("b", "liver", 0.5)),
    ]
    liver, pancreas, mean = method_tests([*ours, *theirs])
    assert (liver.cases, pancreas.cases, mean.cases) == (2, 1, 2)
    assert liver.difference == pytest.approx((0.2 + 0.2) / 2)
    assert mean.difference == pytest.approx((liver.difference + pancreas.difference) / 2)  # as the rows are
    assert (pancreas.low, pancreas.high, pancreas.p) == (None, None, 1.0)


def test_a_case_in_several_folds_is_no_more_certain() -> None:
    cases = [pair(f"case_{n}", "liver", n / 10) for n in range(10)]
    once, thrice = (summary_rows([record("smile", fold, *cases) for fold in range(n)])[0] for n in (1, 3))
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))


def test_p_of_several_organs_is_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01, then 2 x 0.03, never falling
    assert holm([0.9, 0.8]) == [1.0, 1.0]
