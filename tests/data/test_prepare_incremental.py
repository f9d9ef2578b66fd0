"""What a second `prepare` reads: nothing that looks as it did, unless its look proves nothing."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.preparing import case_record, conversion, disk_need
from smile_fast.data.preparing.disk_need import check_room, needed_bytes
from smile_fast.data.preparing.fingerprint import Fingerprint
from smile_fast.data.store import CASES, Store
from smile_runtime.errors import InputError
from tests.cohorts import annotate, edit_label, make_cohort, tree, write_nifti

LONG_AGO = 1_000_000_000  # s


def age(cohort):
    """Let a cohort's files be old: nobody waits two seconds for that, and a file's entry cannot be set back."""
    for file in cohort.rglob("*.nii.gz"):
        os.utime(file, (LONG_AGO, LONG_AGO))


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort", train=3, test=1)
    annotate(path)
    age(path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def read(monkeypatch):
    """The names of the source files that are read, hashed or both."""
    found = []
    for module, name in ((conversion, "read_image"), (conversion, "read_labels"), (case_record, "sha256")):
        real = getattr(module, name)

        def spy(path, *arguments, real=real):
            found.append(path.name)
            return real(path, *arguments)

        monkeypatch.setattr(module, name, spy)
    return found


@pytest.fixture
def later(monkeypatch):
    """The first look at a file is long after it was written."""
    real = Fingerprint.of
    monkeypatch.setattr(Fingerprint, "of", lambda path: replace(real(path), looked_ns=real(path).looked_ns + 10**10))


def run(cohort, out, **options):
    silent = dict.fromkeys(("report", "note"), lambda text: None)
    return prepare(RawDataset.open(cohort), out, **{"workers": 1, **silent, **options})


def files_of(*cases):
    return sorted(f"{case}{suffix}.nii.gz" for case in cases for suffix in ("", "_0000"))


def test_kept_cases_are_not_read(cohort, out, read, later):
    run(cohort, out)
    assert sorted(read) == files_of("case_00", "case_01", "case_02", "case_03")
    read.clear()
    before = tree(out)
    assert run(cohort, out).kept == 4
    assert read == []
    assert tree(out) == before


def test_new_cases_are_all_that_is_read(cohort, out, read, later):
    run(cohort, out)
    read.clear()
    for folder, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        shutil.copy(cohort / folder / f"case_00{suffix}.nii.gz", cohort / folder / f"case_07{suffix}.nii.gz")
    (cohort / "dataset.json").write_text(
        (cohort / "dataset.json").read_text().replace('"numTraining": 3', '"numTraining": 4')
    )
    annotate(cohort)
    done = run(cohort, out)
    assert (done.converted, done.kept) == (1, 4)
    assert sorted(read) == files_of("case_07")


def test_a_changed_file_a_changed_declaration_and_a_removed_case(cohort, out, read, later):
    run(cohort, out)
    read.clear()
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))
    for file in cohort.glob("*Ts/case_03*"):
        file.unlink()
    annotate(cohort, {("case_02", "liver"): "missing"})
    done = run(cohort, out)
    assert (done.converted, done.kept, list(done.store.cases)) == (2, 1, ["case_00", "case_01", "case_02"])
    assert sorted(set(read)) == files_of("case_01", "case_02")
    assert sorted(folder.name for folder in (out / CASES).iterdir()) == ["case_00", "case_01", "case_02"]


def test_a_file_that_only_looks_new_is_hashed_once(cohort, out, read, later):
    run(cohort, out)
    read.clear()
    os.utime(cohort / "labelsTr" / "case_01.nii.gz")
    for expected in (["case_01.nii.gz"], []):
        assert run(cohort, out).kept == 4
        assert read == expected
        read.clear()


def test_a_file_that_was_written_just_before_it_was_read_is_hashed_again(cohort, out, read, monkeypatch):
    """It may have been written once more at the same time, by its file system's clock."""
    run(cohort, out)
    read.clear()
    path = cohort / "labelsTr" / "case_01.nii.gz"
    looks = {file: Fingerprint.of(file) for file in cohort.rglob("*.nii.gz")}
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))  # of the same size, with a wrong checksum
    monkeypatch.setattr(Fingerprint, "of", looks.__getitem__)
    done = run(cohort, out)
    assert list(done.quarantined) == ["case_01"]
    assert "case_01.nii.gz" in read


def test_what_looks_unchanged_is_trusted_until_rehash(cohort, out, read, later):
    run(cohort, out)
    path = cohort / "labelsTr" / "case_01.nii.gz"
    looks, content = Fingerprint.of(path), path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    real = Fingerprint.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fingerprint, "of", lambda file: looks if file == path else real(file))
        assert run(cohort, out).quarantined == {}
        assert list(run(cohort, out, rehash=True).quarantined) == ["case_01"]


@pytest.mark.parametrize("field", ["size", "modified_ns", "changed_ns", "inode"])
def test_a_fingerprint_tells_what_changed(field):
    look = Fingerprint(5, 10**10, 10**10, 7, 2 * 10**10)
    assert look.vouches_for(replace(look, looked_ns=9 * 10**10))
    assert not look.vouches_for(replace(look, **{field: getattr(look, field) + 1}))


@pytest.mark.parametrize("age_ns", [-(10**9), 0, 10**9])
def test_a_young_file_proves_nothing(age_ns):
    look = Fingerprint(5, 10**10, 10**10, 7, 10**10 + age_ns)
    assert look.looks_like(look)
    assert not look.vouches_for(look)


def test_a_store_that_cannot_fit_is_refused_before_anything_is_converted(cohort, out, read, monkeypatch):
    cases = RawDataset.open(cohort).cases
    needed = needed_bytes(cases)
    monkeypatch.setattr(disk_need, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(InputError, match=r"store: 4 cases to convert take about .* MB, and .* MB are free there; free"):
        run(cohort, out)
    assert read == []
    monkeypatch.setattr(disk_need, "free_bytes", lambda folder: needed)
    notes = []
    assert run(cohort, out, note=notes.append).converted == 4
    assert notes == [check_room(out, list(cases))]
    monkeypatch.setattr(disk_need, "free_bytes", lambda folder: 0)
    assert run(cohort, out).kept == 4  # what is there needs no room, even if it has to be read again
    edit_label(cohort, "case_01", lambda labels: labels[..., ::-1] * (np.arange(20) % 3 > 0)[:, None, None])
    with pytest.raises(InputError, match="store: 1 cases to convert"):
        run(cohort, out)


def test_the_estimate_is_not_below_what_is_taken(cohort, out):
    rng = np.random.default_rng(1)
    shape = (64, 64, 20)
    for name in ("case_00", "case_01", "case_02"):
        noise = rng.normal(0, 30, shape).astype(np.int16)
        write_nifti(cohort / "imagesTr" / f"{name}_0000.nii.gz", noise - 500)
        write_nifti(cohort / "labelsTr" / f"{name}.nii.gz", (noise > 60).astype(np.uint8))
    needed = needed_bytes(RawDataset.open(cohort).cases)
    run(cohort, out)
    taken = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert taken <= needed <= 4 * taken
    assert len(Store.open(out).cases) == 4
