"""Runs beside each other: only what all have scored, and a winner only beyond chance."""

import json

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation import Outcome, PairScore, summarise, write_evaluation
from smile_fast.evaluation.compared import MEAN, Key, case_means, compare_evaluations, format_comparison
from smile_fast.supervision import State

ORGANS = ("liver", "spleen")


def pair(case, organ, dice, outcome=Outcome.SCORED, truth=1.0):
    return PairScore(case, organ, State.ANNOTATED, outcome, truth, 1.0, dice, None, None)


def evaluation(pairs, split="test"):
    return summarise(pairs, ORGANS, split=split, nsd_tolerance_mm=None)


def liver(values, **options):
    return [pair(f"case_{number}", "liver", value, **options) for number, value in enumerate(values)]


def test_runs_are_compared_on_the_pairs_that_all_have():
    """The first run looks better on its own pairs: one is easy and its own."""
    first = evaluation([*liver([0.5, 0.6, 0.4] * 2), pair("easy", "liver", 1.0), pair("x", "spleen", 0.3)])
    second = evaluation([*liver([0.55, 0.66, 0.47] * 2), pair("hard", "liver", 0.0), pair("hard", "spleen", 0.0)])
    assert first.dice > second.dice
    found = compare_evaluations({"first": first, "second": second})
    assert (found.pairs, found.empty, found.left_out) == (6, 0, {"first": 2, "second": 2})
    of_liver = found.differences[0]
    assert of_liver.difference == pytest.approx(-0.06)
    assert (of_liver.winner, found.winner("liver"), found.winner(MEAN)) == ("second",) * 3
    assert found.differences[1].difference is None  # no spleen is common
    assert "6 common pairs whose truth holds the organ" in format_comparison(found)


def test_false_alarms_are_counted_and_not_compared():
    clean = evaluation([*liver([0.5, 0.7]), pair("empty", "liver", None, Outcome.BOTH_EMPTY, 0.0)])
    alarm = evaluation([*liver([0.5, 0.7]), pair("empty", "liver", None, Outcome.FALSE_ALARM, 0.0)])
    found = compare_evaluations({"clean": clean, "alarm": alarm})
    assert (found.pairs, found.empty) == (2, 1)
    assert found.differences[0].difference == 0
    assert [each.organs[0].false_alarms.pairs for each in found.runs.values()] == [0, 1]


def test_a_winner_beats_every_other_run_beyond_chance():
    rng = np.random.default_rng(1)
    low = rng.uniform(0.3, 0.5, 12)
    runs = {"low": low, "high": low + 0.2 + rng.normal(0, 0.02, 12), "like high": low + 0.2 + rng.normal(0, 0.02, 12)}
    found = compare_evaluations({name: evaluation(liver(values)) for name, values in runs.items()})
    winners = {(each.first, each.second): each.winner for each in found.differences if each.organ == "liver"}
    assert winners["low", "high"] == "high"
    assert winners["high", "like high"] is None
    assert found.winner("liver") is None  # two are not told apart
    two = compare_evaluations({name: evaluation(liver(runs[name])) for name in ("low", "high")})
    assert (two.winner("liver"), two.winner(MEAN)) == ("high", "high")


def test_of_few_pairs_no_run_is_better():
    """Five that all rise are no proof, whatever their bootstrap interval."""
    for count, winner in ((5, None), (6, "high")):
        runs = {"low": evaluation(liver([0.4] * count)), "high": evaluation(liver([0.6] * count))}
        found = compare_evaluations(runs)
        assert found.differences[0].low == pytest.approx(-0.2)
        assert found.winner("liver") == winner
        lines = [line for line in format_comparison(found).splitlines() if line.startswith("liver")]
        assert lines[-1].endswith(winner or "too few")


def test_another_truth_is_no_common_pair():
    first, second = (evaluation([*liver([0.5, 0.6]), pair("new", "liver", 0.9, truth=ml)]) for ml in (1.0, 1.5))
    found = compare_evaluations({"first": first, "second": second})
    assert (found.pairs, found.unlike) == (2, (Key("new", "liver"),))


def test_the_mean_of_what_a_case_has_is_the_mean_of_the_organs_means():
    dice = {Key("a", "liver"): 0.9, Key("b", "liver"): 0.5, Key("c", "liver"): 0.1, Key("a", "spleen"): 0.4}
    values = case_means(dice)
    assert values == pytest.approx([(0.9 / 3 + 0.4) * 3 / 2, 0.5 / 3 * 3 / 2, 0.1 / 3 * 3 / 2])
    assert np.mean(values) == pytest.approx((0.5 + 0.4) / 2)


@pytest.fixture
def runs(tmp_path):
    """Two folders with scores and nothing else: no store or network is needed."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path, values in zip(paths, ([0.8, 0.9, 0.7] * 2, [0.5, 0.55, 0.45] * 2), strict=True):
        path.mkdir()
        write_evaluation(evaluation(liver(values)), path)
    return [str(path) for path in paths]


def test_the_command_prints_the_table_and_writes_json(runs, tmp_path, capsys):
    out = tmp_path / "comparison.json"
    assert main(["compare", *runs, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "one - two" in printed
    assert f"wrote the comparison to {out}" in printed
    found = json.loads(out.read_text())
    assert (found["pairs"], found["left_out"]) == (6, {"one": 0, "two": 0})
    row = found["differences"][0]
    assert (row["organ"], row["winner"], row["units"]) == ("liver", "one", 6)
    assert row["difference"] == pytest.approx(0.3)
    assert f"{row['difference']:+.3f}" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[:1], "one: is one run alone; give two or more"),
        (lambda runs: [runs[0], runs[0]], "one: given twice; name every run once"),
        (lambda runs: [runs[0], "nowhere"], "nowhere: there is no such folder; give the folder of an evaluated run"),
        (lambda runs: [*runs, "--split", "train"], "one: has no evaluation-train.json; run smile-fast evaluate with"),
        (lambda runs: [*runs, "--json", "table.txt"], "table.txt: not a name for a comparison; give one"),
        (lambda runs: [*runs, "--json", f"{runs[0]}/evaluation.json"], "would overwrite the input"),
        (lambda runs: [*runs, "--of-predictions"], "one: has no evaluation-of-predictions.json; run"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(runs, capsys, change, message):
    assert main(["compare", *change(runs)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_runs_without_a_common_pair_are_refused(runs, tmp_path, capsys):
    write_evaluation(evaluation([pair("other", "liver", 0.5)]), tmp_path / "two")
    assert main(["compare", *runs]) == 2
    assert "one: has no pair whose truth holds the organ in common with the others; compare" in capsys.readouterr().err
