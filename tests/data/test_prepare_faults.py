"""What may happen to `prepare`: kills, full disks, damaged files, folders of somebody else."""

import os
import re
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from smile_fast.data import prepare as module
from smile_fast.data import processes
from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.store import CASES, Store
from smile_runtime.errors import InputError
from tests.cohorts import ThreadsForProcesses, annotate, edit_label, make_cohort, other_image, tree, write_nifti


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


@pytest.mark.parametrize("file", ["image-*", "labels-*", "case.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_case_is_converted_again(cohort, out, file, damage):
    run(cohort, out)
    first = tree(out)
    (path,) = (out / CASES / "case_01").glob(file)
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
    with pytest.raises(InputError, match=r"an unfinished store, it has no index\.json; finish it"):
        Store.open(out)
    (out / CASES / "case_03").mkdir(exist_ok=True)
    (out / CASES / "case_03" / ".tmp-0123.b2nd").write_bytes(b"left by a kill")
    assert run(cohort, out).kept == step // 3  # three files a case
    assert tree(out) == expected


def test_a_store_that_is_being_changed_does_not_open(cohort, out, monkeypatch):
    run(cohort, out)
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))

    def killed(folder, name, array):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_array", killed)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, out)
    with pytest.raises(InputError, match=r"an unfinished store, it has no index\.json; finish it"):
        Store.open(out)
    assert run(cohort, out).kept == 3


def test_a_full_disk_stops_everything_and_leaves_no_half_file(cohort, out, monkeypatch):
    write_bytes, calls = Path.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 5:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="no space left on device"):
            run(cohort, out)
    assert [re.sub("-[0-9a-f]{16}", "", file) for file in sorted(tree(out))] == [
        "cases/case_00/case.json",
        "cases/case_00/image.b2nd",
        "cases/case_00/labels.b2nd",
        "cases/case_01/image.b2nd",
    ]
    assert run(cohort, out).kept == 1


@pytest.mark.parametrize(("workers", "raised"), [(1, MemoryError), (2, MemoryError), (2, BrokenProcessPool)])
def test_too_little_memory_says_what_to_do(cohort, out, monkeypatch, workers, raised):
    def exhausted(path):
        raise raised

    monkeypatch.setattr(processes, "ProcessPoolExecutor", ThreadsForProcesses)
    monkeypatch.setattr(module, "read_image", exhausted)
    with pytest.raises(InputError, match=r"^memory: .*; run it again with fewer --workers, finished cases are kept"):
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


def test_a_cohort_of_the_same_organs_but_other_files_is_replaced_only_by_force(cohort, out, tmp_path):
    run(cohort, out)
    before = tree(out)
    other = make_cohort(tmp_path / "other", train=2)
    annotate(other)
    for case in ("case_00", "case_01"):
        write_nifti(other / "imagesTr" / f"{case}_0000.nii.gz", other_image())
        edit_label(other, case, lambda labels: np.roll(labels, 1, axis=0))
    for unfinished in (False, True):
        if unfinished:
            (out / "index.json").unlink()
            before = tree(out)
        with pytest.raises(InputError, match=r"made from other files than those of .*other; .*--force to replace it"):
            run(other, out)
        assert tree(out) == before
    assert list(run(other, out, force=True).store.cases) == ["case_00", "case_01"]


def test_one_common_file_makes_it_the_same_cohort(cohort, out):
    run(cohort, out)
    for case in ("case_00", "case_01", "case_02"):
        edit_label(cohort, case, lambda labels: np.roll(labels, 1, axis=2))
        if case != "case_02":
            write_nifti(cohort / "imagesTr" / f"{case}_0000.nii.gz", other_image())
    (cohort / "imagesTs" / "case_03_0000.nii.gz").write_bytes(b"broken")
    (cohort / "labelsTs" / "case_03.nii.gz").write_bytes(b"broken")
    done = run(cohort, out, skip_broken=True)
    assert (done.converted, list(done.quarantined)) == (3, ["case_03"])


def test_a_case_that_broke_leaves_a_finished_store_usable(cohort, out):
    before = run(cohort, out).store
    (cohort / "labelsTs" / "case_03.nii.gz").write_bytes(b"broken")
    with pytest.raises(InputError, match="the store stays as it was, 1 of 4 cases are broken"):
        run(cohort, out)
    assert Store.open(out) == before
    edit_label(cohort, "case_00", lambda labels: np.roll(labels, 1, axis=2))
    with pytest.raises(InputError, match="the store is not finished, 1 of 4 cases are broken"):
        run(cohort, out)  # case_00 is no longer what the index says


def test_a_new_broken_case_and_a_new_good_one_leave_the_index_alone(cohort, out):
    before = run(cohort, out).store
    for name in ("case_08", "case_09"):
        for folder, suffix in (("imagesTs", "_0000"), ("labelsTs", "")):
            source = cohort / folder / f"case_03{suffix}.nii.gz"
            (cohort / folder / f"{name}{suffix}.nii.gz").write_bytes(source.read_bytes() if name == "case_08" else b"")
    annotate(cohort)
    with pytest.raises(InputError, match="the store stays as it was, 1 of 6 cases are broken"):
        run(cohort, out)
    assert Store.open(out) == before
    assert list(run(cohort, out, skip_broken=True).store.cases) == [*before.cases, "case_08"]


def test_a_removed_case_leaves_the_index_until_the_new_one_is_there(cohort, out, monkeypatch):
    before = run(cohort, out).store
    (cohort / "imagesTs" / "case_03_0000.nii.gz").unlink()
    (cohort / "labelsTs" / "case_03.nii.gz").unlink()
    annotate(cohort)

    def killed(path, organs, cases):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, out)
    assert Store.open(out) == before
    assert list(run(cohort, out).store.cases) == ["case_00", "case_01", "case_02"]


def test_bad_annotations_leave_a_finished_store_alone(cohort, out):
    run(cohort, out)
    before = tree(out)
    (cohort / "annotations.csv").write_text("case,organ,state\n")
    with pytest.raises(InputError, match="no row for 12 of the 12"):
        run(cohort, out)
    assert tree(out) == before
