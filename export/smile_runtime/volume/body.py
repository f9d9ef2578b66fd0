"""Where the body is in a scan: the one rule by which training and production leave the air out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

_BLOCK_MM = 8.0  # three blocks, 24 mm, are thicker than a couch's shell, a blanket or a tube; a child's limb may be too
_MULTIPLE = 8  # pixels: whole pixels of the logits at output stride 8; at 16 the graph itself pads half of one more
_SWEEPS = 32  # in both directions of both axes: scans of patients need 4 or 5, and a maze would take thousands


_Blocks = npt.NDArray[np.bool_]  # [D, h, w]


@dataclass(frozen=True)
class BodyRule:
    """The numbers of `body_box`, as a model card records them.

    Attributes:
        VERSION: Of the algorithm of `body_box`: it rises whenever the box of any scan may change by the same numbers,
            for boxes are stored.
        threshold_hu: A voxel above it is no air, HU.
        margin_mm: What stays around the body, mm.
    """

    VERSION: ClassVar[int] = 1

    threshold_hu: float = -500.0
    margin_mm: float = 5.0

    def __post_init__(self) -> None:
        """Check both numbers; a `ValueError` names the one that is wrong."""
        for name, value, low, high in (
            ("threshold_hu", self.threshold_hu, -1024, 3071),
            ("margin_mm", self.margin_mm, 0, 1000),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"body.{name} is {value!r}, a number in {low}..{high} is wanted")

    @classmethod
    def from_json(cls, entry: object) -> "BodyRule | None":
        """Read a card's entry: null, or an object of exactly the two numbers.

        Raises:
            ValueError: It is something else.
        """
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or set(entry) != {"threshold_hu", "margin_mm"}:
            raise ValueError("body is neither null nor an object of threshold_hu and margin_mm")
        return cls(**entry)


@dataclass(frozen=True)
class BodyBox:
    """The part of a volume in slices order that is worth computing.

    Attributes:
        depth: Number of slices of the volume.
        slices: Numbers of those that show the body, ascending; a scan of air has none.
        rows: Of every one of those slices.
        columns: Of every one of those slices.
    """

    depth: int
    slices: tuple[int, ...]
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def pixels(self) -> int:
        """Pixels of all slices together."""
        return len(self.slices) * self.size[0] * self.size[1]

    def crop(
        self,
        slices: npt.NDArray[Any],  # [D, H, W]
    ) -> npt.NDArray[Any]:
        """All slices [D, h, w], cut to rows and columns: a view."""
        return slices[:, self.rows, self.columns]

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "slices": len(self.slices),
            "of": self.depth,
            "rows": [self.rows.start, self.rows.stop],
            "columns": [self.columns.start, self.columns.stop],
        }


def whole_box(shape: tuple[int, ...]) -> BodyBox:
    """The box that leaves nothing out of a volume [D, H, W]."""
    depth, height, width = shape
    return BodyBox(depth, tuple(range(depth)), slice(0, height), slice(0, width))


def body_box(
    slices: npt.NDArray[np.int16],  # [D, H, W]
    spacing: tuple[float, float, float],
    rule: BodyRule | None,
) -> BodyBox:
    """Find the slices that show the body, and the one box that holds it in all of them.

    A block of 8 mm x 8 mm is dense when at least half of it lies above the threshold. What dense blocks enclose
    (lungs, gas) belongs to them. What is thinner than three blocks then is no body: noise in the air, wires, blankets,
    a couch's shell. A thick couch and whatever else is dense stays in, which costs time. Padding of 0 HU would stay in
    too, and cost Dice: `smile_runtime.volume.padding` makes it air before.

    Args:
        slices: [D, H, W] int16 HU in slices order; any strides.
        spacing: (z, y, x) mm.
        rule: Threshold and margin; None leaves nothing out.

    Returns:
        The box, with the margin around it, its height and width rounded up to a multiple of 8 where the slices are
        that large. Without a body it holds no slice and no pixel.
    """
    if rule is None:
        return whole_box(slices.shape)
    block = _block_size(spacing)
    body = _opened(_filled(_dense_blocks(slices, block, rule.threshold_hu)))  # [D, h, w]
    shown = np.flatnonzero(body.any(axis=(1, 2)))
    if not len(shown):
        return BodyBox(len(slices), (), slice(0, 0), slice(0, 0))
    margins = [math.ceil(rule.margin_mm / step) for step in spacing]
    kept = np.zeros(len(slices), bool)
    for index in shown:
        kept[max(0, index - margins[0]) : index + margins[0] + 1] = True
    rows = _extent(body.any(axis=(0, 2)), block[0], margins[1], slices.shape[1])
    columns = _extent(body.any(axis=(0, 1)), block[1], margins[2], slices.shape[2])
    return BodyBox(len(slices), tuple(np.flatnonzero(kept).tolist()), rows, columns)


def _block_size(spacing: tuple[float, float, float]) -> tuple[int, int]:
    """Rows and columns of a block; at most 255 voxels, so that a byte can count those of one column."""
    rows, columns = (min(255, max(1, round(_BLOCK_MM / step))) for step in spacing[1:])
    return rows, columns


def _dense_blocks(
    slices: npt.NDArray[np.int16],  # [D, H, W]
    block: tuple[int, int],
    threshold: float,
) -> _Blocks:
    """Whether at least half of each block lies above the threshold, [D, h, w]."""
    depth, height, width = slices.shape
    rows, columns = -(-height // block[0]), -(-width // block[1])
    padded = np.zeros((rows * block[0], columns * block[1]), bool)  # one slice, padded to whole blocks
    above = padded[:height, :width]
    area = np.outer(_lengths(height, block[0], rows), _lengths(width, block[1], columns))
    turned = slices.strides[2] < 0
    if turned:  # compared as they lie in memory, four times as fast; blocks are those from the other end
        slices, above, area = slices[:, :, ::-1], padded[:height, -width:], area[:, ::-1]
    limit = np.int16(math.floor(threshold))  # whole numbers compare alike, and int16 needs no conversion
    dense = np.empty((depth, rows, columns), bool)
    for index, hu in enumerate(slices):
        np.greater(hu, limit, out=above)
        columnwise = padded.view(np.uint8).reshape(rows, block[0], -1).sum(axis=1, dtype=np.uint8)  # [h, W]
        count = columnwise.reshape(rows, columns, block[1]).sum(axis=2, dtype=np.int64)  # [h, w]
        np.greater_equal(2 * count, area, out=dense[index])
    return dense[:, :, ::-1] if turned else dense


def _filled(dense: _Blocks) -> _Blocks:
    """Dense blocks and what they enclose within their slice, [D, h, w]: all that no way leads to from the edge.

    A way that winds through more than `_SWEEPS` turns is not followed to its end; what lies there counts as enclosed.
    """
    outside = np.zeros_like(dense)
    outside[:, [0, -1], :] = ~dense[:, [0, -1], :]
    outside[:, :, [0, -1]] = ~dense[:, :, [0, -1]]
    known = -1
    for _ in range(_SWEEPS):
        if known == (known := int(np.count_nonzero(outside))):
            break
        for axis in (1, 2):
            way, free = np.moveaxis(outside, axis, 0), np.moveaxis(~dense, axis, 0)
            for step in (1, -1):  # in both directions: a way spreads through a whole row at a time
                for here, there in pairwise(range(len(way))[::step]):
                    way[there] |= way[here] & free[there]
    return ~outside


def _opened(blocks: _Blocks) -> _Blocks:
    """Morphological opening by 3 x 3 blocks within each slice; beyond the edge its blocks go on."""
    core = blocks
    for axis in (1, 2):
        core = _neighbours(core, axis, np.logical_and)
    for axis in (1, 2):
        core = _neighbours(core, axis, np.logical_or)
    return core & blocks


def _neighbours(blocks: _Blocks, axis: int, combine: Callable[[_Blocks, _Blocks], _Blocks]) -> _Blocks:
    """Each block combined with the one before it and the one behind it along an axis."""
    widths = [(1, 1) if n == axis else (0, 0) for n in range(3)]
    before, here, behind = (
        np.take(np.pad(blocks, widths, mode="edge"), range(n, n + blocks.shape[axis]), axis) for n in range(3)
    )
    return combine(combine(before, here), behind)


def _lengths(extent: int, block: int, blocks: int) -> npt.NDArray[np.int64]:
    """How many pixels of an axis each block covers: the last one may hang over."""
    return np.minimum(block, extent - np.arange(blocks) * block)


def _extent(found: Any, block: int, margin: int, extent: int) -> slice:
    """From the blocks that were found along an axis to pixels, with the margin, rounded up to `_MULTIPLE`."""
    where = np.flatnonzero(found)
    start = max(0, int(where[0]) * block - margin)
    stop = min(extent, (int(where[-1]) + 1) * block + margin)
    missing = -(stop - start) % _MULTIPLE
    stop = min(extent, stop + missing)
    start = max(0, start - (-(stop - start) % _MULTIPLE))
    return slice(start, stop)
