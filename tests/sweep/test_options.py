"""Options of `smile-fast sweep`: shares of the cells, which cases are held out, and surfaces."""

import csv
import json
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from smile_fast.sweep.cell import read_cell
from smile_fast.sweep.grid import CELLS
from tests.runs import make_store, truth

COMMAND = (
    "--methods baseline,smile --alphas .5 --folds 1 --backbone resnet18 --width 8 --crop-size 32 --batch-size 2 "
    "--epochs 0.1 --rates 1 --device cpu"
).split()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path: Path = tmp_path_factory.mktemp("options") / "store"
    return make_store(path, {f"case_{n}": truth() for n in range(5)})


def test_shares_make_the_cells_of_one_sweep_and_finish_the_tables(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["sweep", str(store.path), str(out), *COMMAND]
    assert main([*command, "--shard", "2/2"]) == 0
    assert "1 of 1 cells are finished" in capsys.readouterr().out
    assert [path.name for path in (out / CELLS).iterdir()] == ["smile"]
    assert not (out / "figure3.csv").exists()
    assert main([*command, "--finish"]) == 0  # says what is missing, and computes nothing
    said = capsys.readouterr()
    assert "missing: baseline, alpha 0.50, fold 0" in said.out
    assert "1 of 2 cells are finished" in said.out
    assert "cell:" not in said.err
    assert main([*command, "--shard", "1/2"]) == 0
    assert main([*command, "--finish"]) == 0
    assert "2 of 2 cells are finished" in capsys.readouterr().out
    assert main(["sweep", str(store.path), str(whole), *COMMAND]) == 0
    for name in ("figure3_cases.csv", "figure3.csv", "summary.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert main([*command, "--shard", "1/2", "--finish"]) == 2
    assert "--finish: puts together what all shares did" in capsys.readouterr().err


def test_a_file_says_which_cases_a_fold_holds_out(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = sorted(store.cases)
    folds = [{"train": [c for c in cases if c not in held], "val": held} for held in (cases[:1], cases[1:3])]
    file, out = tmp_path / "splits_final.json", tmp_path / "out"
    file.write_text(json.dumps(folds))
    command = ["sweep", str(store.path), str(out), *COMMAND, "--methods", "smile", "--splits", str(file)]
    assert main([*command, "--folds", "2"]) == 0
    with (out / "figure3_cases.csv").open() as text:
        held_out = {(row["fold"], row["case"]) for row in csv.DictReader(text)}
    assert held_out == {("0", cases[0]), ("1", cases[1]), ("1", cases[2])}
    capsys.readouterr()
    assert main([*command, "--folds", "3"]) == 2
    assert f"--folds: {file} holds 2 of them; give no more" in capsys.readouterr().err
    assert main(["sweep", str(store.path), str(out), *COMMAND, "--methods", "smile"]) == 2  # drawn: another plan
    assert "was made from another store" in capsys.readouterr().err


def test_surfaces_are_scored_when_asked_for(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", str(store.path), str(tmp_path), *COMMAND, "--methods", "smile"]
    assert main([*command, "--surfaces"]) == 0
    record = read_cell(tmp_path / CELLS / "smile" / "alpha-0.50" / "fold-0")
    assert record is not None
    assert all(pair.nsd is not None for pair in record.pairs)
    capsys.readouterr()
    assert main(command) == 2  # scores without them are others
    assert "was made from another store, or with other settings" in capsys.readouterr().err
