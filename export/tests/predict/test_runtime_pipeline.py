"""Reading, computing and writing side by side: what overlaps, what is held, and the same bytes."""

import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from folder_runs import content_of, run
from nifti_files import random_hu, write

from smile_runtime.predict import pipeline
from smile_runtime.predict.pipeline import Job
from smile_runtime.predict.predictor import Predictor


def test_reading_and_writing_go_on_while_a_scan_is_computed(scans, tmp_path, threshold_model, monkeypatch):
    """Inference of scan n waits here until scan n + 1 is read and scan n - 1 is written: alone it would
    never end, so the time to wait only bounds how long a defect takes to show."""
    loaded, saved = [threading.Event() for _ in range(5)], [threading.Event() for _ in range(5)]
    threads = set()

    def number(path):
        return int(str(path).split("case ")[1][0])

    def load(self, scan):
        result = real["load"](self, scan)
        threads.add(threading.current_thread().name)
        loaded[number(scan)].set()
        return result

    def save(self, scan, out, **options):
        result = real["save"](self, scan, out, **options)
        saved[number(out)].set()
        return result

    def segment(self, scan, **options):
        n = number(scan.volume.path)
        assert n == 4 or loaded[n + 1].wait(120)
        assert n == 0 or saved[n - 1].wait(120)
        real["segment"](self, scan, **options)

    real = {name: getattr(Predictor, name) for name in ("load", "save", "segment")}
    for name, replacement in (("load", load), ("save", save), ("segment", segment)):
        monkeypatch.setattr(Predictor, name, replacement)
    assert run(threshold_model, scans, tmp_path / "out") == 0
    assert all(event.is_set() for event in saved)
    assert threading.current_thread().name not in threads


def most_scans_held(tmp_path, model, monkeypatch, threads):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(12):
        write(folder / f"{number:02d}.nii.gz", random_hu((20, 20, 4), number))
    alive, most = set(), []

    def load(self, scan):
        result = real(self, scan)
        alive.add(key := str(scan))
        most.append(len(alive))
        weakref.finalize(result, alive.discard, key)
        return result

    real = Predictor.load
    monkeypatch.setattr(Predictor, "load", load)
    assert run(model, folder, tmp_path / "out", "--threads", str(threads)) == 0
    return max(most)


def test_with_one_thread_no_more_than_two_scans_and_two_label_maps_are_held(tmp_path, threshold_model, monkeypatch):
    assert most_scans_held(tmp_path, threshold_model, monkeypatch, 1) <= 3  # one being written, one computed, one read


def test_each_thread_may_read_a_scan_ahead_and_hold_a_label_map(tmp_path, threshold_model, monkeypatch):
    assert most_scans_held(tmp_path, threshold_model, monkeypatch, 2) <= 5


@pytest.mark.parametrize(("free", "most"), [(None, 3), (2 * 3 * 1600 * 2, 3), (2 * 3 * 1600 * 2 - 1, 2), (0, 2)])
def test_scans_are_read_ahead_as_far_as_memory_allows(tmp_path, threshold_model, monkeypatch, free, most):
    """Labels of 20 x 20 x 4 voxels: two scans ahead take 3 bytes a voxel of half of the free memory."""
    monkeypatch.setattr("smile_runtime.predict.pipeline.free_memory", lambda: free)
    asked, segmented = [], []
    real = Predictor.segment

    def segment(self, scan, **options):
        segmented.append(len(asked) - len(segmented))
        real(self, scan, **options)

    def submit(self, function, *arguments, **options):
        asked.extend(1 for argument in arguments if isinstance(argument, Job))  # of reading alone
        return real_submit(self, function, *arguments, **options)

    real_submit = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    monkeypatch.setattr(Predictor, "segment", segment)
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(8):
        write(folder / f"{number}.nii.gz", random_hu((20, 20, 4), number))
    assert run(threshold_model, folder, tmp_path / "out", "--threads", "2") == 0
    assert max(segmented) == most  # the one at work, and two ahead or one


VOXELS = 1000  # of each scan below


class LateWrites:
    """An executor that reads at once and writes only when somebody waits for it: as much is held as ever can be."""

    def __init__(self, *arguments, **options):
        pass

    def submit(self, function, *arguments, **options):
        if any(isinstance(argument, Job) for argument in arguments):
            future = Future()
            future.set_result(function(*arguments, **options))
            return future
        return LateWrite(function, arguments, options)

    def shutdown(self, **options):
        pass


class LateWrite:
    def __init__(self, function, arguments, options):
        self._call = lambda: function(*arguments, **options)

    def result(self):
        return self._call()


class Ledger:
    """A predictor and a report in one, which note the bytes of voxels that are held: 2 of a scan, 1 of its labels."""

    threads = 4

    def __init__(self):
        self.held, self.most, self.done = {}, 0, []

    def hold(self, scan, bytes_a_voxel):
        self.held[scan] = bytes_a_voxel * VOXELS
        self.most = max(self.most, sum(self.held.values()))
        return scan

    def load(self, scan):
        return self.hold(scan, 2)

    def segment(self, scan, **options):
        self.hold(scan, 3)
        self.hold(scan, 1)

    def save(self, scan, labels, **options):
        del self.held[scan]
        return scan

    def add(self, scan, prediction):
        self.done.append(scan)


@pytest.mark.parametrize(
    ("free", "most"),  # bytes a voxel
    [
        (0, 3 + 2 + 1),  # the scan at work, one ahead, and one label map that waits
        (6, 3 + 2 + 1),
        (12, 3 + 2 * 2 + 2 * 1),
        (24, 3 + 4 * 2 + 4 * 1),
        (None, 3 + 4 * 2 + 4 * 1),
    ],
)
def test_label_maps_wait_for_the_disk_as_far_as_memory_allows(monkeypatch, free, most):
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", LateWrites)
    monkeypatch.setattr(pipeline, "free_memory", lambda: None if free is None else free * VOXELS)
    monkeypatch.setattr(pipeline, "count_voxels", lambda scan: VOXELS)
    jobs = [Job(Path(f"{number}.nii"), Path(f"labels {number}.nii"), None) for number in range(12)]
    ledger = Ledger()
    pipeline.run(ledger, jobs, ledger)
    assert ledger.most == most * VOXELS
    assert (ledger.done, ledger.held) == ([job.scan for job in jobs], {})


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_bytes_do_not_depend_on_the_threads(scans, tmp_path, threshold_model, threads):
    assert run(threshold_model, scans, tmp_path / "one", "--threads", "1") == 0
    assert run(threshold_model, scans, tmp_path / "many", "--threads", str(threads)) == 0
    assert content_of(tmp_path / "one") == content_of(tmp_path / "many")
