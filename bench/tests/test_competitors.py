"""The table of competitors, of a sweep whose scores are known."""

from dataclasses import asdict
from pathlib import Path

import pytest

from bench.competitors import BEGIN, END, main
from bench.machine import ROOT
from smile_fast.evaluation.scores import Outcome, PairScore
from smile_fast.records import write_record
from smile_fast.supervision import State
from smile_fast.sweep.cell import RESULT, CellRecord
from smile_fast.sweep.grid import Cell
from smile_fast.training.checkpoint import Checkpoint
from smile_runtime.io.files import read_json

DICE = {"smile-long": 0.7, "channel-drop-long": 0.65, "smiler": 0.8}
STEPS = {"smile-long": 2200, "channel-drop-long": 2200, "smiler": 2199}


def write_cell(sweep: Path, cell: Cell) -> None:
    """Six cases a fold; case n has n points more than the first, the pancreas ten less than the liver."""
    pairs = tuple(
        PairScore(f"case_{cell.fold}{case}", organ, State.ANNOTATED, Outcome.SCORED, 1.0, 1.0, dice, None, None)
        for case in range(6)
        for organ, less in (("liver", 0.0), ("pancreas", 0.1))
        for dice in [DICE[cell.method] + case / 100 - less]
    )
    (sweep / cell.folder).mkdir(parents=True)
    write_record(sweep / cell.folder / RESULT, asdict(CellRecord(1, "plan", cell, 1.0, pairs)))
    Checkpoint({}, {"total_steps": STEPS[cell.method]}).save(sweep / cell.folder / "model.safetensors")


def write_sweep(sweep: Path, *without: Cell) -> None:
    for method in DICE:
        for fold in range(2):
            if (cell := Cell(method, 0.7, fold)) not in without:
                write_cell(sweep, cell)


def test_the_record_and_the_readme_have_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "sweep")
    write_cell(tmp_path / "sweep", Cell("smiler", 0.9, 0))  # another share is another table
    record, readme = tmp_path / "competitors.json", tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}an older table\n{END}after\n")
    main([str(tmp_path / "sweep")], record, readme)
    methods = read_json(record, "")["methods"]
    assert list(methods) == ["channel-drop-long", "smile-long", "smiler"]  # the order of all tables
    assert methods["smile-long"]["gain"] == {}
    gain = methods["smiler"]["gain"]["mean"]
    assert (gain["mean"], gain["low"], gain["high"], gain["cases"]) == pytest.approx((0.1, 0.1, 0.1, 12))
    assert gain["p"] == pytest.approx(2 / 2**12)  # exact: all twelve cases differ in one direction
    assert methods["smiler"]["gain"]["liver"]["p"] == pytest.approx(4 / 2**12)  # of two organs
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}| method |")
    assert text.endswith(f"\n{END}after\n")
    assert "an older table" not in text
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert rows["smile-long"].endswith("| 2,200 | 0.725 | 0.625 | 0.675 (0.665 to 0.685) |  |")
    assert "| 0.825 | 0.725 | 0.775 (" in rows["smiler"]
    assert rows["smiler"].endswith("| +10.0 (+10.0 to +10.0), p < 0.001 |")
    assert rows["channel-drop-long"].endswith("| -5.0 (-5.0 to -5.0), p < 0.001 |")
    assert "| as smile, and the most confident findings, from round to round | 2,199 |" in rows["smiler"]
    assert capsys.readouterr().out == text.split(BEGIN)[1].split(END)[0]


@pytest.mark.parametrize(
    ("without", "alpha", "said"),
    [
        ((), "0.4", "has no finished cell at alpha 0.4; give one of: 0.7"),
        ((Cell("smile-long", 0.7, 0), Cell("smile-long", 0.7, 1)), "0.7", "has no cell of smile-long"),
        ((Cell("smiler", 0.7, 1),), "0.7", "fold 1 of smiler is not finished"),
    ],
)
def test_methods_that_cannot_be_compared_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without: tuple[Cell, ...], alpha: str, said: str
) -> None:
    write_sweep(tmp_path / "sweep", *without)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "sweep"), "--alpha", alpha], tmp_path / "record.json", tmp_path / "README.md")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()


def test_the_readme_has_a_place_for_the_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
