"""Scans of every format: their voxels lie at the same places of the body."""

import builtins

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from smile_fast.data.importing.formats import read_drawn, read_scan, scan_stem
from smile_fast.data.importing.itk_headers import NO_DIRECTIONS
from smile_runtime.errors import InputError
from tests.tolerances import FLOAT32_GEOMETRY

OBLIQUE = np.array(
    [[0.0, -1.4, 0.3, 12.0], [-0.7, 0.1, 0.2, -30.0], [0.05, 0.2, 2.9, 41.0], [0, 0, 0, 1.0]]
)  # axes turned, flipped and tilted; RAS


def rigid(affine):
    """The nearest affine without shear, which NRRD and MetaImage want."""
    u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    found = affine.copy()
    found[:3, :3] = (u @ v) * np.linalg.norm(affine[:3, :3], axis=0)
    return found


AFFINES = {"straight": np.diag([1.5, 1.5, 3, 1.0]), "flipped": np.diag([-1.5, 1.5, -3, 1.0]), "oblique": rigid(OBLIQUE)}


def as_itk(data, affine, path):
    """Write a volume [X, Y, Z] whose affine is RAS the way ITK sees it: LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = np.diag([-1, -1, 1, 1.0]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii", ".nii.gz"])
def test_a_landmark_lies_where_it_was(tmp_path, affine, suffix):
    data = np.full((7, 5, 4), -1000, np.int16)
    data[5, 1, 3] = 321
    path = tmp_path / f"scan{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nib.Nifti1Image(data, affine), path)
    else:
        as_itk(data, affine, path)
    read = read_scan(path)
    np.testing.assert_array_equal(read.data, data)
    assert read.data.dtype == np.int16
    (place,) = np.argwhere(read.data == 321)
    np.testing.assert_allclose((read.affine @ [*place, 1])[:3], (affine @ [5, 1, 3, 1])[:3], **FLOAT32_GEOMETRY)
    # What ITK itself says of the voxel, from the left to the right and from back to front.
    of_itk = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint([5, 1, 3])
    np.testing.assert_allclose((read.affine @ [*place, 1])[:3], of_itk * np.array([-1, -1, 1]), **FLOAT32_GEOMETRY)


def test_labels_are_whole_numbers_whatever_their_type(tmp_path):
    labels = np.zeros((4, 4, 4), np.float32)
    labels[1, 2, 3] = 7
    as_itk(labels, np.eye(4), tmp_path / "labels.nrrd")
    assert read_drawn(tmp_path / "labels.nrrd").data[1, 2, 3] == 7
    labels[0, 0, 1] = 0.5
    as_itk(labels, np.eye(4), tmp_path / "labels.mha")
    with pytest.raises(InputError, match=r"labels.mha: has label value 0.5 at \(0, 0, 1\), which is no whole number"):
        read_drawn(tmp_path / "labels.mha")


def test_nan_is_refused_with_its_place(tmp_path):
    data = np.zeros((4, 4, 4), np.float32)
    data[2, 1, 0] = np.nan
    as_itk(data, np.eye(4), tmp_path / "scan.nrrd")
    with pytest.raises(InputError, match=r"NaN or infinite voxel at \(2, 1, 0\)"):
        read_scan(tmp_path / "scan.nrrd")


def test_what_is_no_volume_is_refused(tmp_path, capfd):
    sitk.WriteImage(sitk.Image([3, 3, 3, 2], sitk.sitkInt16), str(tmp_path / "four.nrrd"))
    sitk.WriteImage(sitk.Image([3, 3, 3], sitk.sitkVectorInt16, 3), str(tmp_path / "vector.mha"))
    for suffix in (".nrrd", ".mha"):
        (tmp_path / f"text{suffix}").write_text("hello")
        cut = tmp_path / f"cut{suffix}"
        as_itk(np.zeros((9, 9, 9), np.int16), np.eye(4), cut)
        cut.write_bytes(cut.read_bytes()[:-10])
    (tmp_path / "huge.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 90000 90000 90000\nencoding: gzip\nendian: little\n\n123"
    )
    for name, words in {
        "four.nrrd": "has 4 dimensions",
        "vector.mha": "has 3 values a voxel",
        "text.nrrd": "cannot be read, it has no whole NRRD header",
        "text.mha": "cannot be read, it has no whole MetaImage header",
        "cut.mha": "cannot be read, cut short or damaged; copy it again",
        "cut.nrrd": "cannot be read, cut short or damaged; copy it again",
        "huge.nrrd": "cut short or its header lies",
        "none.nrrd": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            read_scan(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # nothing of ITK's own


NRRD = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 3 3 3\nencoding: raw\n"
META = b"ObjectType = Image\nNDims = 3\nDimSize = 3 3 3\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nrrd", NRRD + b"data file: %b\n"),
        ("a.nrrd", NRRD + b"data file: %b\n\n" + bytes(27)),
        ("a.nrrd", NRRD + b"DataFile:%b\r\n\r\n"),
        ("a.nrrd", NRRD + b"Data File: LIST\n%b\n\n"),
        ("a.nrrd", NRRD + b"content: x\r\rdatafile: %b\n\n"),
        ("a.NRRD", NRRD + b"DATA FILE: secret%%d.raw 1 3 1\n"),
        ("a.mha", META + b"ElementDataFile = %b\n"),
        ("a.mha", META + b"ElementDataFile = LIST\n%b\n"),
        ("a.mha", META + b"ElementDataFile = secret%%d.raw 1 3 1\n"),
        ("a.mha", META + b"elementdatafile = LOCAL\nElementDataFile = %b\n"),
        ("a.mha", META + b"Comment = \rElementDataFile = LOCAL\nElementDataFile = %b\n"),
        ("a.mha", META + b"ElementDataFile = LOCAL %b\n"),
    ],
)
def test_voxels_in_another_file_are_refused(tmp_path, name, content):
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(27)))
    path = tmp_path / name
    path.write_bytes(content.replace(b"%b", bytes(secret)).replace(b"%%", b"%"))
    for read in (read_scan, read_drawn):
        with pytest.raises(InputError, match=r"another file .* \.nhdr and \.mhd") as error:
            read(path)
        assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.nrrd", NRRD + b"\n", False),
        ("a.nrrd", NRRD + b"spacings: 1 1 2\n\n", False),
        ("a.nrrd", NRRD + b"space dimension: 3\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n\n", False),
        ("a.nrrd", NRRD + b"space: scanner-xyz\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n\n", False),
        ("a.nrrd", NRRD + b"space: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n\n", True),
        ("a.mha", META + b"ElementDataFile = LOCAL\n", False),
        ("a.mha", META + b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = Local\n", True),
    ],
)
def test_a_header_that_does_not_say_how_it_lies_is_warned_of(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_bytes(content + bytes(range(27)))
    read = read_drawn(path)
    np.testing.assert_array_equal(read.data.ravel(order="F"), range(27))
    assert read.warnings == (() if told else (NO_DIRECTIONS,))


def test_another_format_under_the_name_is_refused(tmp_path):
    as_itk(np.zeros((3, 3, 3), np.int16), np.eye(4), tmp_path / "scan.nrrd")
    (tmp_path / "scan.nrrd").rename(tmp_path / "scan.mha")
    with pytest.raises(InputError, match="no whole MetaImage header"):
        read_scan(tmp_path / "scan.mha")


def test_where_simpleitk_is_missing_it_is_said(tmp_path, monkeypatch):
    as_itk(np.zeros((3, 3, 3), np.int16), np.eye(4), tmp_path / "scan.nrrd")
    real = builtins.__import__

    def without(name, *rest):
        if name == "SimpleITK":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'smile-fast\[formats\]'"):
        read_scan(tmp_path / "scan.nrrd")


@pytest.mark.parametrize(
    ("name", "stem"), [("a.nii.gz", "a"), ("a.NRRD", "a"), ("b c.mha", "b c"), ("a.nii", "a"), ("a.txt", None)]
)
def test_names_of_scans(name, stem):
    assert scan_stem(name) == stem
