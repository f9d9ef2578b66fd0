import csv
import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from smile_fast.cli.main import build_parser, main
from smile_fast.evaluation import (
    NSD_TOLERANCE_MM,
    Outcome,
    PairScore,
    evaluate_run,
    format_table,
    read_evaluation,
    read_evaluations,
    score_case,
    summarise,
    write_evaluation,
)
from smile_fast.records import write_record
from smile_fast.supervision import State
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.label_map import VOID
from tests.runs import ORGANS, SHAPE, SPACING, truth
from tests.tolerances import FLOAT64_FORMULA

ANNOTATED = {"liver": State.ANNOTATED, "pancreas": State.ANNOTATED}


def score(label, prediction, states=ANNOTATED, spacing=SPACING, **options):
    scores = score_case("case", label, prediction, states, ORGANS, spacing, **options)
    assert [pair.organ for pair in scores] == list(ORGANS)
    return dict(zip(ORGANS, scores, strict=True))


def pair(case, organ, dice, outcome=Outcome.SCORED, nsd=None, hd95=None):
    return PairScore(case, organ, State.ANNOTATED, outcome, 1.0, 1.0, dice, nsd, hd95)


def test_perfect_prediction_scores_one():
    for pair in score(truth(), truth()).values():
        assert (pair.outcome, pair.dice, pair.nsd, pair.hd95_mm) == (Outcome.SCORED, 1.0, 1.0, 0.0)


def test_dice_and_volumes_by_hand():
    prediction = truth()
    prediction[:, 16:24] = np.where(prediction[:, 16:24] == 1, 0, prediction[:, 16:24])  # half of the liver's rows
    prediction[0, 0, :10] = 2  # ten voxels too many
    found = score(truth(), prediction)
    liver, pancreas = 4 * 16 * 16, 2 * 6 * 14
    assert found["liver"].dice == pytest.approx(2 * (liver / 2) / (liver + liver / 2))
    assert found["pancreas"].dice == pytest.approx(2 * pancreas / (2 * pancreas + 10))
    assert found["liver"].truth_ml == pytest.approx(liver * 8 / 1000)
    assert found["liver"].predicted_ml == pytest.approx(liver * 4 / 1000)


def test_dice_equals_a_plain_computation_on_random_maps():
    rng = np.random.default_rng(3)
    organs = tuple(f"organ {k}" for k in range(5))
    label = rng.integers(0, 6, SHAPE).astype(np.uint8)
    label[rng.random(SHAPE) < 0.1] = VOID
    prediction = rng.integers(0, 6, SHAPE).astype(np.uint8)
    states = dict.fromkeys(organs, State.ANNOTATED)
    scores = score_case("case", label, prediction, states, organs, SPACING, nsd_tolerance_mm=None)
    known = label != VOID
    for value, found in enumerate(scores, start=1):
        true, predicted = (label == value) & known, (prediction == value) & known
        assert found.dice == pytest.approx(
            2 * (true & predicted).sum() / (true.sum() + predicted.sum()), **FLOAT64_FORMULA
        )
        assert found.nsd is None
        assert found.hd95_mm is None


@pytest.mark.parametrize(
    ("state", "in_truth", "in_prediction", "outcome"),
    [
        (State.ANNOTATED, True, True, Outcome.SCORED),
        (State.HIDDEN, True, True, Outcome.SCORED),
        (State.ANNOTATED, True, False, Outcome.MISSED),
        (State.HIDDEN, True, False, Outcome.MISSED),
        (State.ANNOTATED, False, True, Outcome.FALSE_ALARM),
        (State.ABSENT, False, True, Outcome.FALSE_ALARM),
        (State.ABSENT, False, False, Outcome.BOTH_EMPTY),
        (State.ANNOTATED, False, False, Outcome.BOTH_EMPTY),
        (State.MISSING, False, True, Outcome.NOT_DRAWN),
        (State.MISSING, False, False, Outcome.NOT_DRAWN),
        (State.MISSING, True, True, Outcome.PARTLY_DRAWN),
        (State.MISSING, True, False, Outcome.PARTLY_DRAWN),
    ],
)
def test_outcomes(state, in_truth, in_prediction, outcome):
    label, prediction = (np.where(truth() == 1, there, truth()).astype(np.uint8) for there in (in_truth, in_prediction))
    found = score(label, prediction, {**ANNOTATED, "liver": state})["liver"]
    assert found.outcome is outcome
    if outcome is Outcome.MISSED:
        assert (found.dice, found.nsd) == (0.0, 0.0)
        assert found.hd95_mm == pytest.approx(math.hypot(6 * 4, 40 * 2, 48 * 1))  # the diagonal of the volume
    elif outcome is Outcome.SCORED:
        assert found.dice == 1.0
    else:
        assert (found.dice, found.nsd, found.hd95_mm) == (None, None, None)


def test_void_voxels_count_for_neither_side():
    label, prediction = truth(), truth()
    label[:, 8:12] = VOID
    prediction[:, 8:10] = 1  # right and wrong predictions on void
    prediction[:, 10:12] = 2
    for organ, found in score(label, prediction).items():
        assert (found.dice, found.nsd, found.hd95_mm) == (1.0, 1.0, 0.0), organ
    prediction[label != VOID] = 0
    found = score(label, prediction)
    assert found["liver"].outcome is Outcome.MISSED
    assert found["liver"].predicted_ml == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_scores_are_in_millimetres_along_every_axis(axis):
    label = np.zeros((16, 24, 24), np.uint8)
    label[4:9, 6:16, 6:16] = 1
    shift = 2
    prediction = np.roll(label, shift, axis)
    distance = shift * SPACING[axis]
    found = score(label, prediction, nsd_tolerance_mm=distance)["liver"]
    assert found.hd95_mm == pytest.approx(distance)
    assert found.nsd == pytest.approx(1.0)
    assert score(label, prediction, nsd_tolerance_mm=distance - 0.01)["liver"].nsd < 0.9


def test_surface_scores_do_not_depend_on_the_margin():
    rng = np.random.default_rng(0)
    label = (rng.random((6, 9, 9)) < 0.5).astype(np.uint8)
    prediction = (rng.random((6, 9, 9)) < 0.5).astype(np.uint8)
    margin = ((3, 5), (1, 4), (7, 0))
    small = score(label, prediction, nsd_tolerance_mm=0.5)["liver"]
    large = score(np.pad(label, margin), np.pad(prediction, margin), nsd_tolerance_mm=0.5)["liver"]
    assert (small.nsd, small.hd95_mm, small.dice) == (large.nsd, large.hd95_mm, large.dice)
    assert 0 < small.nsd < 1


def test_a_prediction_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"case: the prediction has shape \(6, 40, 47\)"):
        score(truth(), truth()[..., 1:])


def test_summary_averages_organs_not_pairs():
    pairs = [
        pair("a", "liver", 0.9, nsd=0.5, hd95=4.0),
        pair("b", "liver", 0.7, nsd=0.7, hd95=8.0),
        pair("c", "liver", 0.0, Outcome.MISSED, nsd=0.0),
        pair("a", "pancreas", 0.2, nsd=0.1, hd95=20.0),
        pair("b", "pancreas", None, Outcome.NOT_DRAWN),
        pair("c", "pancreas", None, Outcome.BOTH_EMPTY),
    ]
    found = summarise(pairs, ORGANS, split="test", nsd_tolerance_mm=3.0)
    liver, pancreas = found.organs
    assert (liver.dice.mean, liver.dice.pairs) == (pytest.approx(1.6 / 3), 3)
    assert liver.dice.std == pytest.approx(np.std([0.9, 0.7, 0.0], ddof=1))
    assert (liver.hd95_mm.mean, liver.hd95_mm.pairs) == (pytest.approx(6.0), 2)  # the missed organ is left out
    assert (pancreas.dice.mean, pancreas.dice.std) == (0.2, 0.0)
    assert found.dice == pytest.approx((1.6 / 3 + 0.2) / 2)
    assert found.hd95_mm == pytest.approx((6.0 + 20.0) / 2)
    assert liver.outcomes["missed"] == 1
    assert liver.outcomes["scored"] == 2
    assert pancreas.outcomes["not drawn"] == 1
    assert pancreas.outcomes["both empty"] == 1
    assert [(worst.case, worst.organ) for worst in found.worst] == [
        ("c", "liver"),
        ("a", "pancreas"),
        ("b", "liver"),
        ("a", "liver"),
    ]


def test_summary_of_nothing_scored_has_no_mean():
    found = summarise([pair("a", "liver", None, Outcome.NOT_DRAWN)], ORGANS, split="test", nsd_tolerance_mm=None)
    assert (found.dice, found.organs[0].dice.mean, found.worst) == (None, None, ())
    assert "mean of organs     –" in format_table(found)


@pytest.mark.parametrize(("missed", "false_alarms"), [(0, 0), (1, 0), (0, 2)])
def test_table_says_what_the_hd95_of_a_missed_organ_is(missed, false_alarms):
    pairs = [pair("a", "liver", 0.9, nsd=0.5, hd95=4.0)]
    pairs += [pair(f"b{n}", "liver", 0.0, Outcome.MISSED, nsd=0.0, hd95=100.0) for n in range(missed)]
    pairs += [pair(f"c{n}", "pancreas", None, Outcome.FALSE_ALARM) for n in range(false_alarms)]
    pairs += [pair("d", "pancreas", None, Outcome.NOT_DRAWN)]
    table = format_table(summarise(pairs, ORGANS, split="test", nsd_tolerance_mm=3.0))
    assert ("the diagonal of the volume as its HD95" in table) == bool(missed)
    assert ("2/2 (1.0 ml)" in table) == bool(false_alarms)
    assert "diagonal" not in format_table(summarise(pairs, ORGANS, split="test", nsd_tolerance_mm=None))


def test_five_worst_pairs_ties_in_order_of_the_names():
    pairs = [pair(name, "liver", 0.5) for name in "hgfedcba"] + [pair("z", "liver", 0.1)]
    found = summarise(pairs, ("liver",), split="test", nsd_tolerance_mm=None)
    assert [worst.case for worst in found.worst] == ["z", "a", "b", "c", "d"]


@pytest.fixture
def perfect(monkeypatch):
    """The network predicts the truth, except for one column of the liver."""

    def queue_labels(model, image, box=None, spacing=None):
        assert np.asarray(image[:]).dtype == np.int16
        prediction = truth()
        prediction[:, :, 6] = 0
        return lambda: prediction

    monkeypatch.setattr("smile_fast.training.inference.queue_labels", queue_labels)


def test_a_run_is_scored_over_its_drawn_pairs(run, perfect, capsys):
    found = evaluate_run(run)
    assert found.cases == ("test_0", "test_1", "test_2")
    liver, pancreas = found.organs
    assert liver.dice.mean == pytest.approx(2 * 15 / 31)
    assert liver.outcomes == dict.fromkeys(Outcome, 0) | {"scored": 2, "false alarm": 1}
    assert pancreas.outcomes == dict.fromkeys(Outcome, 0) | {"scored": 1, "not drawn": 1, "false alarm": 1}
    assert (pancreas.dice.mean, found.nsd_tolerance_mm) == (1.0, 3.0)
    assert "evaluate test: 3/3" in capsys.readouterr().err


def test_the_real_network_is_scored(run):
    found = evaluate_run(run, split="train", nsd_tolerance_mm=None)
    assert found.cases == ("train_0",)
    assert found.organs[0].dice.mean is not None
    assert 0 < found.organs[0].dice.mean < 1


def test_files_hold_what_was_measured(run, perfect, tmp_path):
    found = evaluate_run(run)
    assert read_evaluation(tmp_path) is None
    write_evaluation(found, tmp_path)
    assert read_evaluation(tmp_path) == found
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert rows[0]["case"] == "test_0"
    assert rows[0]["state"] == "annotated"
    assert float(rows[0]["dice"]) == found.pairs[0].dice
    assert rows[3] | {"predicted_ml": ""} == {
        **dict.fromkeys(rows[3], ""),
        **{"case": "test_1", "organ": "pancreas", "state": "missing", "outcome": "not drawn", "truth_ml": "0.0"},
    }
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["split"] == "test"
    assert math.isfinite(content["dice"])


def test_every_split_has_its_own_files(run, tmp_path):
    test, train = evaluate_run(run), evaluate_run(run, split="train")
    assert write_evaluation(train, tmp_path).name == "evaluation-train.json"
    assert read_evaluation(tmp_path) is None
    assert write_evaluation(test, tmp_path).name == "evaluation.json"
    write_evaluation(replace(train, predictions="elsewhere"), tmp_path)
    assert read_evaluations(tmp_path) == {"test": test, "train": train}
    assert list(read_evaluations(tmp_path)) == ["test", "train"]
    stems = ("evaluation", "evaluation-of-predictions-train", "evaluation-train")
    names = {f"{stem}{suffix}" for stem in stems for suffix in (".json", ".csv")}
    assert {file.name for file in tmp_path.glob("evaluation*")} == names


def test_a_file_under_the_name_of_another_split_is_refused(run, tmp_path):
    write_evaluation(evaluate_run(run, split="train"), tmp_path).rename(tmp_path / "evaluation.json")
    with pytest.raises(InputError, match=r"evaluation\.json: holds the scores of split train; run .* --split test"):
        read_evaluations(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"organs": []}', '{"organs": [{"organ": "liver"}]}'])
def test_a_damaged_evaluation_is_refused(tmp_path, damage):
    (tmp_path / "evaluation.json").write_text(damage)
    with pytest.raises(InputError, match=r"evaluation\.json: damaged \(.*; run smile-fast evaluate again"):
        read_evaluation(tmp_path)


VALUES = (None, True, -1, 2.5, "text", [], {}, [None], {"a": None})


def changes(value, path=()):
    """Where something stands in a JSON value: the keys and positions that lead there."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from changes(child, (*path, key))


def changed(record, path, value):
    """A copy of a record with another value in a place."""
    if not path:
        return value
    copy = list(record) if isinstance(record, list) else dict(record)
    copy[path[0]] = changed(record[path[0]], path[1:], value)
    return copy


def test_an_evaluation_whose_means_run_over_other_pairs_is_refused(run, tmp_path):
    path = write_evaluation(evaluate_run(run), tmp_path)
    record = json.loads(path.read_text())
    record.pop("sha256")
    write_record(path, record | {"schema": 2})
    with pytest.raises(InputError, match=r"evaluation\.json: is of schema 2.*over false alarms, too: run "):
        read_evaluation(tmp_path)


def test_an_evaluation_of_another_structure_is_refused_or_shown(run, tmp_path):
    """Every value of it replaced by others, under a seal that fits: one sentence, or a table."""
    write_evaluation(evaluate_run(run, nsd_tolerance_mm=None), tmp_path)
    path = tmp_path / "evaluation.json"
    record = json.loads(path.read_text())
    record.pop("sha256")
    record["pairs"] = record["pairs"][:2]
    refused, shown = 0, 0
    for place in changes(record):
        for value in VALUES:
            spoiled = changed(record, place, value)
            if not isinstance(spoiled, dict) or not spoiled:
                continue
            write_record(path, spoiled)
            try:
                found = read_evaluation(tmp_path)
            except InputError:
                refused += 1
            else:
                format_table(found)
                shown += 1
    assert refused > 500
    assert shown > 20


def test_an_empty_split_and_a_bad_tolerance_are_refused(run):
    with pytest.raises(InputError, match="no validation case"):
        evaluate_run(run, split="validation")
    for tolerance in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="--nsd-tolerance: "):
            evaluate_run(run, nsd_tolerance_mm=tolerance)


def write_prediction(folder, case, slices):
    """A label map on the grid of the store's cases, but in the order right to left, posterior to anterior (RAS)."""
    data = slices.transpose(2, 1, 0)[::-1, ::-1]
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    affine[:2, 3] = [-1.0 * (SHAPE[2] - 1), -2.0 * (SHAPE[1] - 1)]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), folder / f"{case}.nii.gz")


def test_label_maps_of_a_folder_are_scored_whatever_their_orientation(run, tmp_path):
    for case in run.cases("test"):
        write_prediction(tmp_path, case, truth())
    found = evaluate_run(run, predictions=tmp_path)
    assert found.predictions == str(tmp_path)
    assert [pair.dice for pair in found.pairs] == [1.0, 1.0, 1.0, None, None, None]


def test_label_maps_of_a_folder_are_found_however_they_are_spelled(run, tmp_path):
    cases = run.cases("test")
    for case, name in zip(cases, ("{} .NII.GZ", " {}.Nii", "{}.nii"), strict=False):
        write_prediction(tmp_path, case, truth())
        (tmp_path / f"{case}.nii.gz").rename(tmp_path / name.format(case))
    assert [pair.dice for pair in evaluate_run(run, predictions=tmp_path).pairs] == [1.0, 1.0, 1.0, None, None, None]


def two_of_one_name(folder):
    for name in ("test_0.nii.gz", "test_0 .nii.gz"):
        (folder / name).touch()


def dicom(folder):
    (folder / "IM0001").write_bytes(b"\0" * 128 + b"DICM")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: None, "test_0.nii.gz"),
        (two_of_one_name, "'test_0 .nii.gz' and 'test_0.nii.gz' would get one name"),
        (dicom, "is a folder of DICOM files, not NIfTI; convert it with: dcm2niix -z y -o OUT "),
        (lambda folder: write_prediction(folder, "test_0", truth()[1:]), "another grid"),
        (lambda folder: write_prediction(folder, "test_0", np.where(truth() > 1, 3, 0).astype(np.uint8)), "label 3"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(run, tmp_path, change, message):
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        evaluate_run(run, predictions=tmp_path)


def test_a_folder_of_label_maps_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(
        InputError, match=r"nowhere: cannot be read \(no such file.*; give the folder of the label maps"
    ):
        evaluate_run(run, predictions=tmp_path / "nowhere")


def test_command_prints_the_table_and_writes_the_files(run, perfect, capsys):
    assert main(["evaluate", str(run.path), "--no-surface", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "liver" in out
    assert "NSD" not in out
    assert "1/1 (" in out  # a false alarm
    assert main(["evaluate", str(run.path), "--nsd-tolerance", "2", "--device", "cpu"]) == 0
    assert "NSD 2 mm" in capsys.readouterr().out
    assert build_parser().parse_args(["evaluate", "RUN"]).nsd_tolerance == NSD_TOLERANCE_MM
    assert read_evaluation(run.path).nsd_tolerance_mm == 2.0
    assert main(["evaluate", str(run.path), "--split", "train", "--device", "cpu", "--workers", "auto"]) == 0
    file = run.path / "evaluation-train.json"
    assert f"wrote the scores of split train to {file} and evaluation-train.csv\n" in capsys.readouterr().out
    assert [e.nsd_tolerance_mm for e in read_evaluations(run.path).values()] == [2.0, 3.0]


def test_command_refuses_what_is_no_run_or_was_not_trained(run, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "none")]) == 2
    assert ": not a run folder" in capsys.readouterr().err
    Run.open(run.path).model_path.unlink()
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 2
    assert "error: " in capsys.readouterr().err
    assert not (run.path / "evaluation.json").exists()
