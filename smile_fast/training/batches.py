"""Training batches: which slices, which patches, read ahead of the step that needs them."""

import math
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile_fast.training.config import TrainConfig
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import PSEUDO_BIT, VOID
from smile_runtime.volume.preprocessing import context_index

AIR = -1024  # HU
_READ_AHEAD = 3  # batches
_SMALLEST = 32  # pixels of a patch, where it follows the bodies
_MULTIPLE = 8  # pixels


@dataclass(frozen=True)
class Batch:
    """One step's input on the host.

    Attributes:
        hu: [N, C, P, Q] int16 HU; outside a slice is air.
        labels: [N, P, Q] uint8 label maps; outside a slice is void.
        cases: [N] int64 index of each image's case (row of the supervision tables).
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    cases: NDArray[np.int64]


class BatchSource:
    """Batches as a pure function of (seed, round, step): any step can be made again, in any order.

    A share of each batch is drawn organ by organ, so that an organ that few slices show is seen as often
    as a large one; the rest is drawn uniformly over all slices. Patches come from within the body's box.

    Args:
        view: what may be seen.
        channels: neighbouring slices per image, odd.
        crop_size: P and Q, pixels. Where air is left out they are no larger than half of the boxes, so that a network
            is trained on as little filling around a body as it sees in production: none.
        batch_size: N.
        organ_share: share of the images drawn because they show an organ.
        seed: of the whole run. round_number: 0 for human labels, t for round t.
        output_stride: of the network. Patches are whole low-resolution pixels: a loss stretches logits over its patch,
            which is what evaluation and the exported file compute only where no such pixel hangs over.
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
    ) -> None:
        self.view, self.channels, self.batch_size = view, channels, batch_size
        self.patch = _patch_size(view, crop_size, output_stride)
        self.organ_share, self.seed, self.round_number = organ_share, seed, round_number
        depths = [len(view.counts[case]) for case in view.cases]
        self._case = np.repeat(np.arange(len(depths)), depths)  # [slices]
        self._slice = np.concatenate([np.arange(depth) for depth in depths])  # [slices]
        counts = np.concatenate([view.counts[case] for case in view.cases])  # [slices, K]
        shown = [np.flatnonzero(counts[:, k]) for k in range(counts.shape[1])]
        self._organs = [(k + 1, slices) for k, slices in enumerate(shown) if len(slices)]

    @classmethod
    def of(cls, config: TrainConfig, view: TrainingView, round_number: int) -> "BatchSource":
        """The batches that a run's settings describe."""
        return cls(
            view,
            channels=config.model.channels,
            crop_size=config.crop_size,
            batch_size=config.batch_size,
            organ_share=config.organ_share,
            seed=config.seed,
            round_number=round_number,
            output_stride=config.model.output_stride,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which as many slices were drawn as there are."""
        return max(1, -(-len(self._case) // self.batch_size))

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = np.random.default_rng([self.seed, self.round_number, step])
        channels = self.channels
        hu = np.full((self.batch_size, channels, *self.patch), AIR, dtype=np.int16)
        labels = np.full((self.batch_size, *self.patch), VOID, dtype=np.uint8)
        cases = np.zeros(self.batch_size, dtype=np.int64)
        for image in range(self.batch_size):
            index, organ = self._draw(rng)
            cases[image] = self._case[index]
            case, z = self.view.cases[cases[image]], int(self._slice[index])
            box = self.view.box(case)
            label = self.view.labels(case, [z])[0][box.rows, box.columns]
            target, source = _patch(label, organ, self.patch, rng)
            labels[image][target] = label[source]
            (context,) = context_index([z], channels, len(self.view.counts[case]))
            hu[image][:, *target] = box.crop(self.view.image(case, context.tolist()))[:, *source]
        return Batch(hu, labels, cases)

    def iterate(self, first: int) -> Generator[Batch]:
        """Batches from step `first` on, without end, read ahead by a thread."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            pending: deque[Future[Batch]] = deque()
            step = first
            while True:
                while len(pending) < _READ_AHEAD:
                    pending.append(pool.submit(self.batch, step))
                    step += 1
                yield pending.popleft().result()

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """A slice, and the organ value that it was drawn for (0 for none)."""
        if self._organs and rng.random() < self.organ_share:
            organ, slices = self._organs[rng.integers(len(self._organs))]
            return int(slices[rng.integers(len(slices))]), organ
        return int(rng.integers(len(self._case))), 0


def _patch_size(view: TrainingView, most: int, output_stride: int) -> tuple[int, int]:
    """Height and width of the patches: at most `most`, and where there are boxes, at most their median.

    The median is rounded up to multiples of 8 and of the output stride. Measured on the demonstration's phantoms (4
    seeds, mean Dice): patches that hold every box cost 0.3 points against training on whole slices, those of the median
    cost nothing.
    """
    if view.body is None:
        return most, most
    extents = np.array([view.box(case).size for case in view.cases])  # [cases, 2]
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
