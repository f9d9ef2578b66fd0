"""The trivial baseline: the best HU window of each organ, found on training cases and scored on test cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.label_grid import labels_on_image
from smile_fast.supervision.overlap import dice
from smile_runtime.errors import InputError
from smile_runtime.io.nifti import read_image, read_labels
from smile_runtime.volume.padding import padding_to_air
from smile_runtime.volume.preprocessing import slice_geometry, slices_view

# Windows start and end on multiples of 2 HU within soft tissue; what lies outside falls into the end bins.
_LOW, _HIGH, _STEP = -300, 500, 2
_BINS = (_HIGH - _LOW) // _STEP


@dataclass(frozen=True)
class WindowScore:
    """The best window of one organ.

    Attributes:
        dice: mean Dice over the test cases that have the organ.
        low, high: the window, HU; the lowest and highest of the range stand for "no limit".
        smoothed: whether a 3x3x3 mean filter went before.
    """

    dice: float
    low: int
    high: int
    smoothed: bool


def hu_threshold(dataset: RawDataset) -> dict[str, float]:
    """Dice on the test cases of the best HU window per organ, with or without smoothing, whichever is larger.

    Args:
        dataset: a raw dataset with test cases.

    Raises:
        InputError: there are no test cases, or a case cannot be read.
    """
    return {organ: score.dice for organ, score in best_windows(dataset).items()}


def best_windows(dataset: RawDataset) -> dict[str, WindowScore]:
    """For each organ the window whose mean Dice over the training cases is best, with its Dice on the test cases.

    Args:
        dataset: a raw dataset with test cases.

    Raises:
        InputError: there are no test cases, or a case cannot be read.
    """
    train = [case for case in dataset.cases if case.split == "train"]
    test = [case for case in dataset.cases if case.split == "test"]
    if not train or not test:
        raise InputError(f"{dataset.path}: no test cases to score a window on; add some to imagesTs and labelsTs")
    counts = {split: _histograms(cases, len(dataset.organs)) for split, cases in (("train", train), ("test", test))}
    best = {}
    for k, organ in enumerate(dataset.organs):
        candidates = []
        for smoothed in (False, True):
            low, high = _best_window(counts["train"][:, int(smoothed)], k)
            score = _mean_dice(counts["test"][:, int(smoothed)], k)[low, high]
            candidates.append(WindowScore(float(score), _LOW + _STEP * low, _LOW + _STEP * (high + 1) - 1, smoothed))
        best[organ] = max(candidates, key=lambda score: score.dice)
    return best


def _histograms(cases: Sequence[RawCase], organs: int) -> NDArray[np.int64]:
    """Voxels per HU bin, [case, raw or smoothed, organ value (0 is everything), bin]."""
    result = np.zeros((len(cases), 2, organs + 1, _BINS), np.int64)
    for case, counts in zip(cases, result, strict=True):
        image = read_image(case.image)
        hu, labels = image.data, labels_on_image(case, image, read_labels(case.label))
        padding_to_air(slices_view(hu, slice_geometry(image.affine, hu.shape)))
        smooth = ndimage.uniform_filter(hu.astype(np.float32), 3, mode="nearest")
        for values, histogram in zip((hu, smooth), counts, strict=True):
            bins = np.clip((np.floor(values).astype(np.int64) - _LOW) // _STEP, 0, _BINS - 1)
            joint = np.bincount(
                (np.minimum(labels, organs + 1) * np.int64(_BINS) + bins).ravel(), minlength=(organs + 2) * _BINS
            )
            joint = joint.reshape(organs + 2, _BINS)
            histogram[:] = joint[: organs + 1]
            histogram[0] = joint.sum(0)
    return result


def _best_window(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """First and last bin of the window with the best mean Dice."""
    low, high = np.unravel_index(np.argmax(_mean_dice(counts, k)), (_BINS, _BINS))
    return int(low), int(high)


def _mean_dice(counts: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Dice of every window [first bin, last bin], mean over the cases that hold organ k; 0 where last < first.

    Args:
        counts: [case, organ value, bin].
        k: organ index.
    """
    total = np.zeros((_BINS, _BINS))
    scored = 0
    for everything, organ in counts[:, (0, k + 1)]:
        if not organ.any():
            continue
        scored += 1
        # Voxels of a window = difference of two cumulative counts.
        inside = [np.cumsum(h)[None, :] - (np.cumsum(h) - h)[:, None] for h in (everything, organ)]
        total += dice(inside[1], inside[0], organ.sum())
    return np.triu(total) / max(scored, 1)
