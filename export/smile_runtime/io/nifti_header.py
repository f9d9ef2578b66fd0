"""Read a NIfTI header as a claim that has to be checked, not as a fact."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from smile_runtime.errors import InputError, first_line
from smile_runtime.io.nifti_geometry import UNITS_MM, ContradictoryError, header_geometry, length_unit

SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # sizeof_hdr, the first field, is that of the version
_MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
MAX_BYTES = 540 + 4  # the longest header and its extension flag

_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_OTHER_TYPES = {
    1: "1-bit",
    32: "complex",
    128: "RGB",
    1536: "float128",
    1792: "complex",
    2048: "complex",
    2304: "RGBA",
}

_MAX_VOXELS = 2**32  # four times a 1024 x 1024 x 1024 volume
_MAX_OFFSET = 16 * 2**20  # bytes of header extensions: 50 ms of inflating on the word of a header
_MAX_SPACING = 1000.0  # mm
_MIN_SPACING = 1e-4  # mm
_MIN_DIRECTION_SINGULAR_VALUE = 1e-3  # of the affine's unit columns: 0 when two axes coincide


@dataclass(frozen=True)
class Header:
    """The checked claims of a NIfTI header.

    Attributes:
        shape: (X, Y, Z) voxels.
        dtype: Of the stored values, with the file's byte order.
        offset: Byte at which the voxels begin.
        slope: Stored value to HU: value * slope + intercept.
        intercept: See ``slope``.
        affine: [4, 4] float64, finite and invertible.
        nifti: The header itself, to copy qform, sform and units from.
        warnings: What has to be known of the affine.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: npt.NDArray[np.float64]
    nifti: nib.Nifti1Header
    warnings: tuple[str, ...]

    @property
    def voxel_bytes(self) -> int:
        """Bytes that the voxels take, computed without overflow."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.dtype.itemsize

    @property
    def slice_bytes(self) -> int:
        """Bytes of one step along the last axis."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        """Whether stored values are not the values themselves."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def parse_header(
    start: bytes,
    path: Path,
) -> Header:
    """Check the first bytes of a decompressed NIfTI file.

    Args:
        start: At least the first `MAX_BYTES` bytes of the file, or all of it if it is shorter.
        path: Its name, for messages.

    Returns:
        The header's claims; nothing is known yet about the bytes that should follow.

    Raises:
        InputError: This is no single-file NIfTI, or its claims are not those of a three-dimensional scan.
    """
    nifti = _unpack(start, path)
    shape = _shape(nifti, path)
    dtype = _dtype(nifti, path)
    offset = _offset(nifti, path)
    slope, intercept = float(nifti["scl_slope"]), float(nifti["scl_inter"])
    if slope == 0.0 or np.isnan(slope):  # the standard's way and that of many writers to say: not scaled
        slope, intercept = 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise InputError(f"{path}: scales its voxels by {slope} and {intercept}; make scl_slope and scl_inter finite")
    affine, warnings = _geometry(nifti, path)
    return Header(shape, dtype, offset, slope, intercept, affine, nifti, warnings)


def _unpack(start: bytes, path: Path) -> nib.Nifti1Header:
    for order in "<>":
        size = struct.unpack(order + "i", start[:4])[0] if len(start) >= 4 else 0
        if size not in SIZES:
            continue
        if len(start) < size:
            break
        nifti = SIZES[size](start[:size], endianness=order, check=False)
        magic = start[344:348] if size == 348 else start[4:12]
        if magic[:3] == b"ni1" or magic[:3] == b"ni2":
            raise InputError(f"{path}: the header of a .hdr/.img pair; convert it to one .nii.gz file")
        if magic == _MAGIC[size]:
            return nifti
    raise InputError(f"{path}: not a NIfTI file, its header is missing or damaged; convert it to .nii.gz")


def is_header(start: bytes) -> bool:
    """Whether bytes begin with the size of a NIfTI header, in either byte order."""
    return len(start) >= 4 and any(struct.unpack(order + "i", start[:4])[0] in SIZES for order in "<>")


def stores_uint8(start: bytes, path: Path) -> bool:
    """Whether a NIfTI file of any shape has voxels of uint8, as label maps have and HU cannot.

    Args:
        start: See `parse_header`.
        path: Its name, for messages.

    Raises:
        InputError: This is no single-file NIfTI.
    """
    return _DTYPES.get(int(_unpack(start, path)["datatype"])) == "u1"


def _shape(nifti: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    dim = [int(size) for size in nifti["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError(f"{path}: damaged header, it claims {dim[0]} dimensions; copy it again")
    sizes = dim[1 : dim[0] + 1]
    text = " x ".join(str(size) for size in sizes)
    if min(sizes) < 0:
        raise InputError(f"{path}: damaged header, it claims {text} voxels; copy it again")
    if min(sizes) == 0:
        raise InputError(f"{path}: empty, it has {text} voxels; copy it again")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise InputError(f"{path}: has {len(sizes)} dimensions ({text}); give one three-dimensional volume")
    if sizes[0] * sizes[1] * sizes[2] > _MAX_VOXELS:
        raise InputError(f"{path}: damaged header, it claims {text} voxels, more than any CT scan has; copy it again")
    return sizes[0], sizes[1], sizes[2]


def _dtype(nifti: nib.Nifti1Header, path: Path) -> np.dtype[Any]:
    code, bits = int(nifti["datatype"]), int(nifti["bitpix"])
    if code not in _DTYPES:
        kind = _OTHER_TYPES.get(code, f"unknown (code {code})")
        raise InputError(f"{path}: has {kind} voxels; give integers or real numbers")
    dtype: np.dtype[Any] = np.dtype(nifti.endianness + _DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise InputError(f"{path}: damaged header, {bits} bits per voxel do not fit data type {code}; copy it again")
    return dtype


def _offset(nifti: nib.Nifti1Header, path: Path) -> int:
    smallest = int(nifti["sizeof_hdr"]) + 4
    offset = float(nifti["vox_offset"])
    if offset == 0.0:  # some writers leave it to the reader
        return smallest
    if not (smallest <= offset <= _MAX_OFFSET and offset == int(offset)):
        raise InputError(f"{path}: damaged header, its voxels cannot begin at byte {offset:g}; copy it again")
    return int(offset)


def _geometry(nifti: nib.Nifti1Header, path: Path) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    pixdim = nifti["pixdim"]
    used = [*pixdim[1:4]]
    if nifti["sform_code"] != 0:
        used += [*nifti["srow_x"], *nifti["srow_y"], *nifti["srow_z"]]
    elif nifti["qform_code"] != 0:
        used += [nifti[f"quatern_{axis}"] for axis in "bcd"] + [nifti[f"qoffset_{axis}"] for axis in "xyz"]
    if not np.isfinite(np.asarray(used, dtype=np.float64)).all():
        raise InputError(f"{path}: damaged header, NaN or infinite numbers in its affine; copy it again")
    # As nibabel repairs what it loads; pixdim[0] has only to say whether the third axis is flipped.
    pixdim[0] = -1.0 if pixdim[0] == -1.0 else 1.0
    pixdim[1:4] = np.abs(pixdim[1:4])
    if length_unit(nifti) not in UNITS_MM:
        raise InputError(
            f"{path}: damaged header, its unit of length is unknown (code {length_unit(nifti)}); repair xyzt_units"
        )
    try:
        affine, warnings = header_geometry(nifti)
    except ContradictoryError as error:
        raise InputError(f"{path}: {error}; convert it from DICOM again") from error
    except (ValueError, HeaderDataError) as error:
        raise InputError(
            f"{path}: damaged header, its orientation cannot be used ({first_line(error)}); copy it again"
        ) from error
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing >= _MIN_SPACING) & (spacing <= _MAX_SPACING)).all():
        text = " x ".join(f"{size:g}" for size in spacing)
        raise InputError(f"{path}: damaged header, its affine makes voxels of {text} mm; copy it again")
    if np.linalg.svd(affine[:3, :3] / spacing, compute_uv=False)[-1] < _MIN_DIRECTION_SINGULAR_VALUE:
        raise InputError(f"{path}: damaged header, its affine cannot be inverted; copy it again")
    return affine, warnings
