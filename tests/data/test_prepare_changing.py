"""Sources that change, vanish or cannot be read while a store is made: no mixture, and no case that is lost for it."""

import errno
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import finish, prepare_shard
from smile_fast.data.preparing import conversion
from smile_fast.data.preparing.fingerprint import Fingerprint
from smile_fast.data.store import CASES, Store
from smile_fast.records import read_record
from smile_runtime.errors import InputError
from smile_runtime.io import files, nifti
from smile_runtime.sharding import WHOLE
from tests.cohorts import annotate, edit_label, label_map, make_cohort, stored, write_nifti
from tests.data.prepared import SILENT, run

LONG_AGO = 1_000_000_000  # s


def shard(cohort, out):
    return prepare_shard(RawDataset.open(cohort), out, WHOLE, workers=1, **SILENT)


def finished(cohort, out):
    return finish(RawDataset.open(cohort), out, report=lambda text: None)


def unpacked(cohort):
    """The cohort in files without compression, which have the same size whatever they hold."""
    for file in cohort.rglob("*.nii.gz"):
        nib.save(nib.load(file), file.with_suffix(""))
        file.unlink()
    described = json.loads((cohort / "dataset.json").read_text())
    (cohort / "dataset.json").write_text(json.dumps(described | {"file_ending": ".nii"}))


def at(cohort, seconds):
    for file in cohort.rglob("*.nii"):
        os.utime(file, (seconds, seconds))


@pytest.fixture
def other(cohort, tmp_path):
    """A cohort like the other, in files of the same sizes and times; one case of both is broken."""
    unpacked(cohort)
    path = tmp_path / "other"
    shutil.copytree(cohort, path)
    for file in path.glob("labelsT*/*.nii"):
        write_nifti(file, np.roll(np.asarray(nib.load(file).dataobj), 1, axis=2))
    for one in (cohort, path):
        (one / "labelsTs" / "case_03.nii").write_bytes(b"broken")
        at(one, LONG_AGO)
    sizes = [[file.stat().st_size for file in sorted(one.rglob("*.nii"))] for one in (cohort, path)]
    assert sizes[0] == sizes[1]
    return path


def test_two_prepares_of_other_content_make_no_mixture(cohort, other, out):
    """By names, sizes and times they are the same; a broken case is told when all others are converted."""
    reports = []

    def report(text):
        reports.append(text)
        if len(reports) == 1:
            run(other, out)

    with pytest.raises(InputError, match=r"case_00: was changed while the store was made; run 'prepare' again"):
        run(cohort, out, report=report)
    sources = {name: info.sources for name, info in run(other, out).store.cases.items()}
    assert sources == {name: info.sources for name, info in run(other, out.with_name("alone")).store.cases.items()}


def test_a_prepare_of_files_of_another_time_is_refused_at_once(cohort, other, out):
    at(other, LONG_AGO + 1)
    refused = []

    def report(text):
        with pytest.raises(InputError) as caught:
            run(other, out)
        refused.append(str(caught.value))

    run(cohort, out, report=report)
    assert len(refused) == 1
    assert "another prepare is at work there now, with other files" in refused[0]


@pytest.mark.parametrize("links", [False, True])
def test_a_dataset_that_vanishes_leaves_the_store(cohort, out, tmp_path, monkeypatch, links):
    """Also where its files are links to a disk that is not there any more."""
    gone = cohort
    if links:
        gone = cohort.rename(tmp_path / "disk")
        for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (cohort / folder).mkdir(parents=True)
            for file in (gone / folder).iterdir():
                (cohort / folder / file.name).symlink_to(file)
        for name in ("dataset.json", "annotations.csv"):
            shutil.copy(gone / name, cohort / name)
    before, expected = run(cohort, out).store, stored(out)
    real, read = conversion.read_image, []

    def read_image(path, digest):
        read.append(path)
        if len(read) == 3:
            gone.rename(tmp_path / "elsewhere")
        return real(path, digest)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "read_image", read_image)
        with pytest.raises(InputError, match=r"case_02_0000\.nii\.gz: cannot be read .*; see to it and run again"):
            run(cohort, out, force=True)
    assert Store.open(out) == before
    assert not (out / "quarantine.json").exists()
    if links:
        with pytest.raises(InputError, match=r"case_00_0000\.nii\.gz: leads to .*not there, and 7 other files are"):
            run(cohort, out)
    (tmp_path / "elsewhere").rename(gone)
    assert run(cohort, out).kept == 4
    assert stored(out) == expected


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EREMOTEIO, errno.EHOSTDOWN, errno.ECONNRESET])
def test_a_disk_that_goes_is_no_broken_case(cohort, out, monkeypatch, code):
    def failing(path, *arguments):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(nifti, "open", failing, raising=False)
    with pytest.raises(InputError, match=r"case_00_0000\.nii\.gz: cannot be read .*; see to it and run again"):
        run(cohort, out)


def on_another_machine(monkeypatch):
    """Its mount numbers the files otherwise."""
    real = Fingerprint.of
    look = real(Path(__file__))
    monkeypatch.setattr(
        Fingerprint,
        "of",
        lambda path: Fingerprint(**{**vars(real(path)), "inode": real(path).inode + 7, "changed_ns": look.changed_ns}),
    )


def test_a_broken_case_is_known_by_its_content(cohort, out, monkeypatch):
    (cohort / "labelsTr" / "case_01.nii.gz").write_bytes(b"broken")
    assert list(shard(cohort, out).broken) == ["case_01"]
    copy = cohort / "labelsTr" / "copy"
    shutil.copy(cohort / "labelsTr" / "case_01.nii.gz", copy)
    copy.rename(cohort / "labelsTr" / "case_01.nii.gz")  # the same junk under a new inode
    assert list(finished(cohort, out).quarantined) == ["case_01"]
    with monkeypatch.context() as patch:
        on_another_machine(patch)
        assert list(finished(cohort, out).quarantined) == ["case_01"]
    (cohort / "labelsTr" / "case_01.nii.gz").write_bytes(b"other junk")
    with pytest.raises(InputError, match=r"1 of 4 cases are missing or not up to date \(case_01\)"):
        finished(cohort, out)


def test_an_unreadable_source_is_known_to_finish(cohort, out, monkeypatch):
    """Also if the case was converted while it could be read."""
    shard(cohort, out)
    label = cohort / "labelsTr" / "case_01.nii.gz"
    os.utime(label)

    def refusing(path, *arguments):
        if Path(path).name == label.name and Path(path).parent == label.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, *arguments)

    for module in (nifti, files):
        monkeypatch.setattr(module, "open", refusing, raising=False)
    assert list(shard(cohort, out).broken) == ["case_01"]
    done = finished(cohort, out)
    assert list(done.quarantined) == ["case_01"]
    assert "permission denied" in done.quarantined["case_01"]


def test_a_case_that_is_current_again_is_not_called_broken(cohort, out):
    label = cohort / "labelsTr" / "case_01.nii.gz"
    content = label.read_bytes()
    shard(cohort, out)
    for complete in (finished, run):
        label.write_bytes(b"broken")
        shard(cohort, out)
        assert (out / CASES / "case_01" / "broken.json").exists()
        label.write_bytes(content)
        assert complete(cohort, out).quarantined == {}
        assert not (out / CASES / "case_01" / "broken.json").exists()


@pytest.mark.parametrize("options", [{}, {"rehash": True}, None], ids=["plain", "rehash", "finish"])
def test_a_damaged_index_costs_no_conversion(cohort, out, options):
    run(cohort, out)
    expected, index = stored(out), out / "index.json"
    content = index.read_bytes()
    for position in (len(content) // 2, content.index(b'"schema":4') + 9):
        index.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(InputError, match=r"index\.json: damaged .* again with 'smile-fast prepare',"):
            Store.open(out)
        done = finished(cohort, out) if options is None else run(cohort, out, **options)
        assert (done.converted, done.kept) == (0, 4)
        assert stored(out) == expected


def test_a_damaged_index_is_nobodys(cohort, out, tmp_path):
    """Who has no file of its cases does not get the store; nobody, where no case tells."""
    run(cohort, out)
    (out / "index.json").write_bytes(b"{}")
    stranger = make_cohort(tmp_path / "stranger", train=1)
    annotate(stranger)
    write_nifti(stranger / "imagesTr" / "case_00_0000.nii.gz", np.full((20, 24, 8), 30, np.int16))
    edit_label(stranger, "case_00", lambda labels: np.roll(label_map(), 1, axis=0))
    with pytest.raises(InputError, match="made from other files"):
        run(stranger, out)
    for file in out.glob("cases/*/case.json"):
        file.unlink()
    with pytest.raises(InputError, match=r"index\.json: damaged .*no case says of what dataset.*--force'"):
        run(cohort, out)
    assert run(cohort, out, force=True).converted == 4


def test_new_folders_survive_a_crash_of_the_machine(cohort, tmp_path, monkeypatch):
    """Each is flushed into its parent before a case is converted."""
    out, flushed = tmp_path / "new" / "store", []
    real = os.fsync

    def fsync(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    def stop(path, digest):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(conversion, "read_image", stop)
    with pytest.raises(KeyboardInterrupt):
        run(cohort, out)
    assert sorted(flushed) == sorted(map(str, [tmp_path, tmp_path / "new", out, out / CASES]))


def test_a_folder_whose_name_is_no_text(cohort, out):
    strange = Path(os.fsdecode(os.fsencode(cohort.with_name("caf")) + b"\xe9"))
    cohort.rename(strange)
    (strange / "labelsTr" / "case_01.nii.gz").write_bytes(b"broken")
    done = run(strange, out)
    assert list(done.quarantined) == ["case_01"]
    told = read_record(out / "quarantine.json", dict, 4, "")["cases"]["case_01"]
    assert told.startswith(f"{cohort.parent}/caf\\xe9/labelsTr/case_01.nii.gz: ")
