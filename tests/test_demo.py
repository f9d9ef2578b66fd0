"""The demonstration on phantoms: what it writes, what it claims, and what it leaves alone."""

import copy
import io
import json
import sys
from pathlib import Path

import nibabel as nib
import pytest

from smile_fast.demo import __main__ as module
from smile_fast.demo.phantoms import FULL, QUICK, RUNS, TITLES, broken_promises, run_phantom_demo
from smile_fast.demo.timed_commands import CommandFailed, Commands, fresh_folder
from smile_fast.training.config import TrainConfig
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from tests.cohorts import tree
from tests.tolerances import SUMMARY_DICE

ORGANS = ("liver", "pancreas", "stomach")
GOOD = {
    "mean_dice": {"full": 0.90, "baseline": 0.40, "smile": 0.80, "smiler": 0.88, "hu_threshold": 0.20},
    "per_organ": {
        "full": {"liver": 0.95, "pancreas": 0.85, "stomach": 0.90},
        "hu_threshold": {"liver": 0.30, "pancreas": 0.10, "stomach": 0.20},
    },
}


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
    return module.main()


def test_names_are_printed_on_any_terminal(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(monkeypatch, "--out", tmp_path, "--data", tmp_path / "nowhere") == 2
    print("\u0142")
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\u0142\n"


def test_good_figures_break_no_promise():
    assert broken_promises(GOOD) == []


SMILE, WITHIN = "SMILE is at least 20 points over the baseline", "SMILEr is within 3 points of full annotation"


@pytest.mark.parametrize(
    ("run", "organ", "value", "broken"),
    [
        ("full", None, 0.849, ["full annotation reaches a mean Dice of 0.85"]),
        ("full", "pancreas", 0.699, ["no organ is under 0.70 with full annotation"]),
        ("baseline", None, 0.71, ["the baseline loses at least 20 points", SMILE]),
        ("baseline", None, 0.61, [SMILE]),
        ("smiler", None, 0.79, ["SMILEr is no worse than SMILE", WITHIN]),
        ("smiler", None, 0.86, [WITHIN]),
        ("hu_threshold", "liver", 0.5, ["no HU window reaches 0.5 on any organ"]),
    ],
)
def test_each_promise_can_be_broken(run, organ, value, broken):
    summary = copy.deepcopy(GOOD)
    if organ is None:
        summary["mean_dice"][run] = value
    else:
        summary["per_organ"][run][organ] = value
    assert broken_promises(summary) == broken


def test_only_the_full_recipe_promises():
    assert FULL.promises
    assert not QUICK.promises
    assert set(RUNS) | {"hu_threshold"} == set(TITLES)
    assert {method for method, _ in RUNS.values()} == {"baseline", "smile", "smiler"}
    assert TrainConfig().rounds == 2  # the curriculum of the paper is not a setting of the demo
    assert "--gamma-max" not in FULL.train


def test_a_folder_of_an_earlier_demo_is_replaced(tmp_path):
    for _ in range(2):
        out = fresh_folder(tmp_path / "deep" / "demo")
        assert [path.name for path in sorted(out.iterdir())] == [".smile-fast-demo", "logs"]
        (out / "old.txt").touch()
    (tmp_path / "empty").mkdir()
    assert fresh_folder(tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, monkeypatch, capsys, kind):
    """Whoever says --out ~ must not lose a home."""
    out = tmp_path / "mine"
    if kind == "folder":
        (out / "deep").mkdir(parents=True)
        (out / "deep" / "thesis.tex").write_text("ten years")
    else:
        out.write_text("ten years")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="exists and was not written by the demo"):
        fresh_folder(out)
    assert main(monkeypatch, "--out", out, "--quick") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {out}: exists and was not written by the demo")
    assert err.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert main(monkeypatch, "--out", tmp_path / "file" / "demo", "--quick") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_no_real_data_is_one_sentence(tmp_path, monkeypatch, capsys):
    assert main(monkeypatch, "--out", tmp_path / "demo", "--data", tmp_path / "nowhere") == 2
    assert "give the folder of the real CT volumes" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
    (tmp_path / "data").mkdir()
    assert main(monkeypatch, "--out", tmp_path / "demo", "--data", tmp_path / "data") == 2
    assert "labels.json: there is no such file; put it there" in capsys.readouterr().err


def test_a_command_that_fails_is_named_with_its_last_line(tmp_path):
    commands = Commands(fresh_folder(tmp_path / "demo"))
    with pytest.raises(CommandFailed, match=r"the step 'look around' ended with status 2: error: nowhere"):
        commands.smile_fast("look around", "evaluate", "nowhere")
    assert "look around" in commands.seconds
    assert "error: nowhere" in (tmp_path / "demo" / "logs" / "look-around.log").read_text()
    with pytest.raises(CommandFailed, match="status 2"):
        commands.in_parallel({"one": ("--version",), "two": ("evaluate", "nowhere")})


def test_what_a_command_shows_is_logged_too(tmp_path, capfd):
    commands = Commands(fresh_folder(tmp_path / "demo"))
    commands.smile_fast("version", "--version", show=True)
    shown = capfd.readouterr().out
    assert shown.startswith("smile-fast ")
    assert (tmp_path / "demo" / "logs" / "version.log").read_text() == shown
    commands.smile_predict("predict", "--version")
    assert (tmp_path / "demo" / "logs" / "predict.log").read_text().startswith("smile-predict ")


@pytest.mark.slow
@pytest.mark.usefixtures("fair_share")
def test_the_quick_demo(tmp_path, capfd):
    """Everything but its figures: a tiny cohort and one epoch."""
    out = tmp_path / "demo"
    assert run_phantom_demo(out, quick=True) == 0
    printed = capfd.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary) == ["mean_dice", "per_organ", "seconds"]
    names = ["full", "baseline", "smile", "smiler", "hu_threshold"]
    assert list(summary["mean_dice"]) == list(summary["per_organ"]) == names
    for name in names:
        assert tuple(summary["per_organ"][name]) == ORGANS
        assert all(0 <= dice <= 1 for dice in summary["per_organ"][name].values())
        mean = sum(summary["per_organ"][name].values()) / 3
        assert summary["mean_dice"][name] == pytest.approx(mean, **SUMMARY_DICE)
        assert TITLES[name] in printed
    assert 0 < summary["mean_dice"]["hu_threshold"] < 1
    steps = {"phantom", "simulate-missing", "audit", "prepare", "export", "predict", "report", "total"}
    assert steps | {f"train {run}" for run in RUNS} | {f"evaluate {run}" for run in RUNS} == set(summary["seconds"])
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert "not as promised" not in printed
    assert "alpha" in printed  # the audit is shown

    for name, (method, _) in RUNS.items():
        run = Run.open(out / name)
        assert run.config.method == method
        hidden = any("hidden" in set(states.values()) for states in run.declarations().values())
        assert hidden == (name != "full")
    assert len(json.loads((out / "smiler" / "evaluation.json").read_text())["cases"]) == 2
    scan = sorted((out / "cohort" / "imagesTs").iterdir())[0]
    assert nib.load(out / "prediction.nii.gz").shape == nib.load(scan).shape
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "model.onnx").stat().st_size > 10_000
    assert {Path(log).stem for log in (out / "logs").iterdir()} >= {"phantom", "train-smiler", "evaluate-full"}
