"""What may happen to `prepare`: full disks, damaged files, too little memory, folders of somebody else."""

import errno
import os
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from smile_fast.data import prepare as module
from smile_fast.data import processes
from smile_fast.data.folder_lock import shared
from smile_fast.data.preparing import conversion, one_case
from smile_fast.data.store import CASES, Store
from smile_runtime.errors import InputError
from smile_runtime.io import nifti
from smile_runtime.io.files import reason
from tests.cohorts import (
    ThreadsForProcesses,
    annotate,
    array_file,
    edit_label,
    make_cohort,
    other_image,
    stored,
    tree,
    write_nifti,
)
from tests.data.prepared import run, voxels


@pytest.mark.parametrize("file", ["image", "labels", "case.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_case_is_converted_again(cohort, out, file, damage):
    run(cohort, out)
    first = stored(out)
    folder = out / CASES / "case_01"
    path = folder / file if file == "case.json" else array_file(folder, file)
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:-40] + bytes(256 - byte if byte else 0 for byte in content[-40:]))
    hidden = damage == "flipped" and file != "case.json"  # what `verify` is for
    assert run(cohort, out).converted == (0 if hidden else 1)
    assert run(cohort, out, rehash=True).converted == (1 if hidden else 0)
    assert stored(out) == first


@pytest.mark.parametrize("step", range(12))
def test_a_call_that_is_interrupted_anywhere_is_continued(cohort, out, tmp_path, monkeypatch, step):
    expected = stored(run(cohort, tmp_path / "expected").store.path)
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
    with pytest.raises(InputError, match=r"an unfinished store.*it has no index\.json"):
        Store.open(out)
    (out / CASES / "case_03").mkdir(exist_ok=True)
    (out / CASES / "case_03" / ".tmp-0123.b2nd").write_bytes(b"left by a kill")
    assert run(cohort, out).kept == step // 3  # three files a case
    assert stored(out) == expected


def test_a_store_that_is_being_changed_stays_what_it_was(cohort, out, monkeypatch):
    before = run(cohort, out).store
    seen = voxels(before)
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))
    write_case, calls = one_case.CaseRecord.write, []

    def killed(record, folder):
        calls.append(folder.name)
        write_case(record, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one_case.CaseRecord, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, out)
    assert calls == ["case_00"]  # read again, for it was written a moment before the store
    assert Store.open(out) == before
    assert voxels(Store.open(out)) == seen
    assert run(cohort, out).converted == 1
    assert voxels(Store.open(out))["case_01"] != seen["case_01"]


def test_readers_keep_the_files_that_they_opened(cohort, out):
    """As long as they hold the store's lock; the next call without readers removes the files."""
    store = run(cohort, out).store
    seen = voxels(store)
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))
    with shared(out):
        assert run(cohort, out).converted == 1
        assert voxels(store) == seen
    assert len(list((out / CASES / "case_01").glob("labels-*.b2nd"))) == 2
    run(cohort, out)
    assert len(list((out / CASES / "case_01").glob("labels-*.b2nd"))) == 1


def change(cohort):
    """A case is drawn again, one is scanned again, one is new, and one is no more."""
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))
    write_nifti(cohort / "imagesTr" / "case_02_0000.nii.gz", other_image())
    for folder, suffix in (("imagesTs", "_0000"), ("labelsTs", "")):
        (cohort / folder / f"case_03{suffix}.nii.gz").rename(cohort / folder / f"case_04{suffix}.nii.gz")
    annotate(cohort)


def test_a_write_that_fails_leaves_the_store_before(cohort, out, tmp_path, monkeypatch):
    """At every write, fsync and rename of a changed cohort."""
    before = voxels(run(cohort, out).store)
    change(cohort)
    after = run(cohort, tmp_path / "after").store
    allowed, expected = (before, voxels(after)), stored(after.path)
    codes = (errno.ENOSPC, errno.EIO, errno.EMFILE)
    failed = 0
    for where, name in ((Path, "write_bytes"), (os, "fsync"), (os, "replace")):
        real = getattr(where, name)
        for number in range(1, 100):
            store, calls, code = tmp_path / f"{name}_{number}", [], codes[number % 3]
            shutil.copytree(out, store)

            def failing(*arguments, name=name, number=number, real=real, calls=calls, code=code):
                calls.append(arguments)
                if len(calls) != number:
                    return real(*arguments)
                if name == "write_bytes":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as patch:
                patch.setattr(where, name, failing)
                try:
                    run(cohort, store)
                except InputError as error:
                    failed += 1
                    told = (
                        f"({reason(OSError(code, os.strerror(code)))}); see to it and run again, the store stays as it"
                    )
                    assert told in str(error)  # noqa: PT017
            if len(calls) < number:
                break
            assert voxels(Store.open(store)) in allowed
            assert not list(store.rglob(".tmp-*"))
            assert run(cohort, store).quarantined == {}
            assert stored(store) == expected
            shutil.rmtree(store)
    assert failed > 30


@pytest.mark.parametrize("code", [errno.EIO, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
def test_what_the_machine_lacks_is_no_broken_case(cohort, out, monkeypatch, code):
    before = run(cohort, out).store
    edit_label(cohort, "case_02", lambda labels: np.roll(labels, 1, axis=2))

    def failing(path, *arguments):
        if Path(path).name == "case_02.nii.gz":
            raise OSError(code, os.strerror(code), str(path))
        return open(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(nifti, "open", failing, raising=False)
        with pytest.raises(InputError, match=r"case_02\.nii\.gz: cannot be read .*; see to it and run again"):
            run(cohort, out)
    assert Store.open(out) == before
    assert not (out / "quarantine.json").exists()
    assert run(cohort, out).converted == 1


@pytest.mark.parametrize(("workers", "raised"), [(1, MemoryError), (2, MemoryError), (2, BrokenProcessPool)])
def test_too_little_memory_says_what_to_do(cohort, out, monkeypatch, workers, raised):
    def exhausted(path, digest):
        raise raised

    monkeypatch.setattr(processes, "ProcessPoolExecutor", ThreadsForProcesses)
    monkeypatch.setattr(conversion, "read_image", exhausted)
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
    done = run(cohort, out)
    assert (done.converted, list(done.quarantined)) == (3, ["case_03"])


def test_a_case_that_broke_leaves_the_store_before_where_that_is_asked_for(cohort, out):
    before = run(cohort, out).store
    (cohort / "labelsTs" / "case_03.nii.gz").write_bytes(b"broken")
    edit_label(cohort, "case_00", lambda labels: np.roll(labels, 1, axis=2))
    with pytest.raises(InputError, match="the store stays as it was, 1 of 4 cases are broken"):
        run(cohort, out, strict=True)
    assert Store.open(out) == before
    assert voxels(Store.open(out)) == voxels(before)
    done = run(cohort, out)
    assert (done.converted, done.kept, list(done.quarantined)) == (0, 3, ["case_03"])
    assert list(Store.open(out).cases) == ["case_00", "case_01", "case_02"]


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
