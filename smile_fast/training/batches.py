"""Training batches: which slices, and which patches of them."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smile_fast.models.segmenter import AIR, resample_slices
from smile_fast.training.config import TrainConfig
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import PSEUDO_BIT, VOID
from smile_runtime.sharding import WHOLE, Shard
from smile_runtime.volume.pixel_size import scan_stride
from smile_runtime.volume.preprocessing import context_index

_SMALLEST = 32  # pixels of a patch, where it follows the bodies
_MULTIPLE = 8  # pixels


@dataclass(frozen=True)
class Batch:
    """One step's input on the host: all images of the step, or one rank's share of them.

    Attributes:
        hu: [N, C, P, Q] int16 HU in the network's pixels; outside a slice is air.
        labels: [N, P, Q] uint8 label maps; outside a slice is void.
        cases: [N] int64 index of each image's case (row of the supervision tables).
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    cases: NDArray[np.int64]


class BatchSource:
    """Batches as a pure function of (seed, round, step): any step can be made again, in any order.

    An image is a pure function of these and of its number in the batch, whoever makes it and whatever else he makes.

    A share of each batch is drawn organ by organ, so that an organ that few slices show is seen as often
    as a large one; the rest is drawn uniformly over all slices. Patches come from within the body's box, and are
    brought to the network's pixels as production brings whole slices to them; labels go to the nearest pixel.

    Args:
        view: what may be seen.
        channels: neighbouring slices per image, odd.
        crop_size: P and Q, pixels. Where air is left out they are no larger than half of the boxes, so that a network
            is trained on as little filling around a body as it sees in production: none.
        batch_size: images of a step, over all ranks.
        organ_share: share of the images drawn because they show an organ.
        seed: of the whole run. round_number: 0 for human labels, t for round t.
        output_stride: of the network. Patches are whole low-resolution pixels: a loss stretches logits over its patch,
            which is what evaluation and the exported file compute only where no such pixel hangs over.
        pixel_mm: side of the network's pixels, mm; None for every case's own.
        share: which images of each step are made.
    """

    def __init__(
        self,
        view: TrainingView,
        *,
        channels: int,
        crop_size: int,
        batch_size: int,
        organ_share: float,
        seed: int,
        round_number: int,
        output_stride: int = 8,
        pixel_mm: float | None = None,
        share: Shard = WHOLE,
    ) -> None:
        self.view, self.channels, self.batch_size = view, channels, batch_size
        self.images = share.of(range(batch_size))
        self.output_stride = output_stride
        self._strides = [scan_stride(view.spacing(case)[1:], pixel_mm, output_stride) for case in view.cases]
        self.patch = _patch_size(view, crop_size, output_stride, self._strides)
        self.organ_share, self.seed, self.round_number = organ_share, seed, round_number
        self._depths = [len(view.counts[case]) for case in view.cases]
        # 32 bits each: of 10,000 cases these are most of what a process that makes batches holds.
        self._case = np.repeat(np.arange(len(self._depths), dtype=np.int32), self._depths)  # [slices]
        self._slice = np.concatenate([np.arange(depth, dtype=np.int32) for depth in self._depths])  # [slices]
        shows = np.concatenate([view.counts[case] > 0 for case in view.cases])  # [slices, K]
        shown = [np.flatnonzero(column).astype(np.int32) for column in shows.T]
        self._organs = [(k + 1, slices) for k, slices in enumerate(shown) if len(slices)]

    @classmethod
    def of(cls, config: TrainConfig, view: TrainingView, round_number: int, share: Shard = WHOLE) -> "BatchSource":
        """The batches that a run's settings describe, or a share of each."""
        return cls(
            view,
            channels=config.model.channels,
            crop_size=config.crop_size,
            batch_size=config.batch_size,
            organ_share=config.organ_share,
            seed=config.seed,
            round_number=round_number,
            output_stride=config.model.output_stride,
            pixel_mm=config.model.pixel_mm,
            share=share,
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a process that makes batches needs; the view's numbers of voxels, which would be most of it, stay."""
        view = copy(self.view)
        view.counts = {}
        return {**vars(self), "view": view}

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which as many slices were drawn as there are."""
        return max(1, -(-len(self._case) // self.batch_size))

    def batch(self, step: int) -> Batch:
        """The images of one step."""
        channels, images = self.channels, len(self.images)
        hu = np.full((images, channels, *self.patch), AIR, dtype=np.int16)
        labels = np.full((images, *self.patch), VOID, dtype=np.uint8)
        cases = np.zeros(images, dtype=np.int64)
        for image, number in enumerate(self.images):
            rng = np.random.default_rng([self.seed, self.round_number, step, number])
            index, organ = self._draw(rng)
            cases[image] = self._case[index]
            case, z = self.view.cases[cases[image]], int(self._slice[index])
            box, stride = self.view.box(case), self._strides[cases[image]]
            label = self.view.labels(case, [z])[0][box.rows, box.columns]
            (context,) = context_index([z], channels, self._depths[cases[image]])
            slices = box.crop(self.view.image(case, context.tolist()))
            if stride == self.output_stride:
                target, source = _patch(label, organ, self.patch, rng)
                labels[image][target] = label[source]
                hu[image][:, *target] = slices[:, *source]
            else:
                hu[image], labels[image] = self._resampled(slices, label, organ, stride, rng)
        return Batch(hu, labels, cases)

    def _resampled(
        self,
        slices: NDArray[np.int16],  # [C, H, W]
        label: NDArray[np.uint8],  # [H, W]
        organ: int,
        stride: int,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:  # [C, P, Q], [P, Q]
        """A patch of a case whose pixels are not the network's."""
        height, width = (size // self.output_stride * stride for size in self.patch)
        target, source = _patch(label, organ, (height, width), rng)
        hu = np.full((len(slices), height, width), AIR, dtype=np.int16)
        drawn = np.full((height, width), VOID, dtype=np.uint8)
        hu[:, *target], drawn[target] = slices[:, *source], label[source]
        seen = resample_slices(torch.from_numpy(hu[None]), stride, self.output_stride)[0].round().to(torch.int16)
        rows, columns = (_nearest(size, stride, self.output_stride, rng) for size in self.patch)
        return seen.numpy(), drawn[np.ix_(rows, columns)]

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """A slice, and the organ value that it was drawn for (0 for none)."""
        if self._organs and rng.random() < self.organ_share:
            organ, slices = self._organs[rng.integers(len(self._organs))]
            return int(slices[rng.integers(len(slices))]), organ
        return int(rng.integers(len(self._case))), 0


def _nearest(size: int, stride: int, output_stride: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which pixel of a scan lies nearest to each of `size` pixels of the network, [size].

    Where a centre lies between two pixels, the same neighbour is taken all along a patch, at random: always taking the
    same one would move all labels of a case.
    """
    centre, unit = (2 * np.arange(size) + 1) * stride, 2 * output_stride  # in units of the scan's pixels / `unit`
    return centre // unit if rng.integers(2) else -(-centre // unit) - 1


def _patch_size(view: TrainingView, most: int, output_stride: int, strides: Sequence[int]) -> tuple[int, int]:
    """Height and width of the patches in the network's pixels: at most `most`, and at most the boxes' median.

    The median is rounded up to multiples of 8 and of the output stride. Measured on the demonstration's phantoms (4
    seeds, mean Dice): patches that hold every box cost 0.3 points against training on whole slices, those of the median
    cost nothing.
    """
    if view.body is None:
        return most, most
    extents = np.array(
        [
            [-(-size * output_stride // stride) for size in view.box(case).size]
            for case, stride in zip(view.cases, strides, strict=True)
        ]
    )  # [cases, 2]
    step = math.lcm(_MULTIPLE, output_stride)
    height, width = (min(most, max(_SMALLEST, -(-int(extent) // step) * step)) for extent in np.median(extents, axis=0))
    return height, width


def _patch(
    label: NDArray[np.uint8],  # [H, W]
    organ: int,
    patch: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch comes from in the slice and where it goes in the batch.

    A slice that is smaller than the patch lies in its middle. A larger one is cut around a random voxel of
    the organ that it was drawn for, or anywhere.
    """
    centre = (-1, -1)
    if organ:
        rows, columns = np.nonzero((label == organ) | (label == PSEUDO_BIT | organ))
        if len(rows):
            chosen = rng.integers(len(rows))
            centre = (int(rows[chosen]), int(columns[chosen]))
    target, source = [], []
    for extent, middle, size in zip(label.shape, centre, patch, strict=True):
        if extent <= size:
            start = (size - extent) // 2
            target.append(slice(start, start + extent))
            source.append(slice(0, extent))
        else:
            # The organ's voxel may lie anywhere in the middle half of the patch.
            low = rng.integers(extent - size + 1)
            if middle >= 0:
                low = int(np.clip(middle - size // 4 - rng.integers(size // 2 + 1), 0, extent - size))
            target.append(slice(0, size))
            source.append(slice(int(low), int(low) + size))
    return (target[0], target[1]), (source[0], source[1])
