"""Counting the voxels of label maps, with the check that their values mean something."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.supervision.audit import CaseCounts
from smile_runtime.errors import InputError
from smile_runtime.io.nifti import read_labels
from smile_runtime.label_map import VOID
from smile_runtime.progress import progress
from smile_runtime.threads import usable_cpus
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.preprocessing import slice_geometry, slices_view


def check_values(case: RawCase, histogram: NDArray[np.int64], dataset: RawDataset) -> None:
    """Refuse a label map with a value that dataset.json does not name.

    Args:
        case: for the message.
        histogram: [256] voxels of each value.
        dataset: names the organs and the ignore value; 255 is always allowed.

    Raises:
        InputError: such a value occurs.
    """
    allowed = {0, VOID, dataset.ignore, *range(1, len(dataset.organs) + 1)}
    strange = [value for value in np.flatnonzero(histogram).tolist() if value not in allowed]
    if strange:
        raise InputError(
            f"{case.label}: case {case.name} has the label value {', '.join(map(str, strange[:5]))}, but dataset.json "
            f"names 1..{len(dataset.organs)}; correct the label map or dataset.json"
        )


def count_case(case: RawCase, dataset: RawDataset) -> CaseCounts:
    """Read one label map and count its voxels.

    Raises:
        InputError: the file is unreadable or has a value that dataset.json does not name.
    """
    label = read_labels(case.label)
    histograms = slice_histograms(slices_view(label.data, slice_geometry(label.affine, label.data.shape)))  # [D, 256]
    check_values(case, histograms.sum(axis=0), dataset)
    return CaseCounts.of(histograms, len(dataset.organs), dataset.ignore)


def count_cases(dataset: RawDataset, cases: Iterable[RawCase]) -> dict[str, CaseCounts]:
    """Read the label maps of many cases, with progress; a few at a time, so memory stays a few volumes.

    Raises:
        InputError: a label map is broken; the first is described, the others are named.
    """
    cases = list(cases)
    counts: dict[str, CaseCounts] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(min(4, usable_cpus())) as pool:  # inflating releases the GIL
        futures = {case.name: pool.submit(count_case, case, dataset) for case in cases}
        try:
            for name in progress(futures, total=len(futures), label="reading label maps"):
                try:
                    counts[name] = futures[name].result()
                except InputError as error:
                    problems[name] = str(error)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        first, *others = problems
        also = f"; {len(others)} more label maps are broken: {', '.join(others[:5])}" if others else ""
        raise InputError(problems[first] + also)
    return counts
