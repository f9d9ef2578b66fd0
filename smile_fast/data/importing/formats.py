"""Scans and label maps in any format that is imported: NIfTI natively, NRRD and MetaImage through SimpleITK."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.importing.itk_headers import ITK_IO, check_itk_header, itk_suffix
from smile_runtime.errors import InputError
from smile_runtime.io.files import check_readable, reason, sha256
from smile_runtime.io.gzip import MAX_RATIO
from smile_runtime.io.nifti import Digest, Volume, read_image, read_labels
from smile_runtime.io.nifti_voxels import HU, Kind, Labels
from smile_runtime.io.scan_files import stem
from smile_runtime.names import normal_name

_READ_BYTES = 2**20  # hashed at a time
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts to the left and back, NIfTI to the right and front


def scan_stem(name: str) -> str | None:
    """The `normal_name` of a scan file's name without its suffix; None if it is none of a format that is read."""
    whole = normal_name(name)
    suffix = next((suffix for suffix in ITK_IO if whole.lower().endswith(suffix)), None)
    return stem(name) if suffix is None else normal_name(whole[: -len(suffix)])


def is_nifti(path: Path) -> bool:
    """Whether a file is named like a NIfTI file."""
    return stem(path.name) is not None


def read_scan(path: Path, digest: Digest | None = None) -> Volume:
    """Read a CT scan of any format; see `read_image`.

    Raises:
        InputError: as `read_image`; SimpleITK is needed and not there; or the file names another for its voxels.
    """
    return read_image(path, digest) if is_nifti(path) else _read_itk(path, HU(), digest)


def read_drawn(path: Path, digest: Digest | None = None) -> Volume:
    """Read a label map or a mask of any format; see `read_labels`.

    Raises:
        InputError: as `read_labels`; SimpleITK is needed and not there; or the file names another for its voxels.
    """
    return read_labels(path, digest) if is_nifti(path) else _read_itk(path, Labels(), digest)


def _read_itk(path: Path, kind: Kind, digest: Digest | None) -> Volume:
    """Read a file that only ITK knows; it takes names alone, so the file is hashed before and after."""
    if digest is None:
        return _read_file(path, kind)
    before = sha256(path)
    volume = _read_file(path, kind)
    after = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                after.update(block)
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
    if after.hexdigest() != before:
        raise InputError(f"{path}: changed while it was read; repeat the command when nobody writes it")
    return volume


def _read_file(path: Path, kind: Kind) -> Volume:
    try:
        import SimpleITK as sitk
    except ImportError:
        raise InputError(
            f"{path}: {path.suffix} files are read with SimpleITK, which is not installed; pip install "
            "'smile-fast[formats]', or convert the file to .nii.gz"
        ) from None
    size = check_readable(path)
    warnings = check_itk_header(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(ITK_IO[itk_suffix(path)])
    reader.SetFileName(str(path))
    try:
        with _silent_stderr():
            reader.ReadImageInformation()
            _check_header(reader, size, path)
            image = reader.Execute()
    except RuntimeError:
        raise InputError(
            f"{path}: cannot be read, cut short or damaged; copy it again, or convert it to .nii.gz"
        ) from None
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
    return Volume(data, _affine(image, path), path, warnings=warnings)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """ITK, and MetaIO and zlib below it, write to the process's stderr what is said in our own words."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
