"""Two commands on one folder: the second one is told so, and what a killed one leaves is in nobody's way."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.data.store import Store
from tests.cli.spoiling import unlocked_tree
from tests.cohorts import annotate, make_cohort, tree

SAID = "another smile-fast process is at work there now; wait until it has ended, or give another folder"

# The command itself, which waits for a line of its input before it reads the first image.
WAITING = """
    import sys
    from smile_fast.cli.main import main
    from smile_fast.data import prepare
    read_image = prepare.read_image
    def wait(path):
        print("reading", flush=True)
        sys.stdin.readline()
        return read_image(path)
    prepare.read_image = wait
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


def test_a_second_prepare_is_told_so_and_changes_nothing(cohort, tmp_path, capsys):
    store = tmp_path / "store"
    command = ["prepare", str(cohort), str(store), "--workers", "1"]
    with running("-c", textwrap.dedent(WAITING), *command) as process:
        assert process.stdout.readline() == "reading\n"
        before = tree(store)
        assert_told(capsys, command, store)
        assert_told(capsys, [*command, "--force"], store)
        assert tree(store) == before
        out, err = process.communicate("\n" * 3)
    assert process.returncode == 0, err
    assert "3 training and 0 held-out cases (3 converted" in out
    assert len(Store.open(store).cases) == 3
    assert {path.name for path in store.iterdir()} == {"cases", "index.json"}


def test_a_killed_prepare_is_continued(cohort, tmp_path):
    """Killed before its first case, it leaves a folder with nothing but the lock and the empty folder of cases."""
    store = tmp_path / "store"
    command = ["prepare", str(cohort), str(store), "--workers", "1"]
    with running("-c", textwrap.dedent(WAITING), *command) as process:
        assert process.stdout.readline() == "reading\n"
        process.kill()
        process.wait()
    assert (store / LOCK).exists()
    (store / "cases").rmdir()  # as if it had been killed a moment earlier: the lock alone is no other file
    assert main(command) == 0
    assert not (store / LOCK).exists()


def test_commands_on_a_run_that_is_written_are_told_so(work, capsys):
    for folder, command in (
        ("stopped", "train store stopped --resume"),
        ("run", "train store run --resume"),
        ("run", "relabel run --round 7 --gamma 0.5"),
        ("run", "relabel run --undo 0"),
    ):
        with locked(Path(folder)):
            before = unlocked_tree()
            assert_told(capsys, command.split(), Path(folder))
            assert unlocked_tree() == before
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
