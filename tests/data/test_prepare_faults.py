"""What may happen to `prepare`: kills, full disks, damaged files, folders of somebody else."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from smile_fast.data import prepare as module
from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.store import CASES, Store
from smile_runtime.errors import InputError
from tests.cohorts import (
    annotate,
    edit_label,
    make_cohort,
    tree,
)


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort", train=3, test=1)
    annotate(path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "store"


def run(cohort, out, **options):
    return prepare(RawDataset.open(cohort), out, **{"workers": 1, "report": lambda sentence: None, **options})


@pytest.mark.parametrize("file", ["image.b2nd", "labels.b2nd", "case.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_case_is_converted_again(cohort, out, file, damage):
    run(cohort, out)
    first = tree(out)
    path = out / CASES / "case_01" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:-40] + bytes(256 - byte if byte else 0 for byte in content[-40:]))
    assert run(cohort, out).converted == 1
    assert tree(out) == first


@pytest.mark.parametrize("step", range(12))
def test_a_call_that_is_interrupted_anywhere_is_continued(cohort, out, tmp_path, monkeypatch, step):
    expected = tree(run(cohort, tmp_path / "expected").store.path)
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) > step:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, out)
    with pytest.raises(InputError, match="an unfinished store"):
        Store.open(out)
    (out / CASES / "case_03").mkdir(exist_ok=True)
    (out / CASES / "case_03" / ".tmp-0123.b2nd").write_bytes(b"left by a kill")
    assert run(cohort, out).kept == step // 3  # three files a case
    assert tree(out) == expected


def test_a_store_that_is_being_changed_does_not_open(cohort, out, monkeypatch):
    run(cohort, out)
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))

    def killed(path, array):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_array", killed)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, out)
    with pytest.raises(InputError, match="an unfinished store"):
        Store.open(out)
    assert run(cohort, out).kept == 3


def test_a_full_disk_stops_everything_and_leaves_no_half_file(cohort, out, monkeypatch):
    write_bytes, calls = Path.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 4:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="no space left on device"):
            run(cohort, out)
    assert sorted(tree(out)) == [
        "cases/case_00/case.json",
        "cases/case_00/image.b2nd",
        "cases/case_00/labels.b2nd",
        "cases/case_01/image.b2nd",
    ]
    assert run(cohort, out).kept == 1


@pytest.mark.parametrize(("workers", "raised"), [(1, MemoryError), (2, MemoryError), (2, BrokenProcessPool)])
def test_too_little_memory_says_what_to_do(cohort, out, monkeypatch, workers, raised):
    class Threads(ThreadPoolExecutor):  # stands for the processes, which a test cannot patch
        def __init__(self, workers, context, initializer):
            super().__init__(workers)

    def exhausted(path):
        raise raised

    monkeypatch.setattr(module, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(module, "read_image", exhausted)
    with pytest.raises(InputError, match="out of memory or killed; run it again with fewer --workers"):
        run(cohort, out, workers=workers)


def test_foreign_folders_are_left_alone(cohort, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.json").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="holds other files"):
            run(cohort, other, force=force)
        with pytest.raises(InputError, match="holds other files"):
            run(cohort, cohort, force=force)
    assert tree(other) == {"index.json": b"mine"}


def test_another_cohorts_store_is_replaced_only_by_force(cohort, out, tmp_path):
    run(cohort, out)
    before = tree(out)
    small = make_cohort(tmp_path / "small", train=1, organs=("liver",))
    annotate(small, organs=("liver",))
    with pytest.raises(InputError, match="holds a store of other organs"):
        run(small, out)
    assert tree(out) == before
    assert run(small, out, force=True).store.organs == ("liver",)
    assert list(Store.open(out).cases) == ["case_00"]


def test_bad_annotations_leave_a_finished_store_alone(cohort, out):
    run(cohort, out)
    before = tree(out)
    (cohort / "annotations.csv").write_text("case,organ,state\n")
    with pytest.raises(InputError, match="no row for 12 of the 12"):
        run(cohort, out)
    assert tree(out) == before


def test_a_worker_ends_with_its_parent(tmp_path):
    """A parent that is killed cannot tell its workers."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from smile_fast.data.prepare import _start_worker\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, context, initializer=_start_worker)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 60).result()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 10
        while _alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _alive(worker)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
