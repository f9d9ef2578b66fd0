"""Cells of a sweep: computed once, gone on with after a kill, and the same bits from wherever they start."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from smile_fast.cli.main import main
from smile_fast.data.folder_lock import locked
from smile_fast.data.store import Store
from smile_fast.supervision import State
from smile_fast.sweep.cell import finished, run_cell
from smile_fast.sweep.grid import Cell, Sweep, cells_of
from smile_fast.sweep.work import Budget, work
from smile_fast.training.execution import DEFAULT_EXECUTION
from smile_fast.training.relabel import weights_digest
from smile_fast.training.rounds import open_round
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from tests.runs import make_store, truth
from tests.trainings import CPU, TINY

OPTIONS = {**TINY, "optimizer": "sgd", "lr": 0.3}
COMMAND = (
    "--methods smile,smiler --alphas .5 --folds 1 --backbone resnet18 --width 8 --crop-size 32 --batch-size 2 "
    "--epochs 0.3 --rates 1 --optimizer sgd --lr 0.3 --device cpu"
).split()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path: Path = tmp_path_factory.mktemp("sweep") / "store"
    return make_store(path, {f"train_{n}": truth() for n in range(4)} | {"test_0": truth()})


def test_a_sweep_computes_nothing_twice_and_refuses_another_plan(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sweep", str(store.path), str(out), *COMMAND]) == 0
    made = {path: path.stat().st_mtime_ns for path in out.glob("cells/**/*") if path.is_file()}
    assert "starts from the end of" in capsys.readouterr().err
    assert main(["sweep", str(store.path), str(out), *COMMAND]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/**/*") if path.is_file()} == made
    assert "cell:" not in capsys.readouterr().err
    with (out / "figure3.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["organ"]) for row in rows} == {
        (method, organ) for method in ("smile", "smiler") for organ in store.organs
    }
    assert {path.name for path in out.iterdir()} >= {"summary.json", "figure3.png", "figure3.svg"}
    assert main(["sweep", str(store.path), str(out), *COMMAND, "--weight-decay", "0"]) == 2
    assert "was made from another store" in capsys.readouterr().err
    assert main(["figures", str(out), "--alpha", "0.5"]) == 0
    assert {path.name for path in out.iterdir()} >= {"figure4.csv", "figure4.png", "figure5.png", "table1.csv"}
    with (out / "table1.csv").open() as file:
        shares = [(float(row["measured"]), float(row["formula"])) for row in csv.DictReader(file)]
    assert len(shares) == 6 * len(store.organs)
    assert all(measured == pytest.approx(formula) for measured, formula in shares)  # the cases are of one size


def test_a_smiler_cell_that_starts_from_the_smile_cell_has_the_same_bits(store: Store, tmp_path: Path) -> None:
    smile, smiler = Cell("smile", 0.5, 0), Cell("smiler", 0.5, 0)
    short, whole = (Sweep(store, tmp_path / name, OPTIONS) for name in ("short", "whole"))
    for sweep, cell in ((short, smile), (short, smiler), (whole, smiler)):
        run_cell(sweep, cell, CPU, DEFAULT_EXECUTION)
    one, two = (Run.open(sweep.path(smiler)).model_path.read_bytes() for sweep in (short, whole))
    assert one == two
    assert one != Run.open(short.path(smile)).model_path.read_bytes()


def test_the_weights_that_a_round_begins_with_are_kept_if_they_are_wanted(store: Store, tmp_path: Path) -> None:
    sweep = Sweep(store, tmp_path, {**OPTIONS, "keep_rounds": True})
    for method in ("smile", "smiler"):
        run_cell(sweep, Cell(method, 0.5, 0), CPU, DEFAULT_EXECUTION)
    smile, smiler = (Run.open(sweep.path(Cell(method, 0.5, 0))) for method in ("smile", "smiler"))
    begun, first = smile.load_model().state_dict(), smiler.load_model(before_round=1).state_dict()
    assert all(torch.equal(begun[name], first[name]) for name in begun)
    last = smiler.load_model(before_round=2).state_dict()
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert not list(smile.path.glob("round-*"))
    assert [path.name for path in smiler.weight_files if path.name.startswith("round")] == [
        "round-1.safetensors",
        "round-2.safetensors",
    ]


def test_a_cell_that_is_filled_needs_the_one_that_fills_it(store: Store, tmp_path: Path) -> None:
    sweep = Sweep(store, tmp_path, OPTIONS)
    with pytest.raises(InputError, match=r"is filled by smile, alpha 0\.50, fold 0, which is not finished"):
        run_cell(sweep, Cell("fill", 0.5, 0), CPU, DEFAULT_EXECUTION)
    cells = [Cell("fill", 0.5, 0), Cell("smile", 0.5, 0)]
    work(sweep, cells, CPU, DEFAULT_EXECUTION, Budget())
    assert all(finished(sweep, cell) is not None for cell in cells)
    filled = Run.open(sweep.path(cells[0]), store)
    teacher = Run.open(sweep.path(cells[1]), store).load_model()
    assert open_round(filled.fill_path, 0).weights == weights_digest(teacher)


def test_folds_differ_and_what_is_hidden_is_nested(store: Store, tmp_path: Path) -> None:
    sweep = Sweep(store, tmp_path, OPTIONS)
    assert finished(sweep, Cell("smile", 0.5, 0)) is None
    hidden = [
        {
            (c, o)
            for c, states in sweep.declarations(Cell("smile", alpha, 0)).items()
            for o in states
            if states[o] == "hidden"
        }
        for alpha in (0.0, 0.3, 0.7)
    ]
    assert not hidden[0]
    assert hidden[0] < hidden[1] < hidden[2]
    held_out = {tuple(sweep.split(Cell("smile", 0.5, fold)).folds[0].items()) for fold in range(6)}
    assert len(held_out) > 1
    assert len(cells_of(["smile", "baseline"], np.linspace(0, 0.9, 10).round(2).tolist(), 3)) == 60


def test_what_a_store_declares_can_stay_as_it_is(tmp_path: Path) -> None:
    """The sources of a cohort decide what is drawn; full annotation shows all of it nevertheless."""
    hidden = {("train_0", "liver"): State.HIDDEN, ("train_1", "pancreas"): State.HIDDEN}
    store = make_store(tmp_path / "store", {f"train_{n}": truth() for n in range(3)}, hidden)
    sweep = Sweep(store, tmp_path, OPTIONS, as_declared=True)
    assert sweep.declarations(Cell("smile", 0.0, 0)) == store.declarations()
    training = next(case for case, part in sweep.split(Cell("full", 0.0, 0)).folds[0].items() if part == "train")
    assert set(sweep.declarations(Cell("full", 0.0, 0))[training].values()) == {State.ANNOTATED}
    assert sweep.plan(Cell("smile", 0.0, 0)) != Sweep(store, tmp_path, OPTIONS).plan(Cell("smile", 0.0, 0))


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_in_the_same_bits(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smile_fast", "sweep", str(store.path)]
    out, whole = tmp_path / "out", tmp_path / "whole"
    killed = subprocess.Popen([*command, str(out), *COMMAND], stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "relabel, round 1" in line:  # in the middle of the second cell
            killed.kill()
            break
    killed.wait()
    killed.stderr.close()
    assert killed.returncode == -signal.SIGKILL
    first = out / "cells/smile/alpha-0.50/fold-0/cell.json"
    made = first.stat().st_mtime_ns
    assert not (out / "cells/smiler/alpha-0.50/fold-0/cell.json").exists()
    subprocess.run([*command, str(out), *COMMAND], check=True)
    subprocess.run([*command, str(whole), *COMMAND], check=True)
    assert first.stat().st_mtime_ns == made
    for name in ("figure3_cases.csv", "cells/smiler/alpha-0.50/fold-0/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_cells_side_by_side_end_with_a_killed_parent_and_are_gone_on_with(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smile_fast", "sweep", str(store.path), str(tmp_path), "--jobs", "2", *COMMAND]
    command += ["--methods", "baseline,smile", "--epochs", "300"]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    begun = 0
    while begun < 2:
        begun += parent.stderr.readline().startswith("cell: ")
    parent.kill()
    parent.stderr.read()  # ends when nobody holds the other end: both children are gone
    parent.stderr.close()
    assert parent.wait() == -signal.SIGKILL
    for method in ("baseline", "smile"):
        folder = tmp_path / "cells" / method / "alpha-0.50"
        with locked(folder, ".fold-0.lock"):  # nobody has it
            assert not (folder / "fold-0" / "cell.json").exists()


@pytest.mark.slow
def test_a_stopped_sweep_stops_its_cells_side_by_side(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smile_fast", "sweep", str(store.path), str(tmp_path), "--jobs", "2", *COMMAND]
    parent = subprocess.Popen(
        [*command, "--methods", "baseline,smile", "--epochs", "300"], stderr=subprocess.PIPE, text=True
    )
    assert parent.stderr is not None
    begun = 0
    while begun < 2:
        begun += "steps/s" in parent.stderr.readline()
    parent.terminate()
    parent.stderr.read()
    parent.stderr.close()
    assert parent.wait() == 128 + signal.SIGTERM
    assert len(list(tmp_path.glob("cells/*/alpha-0.50/fold-0/checkpoint.safetensors"))) == 2
