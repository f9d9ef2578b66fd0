"""Rounds beside what annotated cases say of an organ, and what a human should look at first."""

import csv
from contextlib import ExitStack

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.report.collect import collect, open_runs
from smile_fast.report.review import growth_sentences, review_first
from smile_fast.supervision import State
from smile_fast.training.curriculum.findings import PairRow, RoundRow
from smile_fast.training.curriculum.ranges import OrganRange
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT
from tests.runs import SHAPE, add_round, make_run, make_store, truth

LIVER_ML = 4 * 16 * 16 * 8 / 1000  # voxels of 8 mm3
RANGE = OrganRange(cases=4, empty=0, low_ml=60.0, high_ml=110.0)


def pair(case="a", ml=80.0, **changes):
    counts = {"candidates": round(1000 * ml), "selected": 100, "kept": 100}
    unchecked = {"checked": 0, "correct": 0, "hidden": 0, "second_piece": 0.0, "before": None}
    return PairRow(number=1, case=case, organ="liver", voxel_ml=0.001, **{**counts, **unchecked, **changes})


def row(number, *volumes_ml):
    counts = {"candidates": round(sum(volumes_ml)), "selected": 0, "kept": 0, "checked": 0, "correct": 0, "hidden": 0}
    return RoundRow(number, 0.5, "liver", len(volumes_ml), volumes_ml=volumes_ml, background=0, **counts)


@pytest.fixture
def run(tmp_path):
    """The liver is annotated in one case and hidden in another, in which two rounds find more and more of it."""
    small = np.where(truth() == 1, 0, truth()).astype(np.uint8)
    small[1, 8:12, 6:10] = 1
    labels = {"train_0": truth(), "train_1": truth(), "train_2": small}
    store = make_store(tmp_path / "store", labels, {("train_1", "liver"): State.HIDDEN})
    run = make_run(tmp_path / "run", store, method="smiler", trained=False)
    first, second = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    first[1:3, 8:24, 6:22] = PSEUDO_BIT | 1  # half of the liver, nothing else
    second[:, 8:24, 6:22] = PSEUDO_BIT | 1  # all of it, and half as much again
    second[0, 30, :5] = PSEUDO_BIT | 1
    second[0, :2] = PSEUDO_BACKGROUND
    add_round(run, 1, {"train_1": first}, gamma=0.33)
    add_round(run, 2, {"train_1": second}, gamma=0.66)
    return run


def collected(run):
    with ExitStack() as held:
        (record,) = collect(open_runs([run.path], None, held))
    return record


def test_volumes_stand_beside_those_of_annotated_cases(run):
    record = collected(run)
    annotated = record.ranges["liver"]
    assert (annotated.cases, annotated.empty) == (2, 0)
    assert annotated.low_ml == pytest.approx(16 * 8 / 1000)
    assert annotated.high_ml == pytest.approx(LIVER_ML)
    first, second = record.rounds
    assert first.volumes_ml == pytest.approx([LIVER_ML])  # candidates are twice what was kept
    assert (first.precision, first.recall, first.background) == (1.0, 0.5, 0)
    assert second.precision == 1024 / 1541
    assert (second.recall, second.background) == (1.0, 2 * SHAPE[2])
    before, now = record.pairs
    assert (before.before, now.before) == (None, before.candidates)
    assert now.second_piece == pytest.approx(5 / 1536)


def test_an_organ_that_grows_beyond_annotated_cases_is_said_loudly(run, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["report", str(run.path), "-o", str(target)]) == 0
    page = target.read_text()
    assert page.count("Round 2: liver: its candidates grew from ") == 2  # at the top and beside the rounds
    assert page.count("ml a case, annotated cases at most ") == 2
    assert "The line ends above the band: the network finds more liver than annotated patients have." in page
    assert "<th>Background</th>" in page
    with (tmp_path / "page.review.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["round"], line["case"], line["organ"]) for line in lines] == [("2", "train_1", "liver")]
    assert "is more than expected" in lines[0]["why"]
    assert main(["report", str(run.path), "-o", str(target), "--review", str(tmp_path / "other.csv")]) == 0
    assert (tmp_path / "other.csv").read_bytes() == (tmp_path / "page.review.csv").read_bytes()


def test_the_table_never_replaces_what_it_is_made_of(run, tmp_path, capsys):
    file = run.rounds_path / "1" / "round.json"
    before = file.read_bytes()
    assert main(["report", str(run.path), "-o", str(tmp_path / "page.html"), "--review", str(file)]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_relabel_names_what_to_review_without_a_look_at_hidden_truth(tmp_path, capsys, monkeypatch):
    labels = {f"train_{n}": truth() for n in range(8)}
    states = {(f"train_{n}", "liver"): State.MISSING for n in range(1, 8)}
    run = make_run(tmp_path / "run", make_store(tmp_path / "store", labels, states), method="smiler")
    assert main(["relabel", str(run.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    named = out[out.index("review these first, of 7 (case, organ) pairs") :].splitlines()[1:]
    assert len(named) == 5
    assert all("liver: " in line and "is more than expected" in line for line in named)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (pair(ml=220.0), "220 ml is more than expected: annotated cases have 60.0 to 110 ml"),
        (pair(ml=20.0), "20.0 ml is less than expected"),
        (pair(ml=0.0), "nothing found; annotated cases have"),
        (pair(ml=105.0, before=70_000), "1.5 times as much as the 70.0 ml of the round before"),
        (pair(kept=50), "50% of the selected voxels went to another organ"),
        (pair(second_piece=0.4), "the second has 40% of the largest's voxels"),
        (pair(confidence=0.61), "low mean confidence: the network gives its pseudo-labels a probability of 0.61"),
    ],
    ids=["more", "less", "none", "grown", "dropped", "pieces", "unsure"],
)
def test_every_reason_has_a_sentence(found, why):
    (finding,) = review_first([found], {"liver": RANGE})
    assert finding.why.startswith(why) or why in finding.why
    assert len(finding.reasons) == 1


def test_what_is_as_expected_is_not_named():
    assert (
        review_first([pair(confidence=0.8), pair(before=79_000), pair(before=20_000), pair(ml=130.0)], {"liver": RANGE})
        == []
    )
    lacking = OrganRange(cases=4, empty=1, low_ml=60.0, high_ml=110.0)
    assert review_first([pair(ml=0.0)], {"liver": lacking}) == []  # one annotated patient has none, either
    unknown = OrganRange(0, 0)
    assert review_first([pair(ml=500.0), pair(ml=0.0)], {"liver": unknown}) == []


def test_the_farthest_stands_first():
    pairs = [pair("near", 150.0), pair("far", 500.0), pair("both", 500.0, second_piece=0.5), pair("none", 0.0)]
    order = [finding.pair.case for finding in review_first(pairs, {"liver": RANGE})]
    assert order == ["both", "far", "none", "near"]


def test_growth_towards_the_annotated_size_is_no_alarm():
    assert growth_sentences([row(1, 20.0, 20.0), row(2, 50.0, 55.0)], {"liver": RANGE}, 1.5) == []
    assert growth_sentences([row(1, 20.0, 20.0), row(2, 90.0, 95.0)], {"liver": RANGE}, 1.5) == []
    (grown,) = growth_sentences([row(1, 65.0, 65.0), row(2, 105.0, 105.0)], {"liver": RANGE}, 1.5)
    assert grown == "Round 2: liver: its candidates grew from 65 to 105 ml a case."
    (large,) = growth_sentences([row(1, 100.0, 300.0)], {"liver": RANGE}, 1.5)
    assert large == "Round 1: liver: its candidates are 200 ml a case, annotated cases at most 110 ml."
