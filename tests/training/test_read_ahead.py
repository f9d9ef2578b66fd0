"""Batches are those of their steps, whoever makes them; and what goes wrong in a worker is one sentence here."""

import os
import shutil
import signal
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smile_fast.data.case_info import IMAGE
from smile_fast.data.store import Store
from smile_fast.training import read_ahead as module
from smile_fast.training.batches import BatchSource
from smile_fast.training.execution import Execution
from smile_fast.training.read_ahead import read_ahead
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.volume.preprocessing import BodyRule

SETTINGS = {"channels": 3, "crop_size": 32, "batch_size": 3, "organ_share": 0.7, "seed": 5, "round_number": 0}


@pytest.fixture(scope="module")
def view(store):
    return TrainingView(store, store.declarations(), ["train_0", "train_1", "train_2"], body=BodyRule())


def copies(batches, number):
    return [{name: array.copy() for name, array in vars(batch).items()} for batch in islice(batches, number)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name, array in other.items():
            assert one[name].dtype == array.dtype
            np.testing.assert_array_equal(one[name], array)


@pytest.mark.parametrize(("workers", "first"), [(0, 0), (0, 7), (1, 7), (4, 0)])
def test_batches_are_those_of_their_steps(view, workers, first):
    """More of them than there is memory for, of scans whose pixels are not the network's."""
    source = BatchSource(view, **SETTINGS, pixel_mm=1.3)
    steps = range(first, first + 14)
    with closing(read_ahead(source, first, workers)) as batches:
        assert_same(copies(batches, len(steps)), copies(map(source.batch, steps), len(steps)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_valid_until_the_second_one_after_it(view, workers):
    source = BatchSource(view, **SETTINGS)
    with closing(read_ahead(source, 0, workers)) as batches:
        before = next(batches)
        for step in range(1, 12):
            batch = next(batches)
            assert_same([vars(before)], [vars(source.batch(step - 1))])
            before = batch


class Threads(BatchSource):
    """Says in its batches how many threads its process uses."""

    def batch(self, step):
        batch = super().batch(step)
        batch.cases[:] = (torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"]), os.getpid())
        return batch


def test_a_worker_is_a_process_of_one_thread(view, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    with closing(read_ahead(Threads(view, **SETTINGS), 0, 1)) as batches:
        threads, given, process = next(batches).cases
    assert (threads, given) == (1, 1)
    assert process != os.getpid()


class Server(BatchSource):
    """Says in its batches how many threads the parent of its process has, and which signals it does not hear."""

    def batch(self, step):
        batch = super().batch(step)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{os.getppid()}/status").read_text().splitlines())
        batch.cases[:] = (int(status["Threads"]), int(status["SigBlk"], 16), os.getppid())
        return batch


def test_the_server_of_the_workers_has_one_thread_and_is_deaf_to_ctrl_c(view):
    """From its first instruction on: Ctrl-C comes while it imports, too. A fork with other threads may deadlock."""
    with closing(read_ahead(Server(view, **SETTINGS), 0, 1)) as batches:
        threads, blocked, server = next(batches).cases
    assert threads == 1
    assert blocked & 1 << signal.SIGINT - 1
    assert server != os.getpid()


class Dies(BatchSource):
    """Ends its process in the third step, as the kernel does when memory is short."""

    def batch(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)


def test_a_worker_that_is_killed_is_one_sentence(view):
    batches = read_ahead(Dies(view, **SETTINGS), 0, 1)
    with pytest.raises(InputError, match=r"^memory: a worker process was killed, .*; give fewer --workers, or 0$"):
        copies(batches, 5)


class Hungry(BatchSource):
    """Asks for more memory than there is."""

    def batch(self, step):
        raise MemoryError


def test_a_worker_without_memory_is_one_sentence(view):
    with pytest.raises(InputError, match=r"^memory: a worker process had too little; give fewer --workers, or 0$"):
        next(read_ahead(Hungry(view, **SETTINGS), 0, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_store_is_the_same_sentence_from_a_worker(store, tmp_path, workers):
    shutil.copytree(store.path, tmp_path / "store")
    spoiled = Store.open(tmp_path / "store")
    for case in spoiled.cases:
        path = spoiled.array_path(case, IMAGE)
        content = bytearray(path.read_bytes())
        content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
        path.write_bytes(content)
    source = BatchSource(TrainingView(spoiled, spoiled.declarations(), ["train_0"]), **SETTINGS)
    with pytest.raises(InputError) as expected:
        copies(map(source.batch, range(20)), 20)
    with pytest.raises(InputError) as found:
        copies(read_ahead(source, 0, workers), 20)
    assert str(found.value) == str(expected.value)


def test_shared_memory_that_cannot_be_had_is_one_sentence(view, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.RawArray", full)
    with pytest.raises(
        InputError,
        match=r"^--workers: memory cannot be shared with processes here \(no space left on device\); give 0$",
    ):
        next(read_ahead(BatchSource(view, **SETTINGS), 0, 1))


@pytest.fixture
def unpinnable(monkeypatch):
    """CUDA that does not take memory of a file, as shared memory is where /dev/shm is small."""

    def refuse(code):
        raise RuntimeError("CUDA error: operation not supported\nmore")

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *memory: 801))
    monkeypatch.setattr(torch.cuda, "check_error", refuse)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, dtype: empty(*size, dtype=dtype))


REFUSED = "--workers: shared memory cannot be pinned for CUDA here (CUDA error: operation not supported); give 0"


def test_processes_that_were_asked_for_and_cannot_share_memory_are_refused(view, unpinnable):
    with pytest.raises(InputError) as error:
        next(read_ahead(BatchSource(view, **SETTINGS), 0, 2, device=torch.device("cuda")))
    assert str(error.value) == REFUSED


def test_a_thread_stands_in_for_processes_that_nobody_asked_for(view, unpinnable, capsys):
    source = BatchSource(view, **SETTINGS)
    batches = read_ahead(source, 3, 2, device=torch.device("cuda"), or_a_thread=True)
    with closing(batches):
        assert_same(copies(batches, 9), copies(map(source.batch, range(3, 12)), 9))
    assert capsys.readouterr().err == f"warning: {REFUSED}: a thread makes the batches now\n"


def test_a_broken_array_ends_the_reading_thread_with_its_error(view, monkeypatch):
    def broken(self, case, slices):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(TrainingView, "image", broken)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(read_ahead(BatchSource(view, **SETTINGS), 0))


def test_slots_do_not_overlap_and_are_aligned(view):
    source = BatchSource(view, **{**SETTINGS, "batch_size": 5, "channels": 1, "crop_size": 40})
    memory = np.zeros(4 * module.slot_bytes(source), np.uint8)
    batches = module.batches_in(memory, 4, source)
    for batch in batches:
        for array in vars(batch).values():
            assert array.ctypes.data % array.itemsize == 0
            assert not array.any()
            array[:] = 1
    # A one is one byte that is not zero, in every type.
    assert np.count_nonzero(memory) == sum(array.size for batch in batches for array in vars(batch).values())


@pytest.mark.parametrize(
    ("workers", "device", "cpus", "expected"),
    [
        ("auto", "cpu", 16, 0),
        ("auto", "cuda", 16, 4),
        ("auto", "cuda", 3, 2),
        ("auto", "cuda", 1, 0),
        ("7", "cpu", 2, 7),
        ("0", "cuda", 16, 0),
    ],
)
def test_how_many_workers_there_are(monkeypatch, workers, device, cpus, expected):
    monkeypatch.setattr("smile_fast.training.execution.usable_cpus", lambda: cpus)
    execution = Execution(workers=workers)
    assert execution.worker_count(device) == expected
    assert execution.or_a_thread == (workers == "auto")


@pytest.mark.parametrize("workers", ["-1", "many", "1.5", "", "²", "65"])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(InputError, match=r"--workers: .* cannot be used; give auto, or 0 to 64"):
        Execution(workers=workers)
