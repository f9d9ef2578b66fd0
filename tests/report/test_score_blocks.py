"""The scores of a page, of evaluations that are made up: what is bold, and over which pairs."""

from dataclasses import replace

import pytest

from smile_fast.evaluation import Outcome, PairScore, summarise
from smile_fast.evaluation.raters import RaterPair
from smile_fast.report.builder import page_of
from smile_fast.report.collect import collect
from smile_fast.report.palette import organ_colours
from smile_fast.report.score_blocks import score_blocks
from smile_fast.supervision import State
from tests.report.test_report import Page
from tests.runs import ORGANS, make_run, make_store, truth

COLOURS = organ_colours(ORGANS)


def pair(case, organ, dice, outcome=Outcome.SCORED, source=""):
    truth_ml = 0.0 if dice is None else 1.0
    return PairScore(case, organ, State.ANNOTATED, outcome, truth_ml, 1.5, dice, None, None, source)


def evaluation(pairs, **options):
    return summarise(pairs, ORGANS, split="test", nsd_tolerance_mm=None, **options)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    store = make_store(folder / "store", {case: truth() for case in ("train_0", "test_0")})
    return collect([make_run(folder / "run", store, trained=False)])[0]


def named(record, name, scores):
    return replace(record, name=name, evaluations={"test": scores}, evaluation=scores)


def test_bold_is_what_the_common_pairs_tell_apart(record):
    """By its own mean the first run would win: with a pair of its own that is easy."""
    common = [f"case_{number}" for number in range(8)]
    first = [*(pair(case, "liver", 0.5) for case in common), pair("easy", "liver", 1.0), pair("a", "pancreas", 0.9)]
    second = [*(pair(case, "liver", 0.51 + 0.001 * n) for n, case in enumerate(common)), pair("a", "pancreas", 0.8)]
    runs = {"first": evaluation(first), "second": evaluation(second)}
    assert runs["first"].organs[0].dice.mean > runs["second"].organs[0].dice.mean
    (block,) = score_blocks([named(record, *each) for each in runs.items()], ORGANS, COLOURS)
    assert (block.comparison.pairs, block.comparison.left_out) == (9, {"first": 1, "second": 0})
    bold = {organ: [line.run for line in lines if line.best] for organ, lines in block.scores}
    assert bold == {"liver": ["second"], "pancreas": []}  # of one pancreas nothing can be said
    assert block.evaluations["first"].organs[0].dice.mean == pytest.approx(0.5)


def test_runs_without_a_common_pair_are_not_compared(record):
    runs = {"first": evaluation([pair("a", "liver", 0.5)]), "second": evaluation([pair("b", "liver", 0.6)])}
    (block,) = score_blocks([named(record, *each) for each in runs.items()], ORGANS, COLOURS)
    assert (block.comparison, block.comparable) == (None, False)
    assert not any(line.best for _, lines in block.scores for line in lines)


def test_the_page_shows_sources_raters_false_alarms_and_volumes(record):
    pairs = [pair(f"case_{n}", "liver", 0.4 + 0.1 * n, source=source) for n, source in enumerate(("north", "south"))]
    pairs.append(pair("case_2", "liver", None, Outcome.FALSE_ALARM, "south"))
    agreement = [RaterPair("case_0", "liver", (0.4, 0.6), (0.7,))]
    scores = evaluation(pairs, raters=["maps/B"], rater_pairs=agreement)
    page = Page(page_of([named(record, "run", scores)]))
    assert page.open == []
    text = page.text["scores"]
    assert "1/1 (1.5 ml)" in text
    assert "2.25 1.50" in text  # predicted / true volume of all, and of the median case
    assert "liver north (1) 0.400" in text
    assert "south (2) 0.500" in text
    assert "to maps/B" in text
    assert "liver 0.400 0.600 0.500 0.700 0.700 1" in text
    assert [attrs for attrs in page.attributes("td") if attrs.get("class") == "top"] == []
