"""The page of a sweep, and the numbers on it."""

from dataclasses import asdict

import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation.scores import Outcome, PairScore
from smile_fast.records import write_record
from smile_fast.report.methods import preset_sentence
from smile_fast.report.sweep_curves import read_curves, what_to_see
from smile_fast.report.sweep_page import sweep_page
from smile_fast.supervision import State
from smile_fast.sweep.cell import RESULT, CellRecord
from smile_fast.sweep.grid import Cell
from smile_fast.sweep.tables import write_tables
from smile_runtime.errors import InputError
from tests.report.test_report import Page

ORGANS = ("liver", "pancreas")


def write_sweep(folder, methods=("baseline", "smile", "smiler"), alphas=(0.0, 0.9), folds=3, skip=()):
    """The Dice falls with alpha, least for the last method; folds and cases differ by a point, organs by six."""
    folder.mkdir(exist_ok=True)
    for place, method in enumerate(methods):
        for alpha in alphas:
            for fold in range(folds):
                cell = Cell(method, alpha, fold)
                pairs = [
                    PairScore(f"case_{fold}{case}", organ, State.ANNOTATED, Outcome.SCORED, 1.0, 1.0, dice, None, None)
                    for case in range(3)
                    for number, organ in enumerate(ORGANS)
                    for dice in [0.9 - alpha * 0.6 / (place + 1) + 0.01 * (fold + case) - 0.06 * number]
                ]
                if cell not in skip:
                    (folder / cell.folder).mkdir(parents=True)
                    write_record(folder / cell.folder / RESULT, asdict(CellRecord(1, "plan", cell, 1.0, tuple(pairs))))
    write_tables(folder)
    return folder


def test_command_writes_the_page_of_a_sweep(tmp_path, capsys):
    folder = write_sweep(tmp_path / "trial")
    assert main(["report", "--sweep", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert page.open == []
    assert all(attrs["src"].startswith("data:") and attrs["alt"] for attrs in page.attributes("img"))
    assert {attrs["href"][1:] for attrs in page.attributes("a")} == {"reading", "curves", "table", "differences"}
    assert len(page.attributes("img")) == 3  # two organs and their mean
    assert "baseline 0.35, smile 0.62, smiler 0.71" in page.text["curves"]
    assert "smiler loses least, 18 points of Dice, and baseline most, 54" in page.text["curves"]
    assert "0.350 ± 0.010 0.34 to 0.36" in page.text["table"]
    assert "+36.0 36.0 to 36.0 p = 0.0039, 9 scans" in page.text["differences"]  # 2 / 2^9
    assert "+36.0 36.0 to 36.0 p = 0.0078, 9 scans" in page.text["differences"]  # of two organs
    assert preset_sentence("baseline") in page.text["reading"]
    assert "Unfinished" not in html


def test_an_unfinished_sweep_says_what_is_missing(tmp_path):
    folder = write_sweep(tmp_path / "trial", skip=[Cell("smiler", 0.9, 2)])
    curves = read_curves(folder)
    assert curves.missing() == 1
    assert curves.estimates("liver")["smiler"][0.9].folds == 2
    assert curves.differences("liver")["smile"][0.9].cases == 6
    assert "1 of 18 trainings" in sweep_page(curves, "trial")


def test_one_fold_has_no_deviation_and_one_method_no_difference(tmp_path):
    curves = read_curves(write_sweep(tmp_path / "trial", methods=("smile",), alphas=(0.5,), folds=1))
    html = sweep_page(curves, "trial")
    assert "nothing to compare" in html
    assert "±" not in html


def test_what_was_not_measured_is_said():
    assert what_to_see("liver", {"smile": {}}) == "Nothing has been measured of liver yet."


def test_what_is_no_sweep_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="sweep again"):
        read_curves(tmp_path)


def test_options_that_do_not_go_together_are_refused(tmp_path, capsys):
    assert main(["report"]) == 2
    assert "--sweep: neither it nor a RUN is given" in capsys.readouterr().err
    assert main(["report", "run", "--sweep", str(tmp_path)]) == 2
    assert "--sweep: is a page of its own" in capsys.readouterr().err
    assert main(["report", "--sweep", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "summary.json: there is no such file" in capsys.readouterr().err
    folder = write_sweep(tmp_path / "trial")
    assert main(["report", "--sweep", str(folder), "-o", str(folder / "figure3.csv")]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
