"""Two commands on one folder: the second one is told so, and what a killed one leaves is in nobody's way."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.data.dataset import RawDataset
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.data.prepare import prepare
from smile_fast.data.preparing.cohort_work import PREPARING
from smile_fast.data.store import Store
from tests.cohorts import annotate, make_cohort, tree

SAID = "another smile-fast process is at work there now; wait until it has ended, or give another folder"

# The command itself, which waits for a line of its input before it reads the first image.
WAITING = """
    import sys
    from smile_fast.cli.main import main
    from smile_fast.data.preparing import conversion
    read_image = conversion.read_image
    def wait(path, digest):
        print("reading", flush=True)
        sys.stdin.readline()
        return read_image(path, digest)
    conversion.read_image = wait
    sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def assert_told(capsys: pytest.CaptureFixture[str], command: list[str], folder: Path) -> None:
    assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {folder}: {SAID}"]


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort")
    annotate(path)
    return path


def test_a_second_prepare_of_other_data_is_told_so_and_changes_nothing(cohort, tmp_path, capsys):
    store, other = tmp_path / "store", tmp_path / "other.csv"
    rows = (cohort / "annotations.csv").read_text()
    other.write_text(rows.replace("case_01,liver,annotated", "case_01,liver,hidden"))
    command = ["prepare", str(cohort), str(store), "--workers", "1"]
    with running("-c", textwrap.dedent(WAITING), *command) as process:
        assert process.stdout.readline().startswith("note: ")
        assert process.stdout.readline() == "reading\n"
        before = tree(store)
        for options in ([], ["--force"], ["--shard", "1/2"]):
            assert main([*command, "--annotations", str(other), *options]) == 2
            (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert error == (
                f"error: {store}: another prepare is at work there now, with other files, declarations or organs than "
                f"{cohort} has; wait until it has ended, or give another folder"
            )
        assert tree(store) == before
        out, err = process.communicate("\n" * 3)
    assert process.returncode == 0, err
    assert "3 training and 0 held-out cases (3 converted" in out
    assert len(Store.open(store).cases) == 3
    assert {path.name for path in store.iterdir()} == {LOCK, "cases", "index.json"}


def test_a_second_prepare_of_the_same_data_shares_the_work(cohort, tmp_path):
    """The first one stops within a case: the second does all others, and that one as soon as the first is gone."""
    store, notes = tmp_path / "store", []
    with running("-c", textwrap.dedent(WAITING), "prepare", str(cohort), str(store), "--workers", "1") as process:
        assert process.stdout.readline().startswith("note: ")
        assert process.stdout.readline() == "reading\n"

        def note(text):
            notes.append(text)
            if len(notes) == 2:
                assert (process.poll(), len(list(store.glob("cases/*/case.json")))) == (None, 2)
                process.kill()

        done = prepare(RawDataset.open(cohort), store, workers=1, note=note)
    assert notes[1] == "waiting for cases that another prepare converts: case_00"
    assert (done.converted, len(done.store.cases)) == (3, 3)
    assert {path.name for path in store.iterdir()} == {LOCK, "cases", "index.json"}


def test_a_killed_prepare_is_continued(cohort, tmp_path):
    """Killed before its first case, it leaves a folder with nothing but locks and the empty folders of cases."""
    store = tmp_path / "store"
    command = ["prepare", str(cohort), str(store), "--workers", "1"]
    with running("-c", textwrap.dedent(WAITING), *command) as process:
        assert process.stdout.readline().startswith("note: ")
        assert process.stdout.readline() == "reading\n"
        process.kill()
        process.wait()
    assert {path.name for path in store.iterdir()} == {LOCK, PREPARING, "cases"}
    shutil.rmtree(store / "cases")  # as if it had been killed a moment earlier: locks alone are no other files
    assert main(command) == 0
    assert {path.name for path in store.iterdir()} == {LOCK, "cases", "index.json"}


def test_commands_on_a_run_that_is_written_are_told_so(work, capsys):
    for folder, command in (
        ("stopped", "train store stopped --resume"),
        ("run", "train store run --resume"),
        ("run", "relabel run --round 7 --gamma 0.5"),
        ("run", "relabel run --undo 0"),
    ):
        with locked(Path(folder)):
            before = tree(Path())
            assert_told(capsys, command.split(), Path(folder))
            assert tree(Path()) == before
        assert not Path(folder, LOCK).exists()


def test_a_new_run_in_a_folder_that_another_has_begun_is_told_so(work, capsys):
    Path("new").mkdir()
    with locked(Path("new")):
        assert_told(capsys, "train store new --backbone resnet18 --width 8 --rates 1 --epochs 0.1".split(), Path("new"))
        assert [path.name for path in Path("new").iterdir()] == [LOCK]


def test_a_killed_training_is_resumed_and_a_running_one_is_not(work, capsys):
    """27,000 steps: only the signal ends them."""
    command = "train store new --backbone resnet18 --width 8 --rates 1 --crop-size 32 --batch-size 2 --threads 1"
    with running("-m", "smile_fast", *command.split(), "--epochs", "3000", "--device", "cpu") as process:
        assert any("steps/s" in line for line in process.stderr)  # it trains
        assert_told(capsys, "train store new --resume".split(), Path("new"))
        assert_told(capsys, "relabel new --undo 0".split(), Path("new"))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert Path("new", LOCK).exists()
    assert main("relabel new --undo 0".split()) == 0
    assert not Path("new", LOCK).exists()


def test_a_lock_that_was_left_is_not_what_makes_a_folder_used(work):
    Path("new").mkdir()
    Path("new", LOCK).touch()
    command = "train store new --backbone resnet18 --width 8 --rates 1 --crop-size 32 --batch-size 2 --epochs 0.1"
    assert main(command.split()) == 0
    assert not Path("new", LOCK).exists()
