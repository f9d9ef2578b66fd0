"""Where a NIfTI header says that its voxels lie: once, not at all, or twice and differently.

A header has up to three claims: the qform (a rotation, with the voxel sizes of pixdim), the sform (any affine, with
voxel sizes of its own) and, without either, nothing but pixdim. Where they disagree, the geometry is the one that
ITK and so SimpleITK take, with which most label maps are drawn: the sform's directions and place if its code is 1
(scanner), else the qform's, and always the voxel sizes of pixdim.
"""

from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from smile_runtime.io.grids import GRID_TOLERANCE_VOXELS, same_grid

Affine = npt.NDArray[np.float64]  # [4, 4]

UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, which every writer means as mm; m; mm; micrometres
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_ORTHONORMAL = 1e-4  # of the products of unit columns: ITK's

NO_ORIENTATION = (
    "the header does not say how the volume lies (qform and sform codes are 0), so its axes are taken for left, "
    "anterior, superior; check the sides of the organs, or convert it from DICOM again"
)
CONTRADICTORY = (
    "qform, sform and pixdim of the header disagree, and the geometry that SimpleITK takes was taken; check sides and "
    "volumes, or convert it from DICOM again"
)


class ContradictoryError(ValueError):
    """Claims of a header disagree, and none of them can be trusted."""


def header_geometry(nifti: nib.Nifti1Header) -> tuple[Affine, tuple[str, ...]]:
    """The affine of a header whose unit is known, and what has to be known of it.

    Returns:
        [4, 4] voxel index to millimetres; `NO_ORIENTATION`, `CONTRADICTORY`, or nothing.

    Raises:
        ContradictoryError: The header's claims disagree, and none of them can be trusted.
        ValueError, HeaderDataError: What the header says is no affine.
    """
    affine, warnings = _claimed(nifti)
    affine[:3] *= UNITS_MM[length_unit(nifti)]
    return affine, warnings


def length_unit(nifti: nib.Nifti1Header) -> int:
    """The code of a header's unit of length."""
    return int(nifti["xyzt_units"]) & 7  # the other bits are the unit of time


def _claimed(nifti: nib.Nifti1Header) -> tuple[Affine, tuple[str, ...]]:
    """The affine in the header's own unit."""
    if nifti["sform_code"] == 0:
        warnings = () if nifti["qform_code"] != 0 else (NO_ORIENTATION,)
        return np.array(nifti.get_best_affine(), dtype=np.float64), warnings
    sform = np.array(nifti.get_sform(), dtype=np.float64)
    steps, sizes = np.linalg.norm(sform[:3, :3], axis=0), np.abs(np.asarray(nifti["pixdim"][1:4], dtype=np.float64))
    qform = _qform(nifti) if nifti["qform_code"] != 0 else None
    if not steps.all() or _agree(sform, steps, qform, sizes, nifti.get_data_shape()[:3]):
        return sform, ()
    unit = sform[:3, :3] / steps
    is_rigid = bool((np.abs(unit.T @ unit - np.eye(3)) <= _ORTHONORMAL).all())
    if (sizes == 1).all() or (qform is None and not is_rigid):  # 1 mm is what writers leave who do not set it
        raise ContradictoryError("qform, sform and pixdim of the header disagree and none can be trusted")
    if qform is None or (is_rigid and nifti["sform_code"] == _SCANNER):
        sform[:3, :3] = unit * sizes
        return sform, (CONTRADICTORY,)
    return qform, (CONTRADICTORY,)


def _qform(nifti: nib.Nifti1Header) -> Affine | None:
    """The affine of quaternion and pixdim; None where they are none."""
    try:
        qform = np.array(nifti.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError):
        return None
    return qform if np.isfinite(qform).all() and np.linalg.norm(qform[:3, :3], axis=0).all() else None


def _agree(
    sform: Affine,
    steps: npt.NDArray[np.float64],  # [3]
    qform: Affine | None,
    sizes: npt.NDArray[np.float64],  # [3]
    shape: Any,
) -> bool:
    """Whether the sform is the qform, as far as a quaternion can say it: it knows no shear."""
    if qform is not None:
        nearest = nib.Nifti1Header()
        nearest.set_qform(sform)
        return same_grid(qform, nearest.get_qform(), shape)
    if (sizes == 1).all() or not sizes.all():  # nothing was said
        return True
    return bool((np.abs(sizes - steps) * shape <= GRID_TOLERANCE_VOXELS * steps).all())
