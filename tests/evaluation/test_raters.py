"""Several raters: worked out by hand, and every folder that cannot be used."""

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation import evaluate_run, evaluate_share, finish_evaluation, read_evaluation
from smile_fast.evaluation.evaluate import Scoring
from smile_fast.evaluation.raters import OWN_LABELS, score_raters, summarise_raters
from smile_fast.evaluation.tables import format_table
from smile_fast.supervision import State
from smile_runtime.errors import InputError
from smile_runtime.label_map import VOID
from smile_runtime.sharding import Shard
from tests.evaluation.test_evaluation import write_prediction
from tests.runs import truth

STATES = {"liver": State.ANNOTATED, "spleen": State.ANNOTATED}


def row(*values):
    return np.array([[values]], np.uint8)  # [1, 1, n]


def test_dice_to_each_rater_and_between_them_by_hand():
    labels, other, third = row(1, 1, 0, 0, 2, 0), row(0, 1, 1, 0, 0, 0), row(1, 1, 1, 0, 2, 0)
    pairs = score_raters("a", labels, row(1, 1, 1, 1, 0, 0), [lambda: other, lambda: third], STATES, tuple(STATES))
    (liver,) = pairs  # the second rater has no spleen
    assert liver.prediction == pytest.approx((4 / 6, 4 / 6, 6 / 7))
    assert liver.between == pytest.approx((2 / 4, 4 / 5, 4 / 5))
    found = summarise_raters(pairs, tuple(STATES), ("x/B", "x/C"), {"liver": 1, "spleen": 1})
    assert found.names == (OWN_LABELS, "x/B", "x/C")
    of_liver, of_spleen = found.organs
    assert of_liver.mean == pytest.approx((4 / 6 + 4 / 6 + 6 / 7) / 3)
    assert of_liver.between.mean == pytest.approx(2.1 / 3)
    assert of_liver.lowest == pytest.approx(0.5)
    assert (of_spleen.pairs, of_spleen.left_out, of_spleen.mean) == (0, 1, None)


def test_what_one_rater_calls_void_counts_for_nobody_and_a_missing_organ_has_no_rater():
    labels, other = row(1, 1, 1, VOID), row(1, VOID, 1, 1)
    (liver,) = score_raters("a", labels, row(1, 0, 0, 1), [lambda: other], STATES, tuple(STATES))
    assert (liver.prediction, liver.between) == (pytest.approx((2 / 3, 2 / 3)), (1.0,))
    missing = {**STATES, "liver": State.MISSING}
    assert score_raters("a", labels, labels, [lambda: other], missing, tuple(STATES)) == []


@pytest.fixture
def raters(run, tmp_path):
    """One rater agrees with the labels, the other draws the liver a column too far to one side."""
    folders = [tmp_path / "B", tmp_path / "C"]
    for folder, labels in zip(folders, (truth(), np.roll(truth(), 1, 2)), strict=True):
        folder.mkdir()
        for case in run.cases("test"):
            write_prediction(folder, case, labels)
    return folders


def test_the_command_compares_with_raters_and_keeps_what_it_found(run, raters, capsys):
    assert main(["evaluate", str(run.path), "--no-surface", "--device", "cpu", "--raters", *map(str, raters)]) == 0
    out = capsys.readouterr().out
    assert "between raters" in out
    found = read_evaluation(run.path).raters
    assert found.names == (OWN_LABELS, *map(str, raters))
    liver = found.organs[0]
    assert (liver.pairs, liver.left_out) == (2, 0)  # nobody drew it in test_2
    assert liver.lowest == pytest.approx(15 / 16)
    assert liver.between.mean == pytest.approx((1 + 15 / 16 + 15 / 16) / 3)
    assert f"{liver.mean:.3f}" in format_table(read_evaluation(run.path))


def test_shares_make_the_same_scores_and_another_drawing_is_another_evaluation(run, raters):
    asked = Scoring(nsd_tolerance_mm=None, raters=tuple(raters))
    assert sum(evaluate_share(run, asked, Shard(number, 2)) for number in (1, 2)) == 3
    assert finish_evaluation(run, asked) == evaluate_run(run, nsd_tolerance_mm=None, raters=tuple(raters))
    write_prediction(raters[0], "test_0", np.roll(truth(), 2, 2))
    with pytest.raises(InputError, match="3 of 3 test cases are not scored"):
        finish_evaluation(run, asked)


def lacks_a_case(folder):
    (folder / "test_1.nii.gz").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacks_a_case, r"test_1\.nii\.gz: there is no such file, the rater lacks case test_1; add"),
        (lambda folder: write_prediction(folder, "test_0", truth()[1:]), "another grid than case test_0 .*; draw on"),
        (
            lambda folder: write_prediction(folder, "test_0", np.where(truth() > 1, 9, 0).astype(np.uint8)),
            "holds label 9, the run knows 1 to 2; give 0, these, and 255 for void",
        ),
        (lambda folder: (folder / "test_0.nii.gz").write_bytes(b"nothing"), r"test_0\.nii\.gz: "),
    ],
)
def test_label_maps_of_raters_that_do_not_fit_are_one_sentence(run, raters, change, message):
    change(raters[1])
    with pytest.raises(InputError, match=message):
        evaluate_run(run, nsd_tolerance_mm=None, raters=tuple(raters))


def test_folders_of_raters_that_are_none_are_one_sentence(run, raters):
    with pytest.raises(InputError, match="B: given twice to --raters; name every folder once"):
        evaluate_run(run, raters=(raters[0], raters[0]))
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        evaluate_run(run, raters=(raters[0].with_name("nowhere"),))
