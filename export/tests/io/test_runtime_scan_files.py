import os
import re

import pytest

from smile_runtime.errors import InputError
from smile_runtime.io.scan_files import by_name, describe_others, is_dicom, list_scans, refuse_dicom, stem
from smile_runtime.names import normal_name

DICOM = b"\0" * 128 + b"DICM"
COMPOSED, DECOMPOSED = "M\u00fcller", "Mu\u0308ller"


@pytest.mark.parametrize(
    "name", [COMPOSED, DECOMPOSED, f" {COMPOSED}", f"{DECOMPOSED}\t", f"\u00a0{DECOMPOSED}\u00a0 "]
)
def test_names_that_look_the_same_are_the_same(name):
    assert normal_name(name) == COMPOSED


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.nii", "a"),
        ("a.nii.gz", "a"),
        ("a.NII.GZ", "a"),
        ("a.Nii.Gz", "a"),
        ("a.NII", "a"),
        (" a .nii.gz", "a"),
        ("a.nii.gz ", "a"),
        ("a.b.nii", "a.b"),
        (".nii", ""),
        ("a.nii.txt", None),
        ("a.gz", None),
        ("anii", None),
    ],
)
def test_stem(name, wanted):
    assert stem(name) == wanted


def test_what_a_folder_of_scans_holds(tmp_path):
    nifti = ["A.NII.GZ", "a b.nii", "c.Nii.gz"]
    foreign = ["d.nrrd", "e.MHA", "f.hdr", "f.img.gz", "g.dcm", "h.nii.zip", "i.nii.gz.gz"]
    for name in [*nifti, *foreign, "notes.txt", "a.json", "j.nii.txt", ".k.nii", ".l.dcm", "a.png"]:
        (tmp_path / name).touch()
    (tmp_path / "IM0001").write_bytes(DICOM)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1").write_bytes(DICOM)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    os.mkfifo(tmp_path / "pipe")
    found, others = list_scans(tmp_path)
    assert [file.name for file in found] == nifti
    assert [entry.name for entry in others] == ["IM0001", *foreign, "series"]
    text = describe_others(tmp_path, others)
    assert text.startswith(
        "holds scans that are no NIfTI files ('IM0001', 'd.nrrd', 'e.MHA', 'f.hdr', 'f.img.gz' and 4 more)"
    )
    assert f"(DICOM with: dcm2niix -z y -o OUT {tmp_path})" in text
    assert "dcm2niix" not in describe_others(tmp_path, others[1:3])


def test_two_files_of_one_name_are_refused_and_told_apart(tmp_path):
    files = [tmp_path / f"{name}.nii.gz" for name in (COMPOSED, DECOMPOSED)]
    with pytest.raises(InputError, match=re.escape(r"'M\xfcller.nii.gz' and 'Mu\u0308ller.nii.gz' would get one name")):
        by_name((stem(file.name), file) for file in files)
    assert by_name([("a", files[0]), ("b", files[1])]) == {"a": files[0], "b": files[1]}


@pytest.mark.parametrize(("depth", "found"), [(0, True), (5, True), (6, False)])
def test_dicom_is_found_as_deep_as_its_converter_looks(tmp_path, depth, found):
    below = tmp_path.joinpath(*"abcdef"[:depth])
    below.mkdir(parents=True, exist_ok=True)
    (below / "slice").write_bytes(DICOM)
    assert is_dicom(tmp_path) is found


@pytest.mark.parametrize(("folders", "found"), [(20, True), (100, False)])
def test_not_every_folder_of_a_disk_is_looked_into(tmp_path, folders, found):
    for number in range(folders):
        (tmp_path / f"{number:03}").mkdir()
    last = next(os.walk(tmp_path))[1][-1]
    (tmp_path / last / "slice").write_bytes(DICOM)
    assert is_dicom(tmp_path) is found


@pytest.mark.parametrize("content", [b"", b"DICM", DICOM[:-1], b"\0" * 129 + b"DICM"])
def test_what_is_no_dicom(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    assert not is_dicom(tmp_path / "a.dcm")
    refuse_dicom(tmp_path)
    refuse_dicom(tmp_path / "missing")
