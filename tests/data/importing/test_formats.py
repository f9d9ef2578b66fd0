"""Scans of every format: their voxels lie at the same places of the body."""

import builtins

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from smile_fast.data.importing.formats import read_drawn, read_scan, scan_stem
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


def test_what_is_no_volume_is_refused(tmp_path):
    sitk.WriteImage(sitk.Image([3, 3, 3, 2], sitk.sitkInt16), str(tmp_path / "four.nrrd"))
    sitk.WriteImage(sitk.Image([3, 3, 3], sitk.sitkVectorInt16, 3), str(tmp_path / "vector.mha"))
    (tmp_path / "text.nrrd").write_text("hello")
    as_itk(np.zeros((9, 9, 9), np.int16), np.eye(4), tmp_path / "cut.mha")
    whole = (tmp_path / "cut.mha").read_bytes()
    (tmp_path / "cut.mha").write_bytes(whole[: len(whole) - 10])
    (tmp_path / "huge.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 90000 90000 90000\nencoding: gzip\nendian: little\n\n123"
    )
    for name, words in {
        "four.nrrd": "has 4 dimensions",
        "vector.mha": "has 3 values a voxel",
        "text.nrrd": "cannot be read",
        "cut.mha": "cannot be read",
        "huge.nrrd": "cut short or its header lies",
        "none.nrrd": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            read_scan(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)


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
