"""What a case becomes in the store: read, checked, in slices order, with all that is counted once and for all."""

import errno
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.annotations import FILE_NAME
from smile_fast.data.case_info import CaseInfo, StoredBox, gather_counts
from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.label_grid import labels_on_image
from smile_fast.data.voxel_counts import check_values
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.io.nifti import read_image, read_labels
from smile_runtime.label_map import VOID
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.hounsfield import range_hu, range_warning
from smile_runtime.volume.padding import Padding, padding_to_air
from smile_runtime.volume.preprocessing import BodyRule, body_box, canonical_affine, turn_into_slices

# What says nothing of a file, but of the machine, its disks and its network, now. A file that is not there any more is
# of these: it was when the call began.
_SHORTAGES = {
    getattr(errno, name)
    for name in (
        *("ENOMEM", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "EAGAIN", "EINTR", "ENOBUFS", "ENOLCK"),
        *("EIO", "EREMOTEIO", "ENODEV", "ENXIO", "ENOMEDIUM", "EUCLEAN", "EBADMSG", "EBUSY"),
        *("ENOENT", "ENOTDIR", "ESTALE", "ENOTCONN", "ESHUTDOWN", "EPIPE", "ETIMEDOUT", "ETIME", "EPROTO", "ECOMM"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENONET", "EREMOTE", "ENOLINK"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EREMCHG", "EKEYEXPIRED", "EKEYREVOKED", "ENOKEY"),
    )
}


@dataclass(frozen=True)
class Converted:
    """A case as the store will hold it.

    Attributes:
        image: [D, H, W] int16 HU.
        labels: [D, H, W] uint8.
        info: its entry of the index, without the checksums of arrays: nothing is written yet.
        range_hu: the lowest and the highest measured value.
        padding: what was read as air.
        warnings: what has to be known of its values and headers.
    """

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    info: CaseInfo
    range_hu: tuple[int, int]
    padding: Padding | None
    warnings: tuple[str, ...]


def convert(case: RawCase, dataset: RawDataset, states: dict[str, State]) -> Converted:
    """Read and check a case, and bring it into slices order.

    Args:
        case: the case.
        dataset: names organs and the ignore value.
        states: organ -> state of the case.

    Raises:
        InputError: the case is broken; see `refuse_shortage` for what else it may mean.
    """
    of_image, of_label = hashlib.sha256(), hashlib.sha256()
    image, label = read_image(case.image, of_image), read_labels(case.label, of_label)
    labels, _ = turn_into_slices(labels_on_image(case, image, label), image.affine)
    warnings = (*image.warnings, *(f"label map: {one}" for one in label.warnings if one not in image.warnings))
    del label
    shape = image.data.shape
    slices, geometry = turn_into_slices(image.data, image.affine)
    image = replace(image, data=slices)  # the file's own order of axes is not needed any more
    padding = padding_to_air(slices)
    values = range_hu(image, padding)
    histograms = slice_histograms(labels)
    check_values(case, histograms.sum(axis=0), dataset)
    visible = histograms[:, 1 : len(dataset.organs) + 1].copy()  # [D, K]
    for counts, (organ, state) in zip(visible.T, states.items(), strict=True):
        if state is State.HIDDEN:
            counts[:] = 0
        if state is State.ABSENT and counts.any():
            raise InputError(
                f"{case.label}: case {case.name} has {int(counts.sum())} voxels of {organ}, which is declared absent; "
                f"correct {FILE_NAME} or the label map"
            )
    if dataset.ignore is not None:
        labels[labels == dataset.ignore] = VOID
    depth, height, width = slices.shape
    rows = canonical_affine(image.affine, shape).tolist()
    z, y, x = geometry.spacing
    info = CaseInfo(
        name=case.name,
        split=case.split,
        shape=(depth, height, width),
        spacing=(float(z), float(y), float(x)),
        affine=tuple((a, b, c, d) for a, b, c, d in rows),
        states=states,
        runs=gather_counts(visible, dataset.organs),
        sources={"image": of_image.hexdigest(), "label": of_label.hexdigest()},
        arrays={},
        body=StoredBox.of(body_box(slices, geometry.spacing, BodyRule()), BodyRule()),
    )
    return Converted(slices, labels, info, values, padding, tuple(filter(None, (range_warning(values), *warnings))))


def refuse_shortage(error: Exception, where: Path) -> None:
    """Raise what is the machine's and not the file's: such a case is not broken.

    Args:
        error: what came of reading or writing.
        where: the file or folder, if the error does not name one.

    Raises:
        MemoryError: there was too little of it.
        InputError: the disk, the network or the number of open files; one sentence.
    """
    cause = error.__cause__ if isinstance(error, InputError) else error
    if isinstance(cause, MemoryError):
        raise MemoryError(str(cause)) from None
    if isinstance(cause, OSError) and cause.errno in _SHORTAGES:
        about, what = f"{where}", reason(cause)
        if isinstance(error, InputError):  # its advice would be another
            about, _, what = str(error).rpartition("; ")[0].partition(": ")
        raise InputError(
            f"{about}: {what}; see to it and run again, the store stays as it was, finished cases are kept"
        )
