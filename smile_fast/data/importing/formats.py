"""Scans and label maps in any format that is imported: NIfTI natively, NRRD and MetaImage through SimpleITK."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smile_runtime.errors import InputError
from smile_runtime.io.files import check_readable
from smile_runtime.io.gzip import MAX_RATIO
from smile_runtime.io.nifti import Volume, read_image, read_labels
from smile_runtime.io.nifti_voxels import HU, Kind, Labels
from smile_runtime.io.scan_files import stem
from smile_runtime.names import normal_name

ITK_SUFFIXES = (".nrrd", ".mha")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts to the left and back, NIfTI to the right and front


def scan_stem(name: str) -> str | None:
    """The `normal_name` of a scan file's name without its suffix; None if it is none of a format that is read."""
    whole = normal_name(name)
    suffix = next((suffix for suffix in ITK_SUFFIXES if whole.lower().endswith(suffix)), None)
    return stem(name) if suffix is None else normal_name(whole[: -len(suffix)])


def is_nifti(path: Path) -> bool:
    """Whether a file is named like a NIfTI file."""
    return stem(path.name) is not None


def read_scan(path: Path) -> Volume:
    """Read a CT scan of any format; see `read_image`.

    Raises:
        InputError: as `read_image`; or SimpleITK is needed and not there.
    """
    return read_image(path) if is_nifti(path) else _read_itk(path, HU())


def read_drawn(path: Path) -> Volume:
    """Read a label map or a mask of any format; see `read_labels`.

    Raises:
        InputError: as `read_labels`; or SimpleITK is needed and not there.
    """
    return read_labels(path) if is_nifti(path) else _read_itk(path, Labels())


def _read_itk(path: Path, kind: Kind) -> Volume:
    try:
        import SimpleITK as sitk
    except ImportError:
        raise InputError(
            f"{path}: {path.suffix} files are read with SimpleITK, which is not installed; pip install "
            "'smile-fast[formats]', or convert the file to .nii.gz"
        ) from None
    size = check_readable(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what ITK would print is said in our own words
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_header(reader, size, path)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({_last_line(error)}); copy it again, or convert it") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into this machine's memory; free some, or crop the scan") from None
    # [Z, Y, X] in memory is [X, Y, Z] in Fortran order.
    values = sitk.GetArrayViewFromImage(image).reshape(-1)
    shape = image.GetSize()

    def place(n: int) -> str:
        return str(tuple(int(i) for i in np.unravel_index(n, shape, order="F")))

    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(
            f"{path}: has a NaN or infinite voxel at {place(int(np.isfinite(values).argmin()))}; repair the scan"
        )
    data = kind.convert(values, path, place).reshape(shape, order="F")
    return Volume(data, _affine(image, path), path)


def _check_header(reader: Any, size: int, path: Path) -> None:
    """Refuse what is no volume, and what the file cannot hold before memory is taken for it."""
    shape = reader.GetSize()
    if len(shape) != 3:
        raise InputError(f"{path}: has {len(shape)} dimensions; give one volume in three dimensions")
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{path}: has {reader.GetNumberOfComponents()} values a voxel; give a volume with one")
    if math.prod(shape) > MAX_RATIO * size:
        text = " x ".join(map(str, shape))
        raise InputError(f"{path}: cut short or its header lies, {size} bytes cannot hold {text} voxels; copy it again")


def _affine(image: Any, path: Path) -> NDArray[np.float64]:  # [4, 4]
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    if not np.isfinite(lps).all() or abs(np.linalg.det(lps[:3, :3])) < 1e-9:
        raise InputError(f"{path}: has a geometry that is none (spacing, directions or origin); repair its header")
    return np.asarray(_LPS_TO_RAS @ lps)


def _last_line(error: Exception) -> str:
    """What ITK has to say, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given").rpartition("): ")[2][:200]
