"""Which pixels a network sees of a scan: the one rule by which training and production bring slices to its pixel size.

A pixel of the logits covers a whole number of a scan's pixels, its *scan stride*, so that label maps and selections
are computed on the scan's own grid, exactly. What the network sees is then within 1 / (2 scan strides) of its pixel
size: 6% at output stride 8 for scans whose pixels are no larger. A scan whose pixels are that near to it is not
resampled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST_SCAN_STRIDE = 64  # what the kernels take, and 8 times finer than the network at output stride 8
_MOST_ENLARGED = 4  # times finer than the scan: a wrong header must not ask for a slice of 100 million pixels

PIXEL_SIZES = (0.01, 100.0)  # mm, of a network

Range = tuple[float, float]


def scan_stride(pixel_spacing: Sequence[float], pixel_size: float | None, output_stride: int) -> int:
    """Pixels of a scan, on either axis of a slice, per pixel of the logits.

    The exported graph computes the same from the same numbers.

    Args:
        pixel_spacing: (y, x) of the scan, mm.
        pixel_size: of the network, mm; None for one that takes every scan's own pixels.
        output_stride: pixels of the network per pixel of its logits.

    Returns:
        `output_stride` where the scan's pixels are the network's; else the nearest whole number, at least
        output_stride / 4 and at most `LARGEST_SCAN_STRIDE`.
    """
    if pixel_size is None:
        return output_stride
    smallest, largest = scan_stride_limits(output_stride)
    # Halves go to the even number, as in ONNX.
    return min(max(round(output_stride * pixel_size / _side(pixel_spacing)), smallest), largest)


def scan_stride_limits(output_stride: int) -> tuple[int, int]:
    """The smallest and the largest `scan_stride`."""
    return output_stride // _MOST_ENLARGED, LARGEST_SCAN_STRIDE


def reachable_pixel_sizes(spacings: Sequence[Sequence[float]], output_stride: int) -> Range:
    """From which to which pixel size, mm, all scans of some spacings (z, y, x), mm, can be brought."""
    smallest, largest = scan_stride_limits(output_stride)
    sides = [_side(spacing[1:]) for spacing in spacings]
    return max(sides) * smallest / output_stride, min(sides) * largest / output_stride


def cohort_pixel_size(spacings: Iterable[Sequence[float]]) -> float:
    """The median side of the pixels of some cases, mm to three digits, given their spacings (z, y, x) in mm."""
    sides = sorted(_side(spacing[1:]) for spacing in spacings)
    middle = len(sides) // 2
    median = sides[middle] if len(sides) % 2 else (sides[middle - 1] + sides[middle]) / 2
    return min(max(round(median, 3), PIXEL_SIZES[0]), PIXEL_SIZES[1])


def range_text(lengths: Iterable[float]) -> str:
    """The smallest and the largest length for a reader, three digits each; one number where they do not differ."""
    shortest, *_, longest = (f"{length:.3g}" for length in sorted([*lengths] * 2))
    return shortest if shortest == longest else f"{shortest} to {longest}"


@dataclass(frozen=True)
class PixelSpace:
    """The pixels that a network sees and those of the scans that it was trained on, as a model card records them.

    Attributes:
        pixel_size: mm that slices are brought to; None for a network that takes every scan's own pixels.
        output_stride: Pixels of the network per pixel of its logits.
        trained_pixels: Smallest and largest side of the training scans' pixels, mm.
        trained_slices: Smallest and largest distance of their slices, mm.
        tolerance: Largest relative change of size in training: what lies this far beyond a range was seen all the same.
    """

    pixel_size: float | None
    output_stride: int
    trained_pixels: Range
    trained_slices: Range
    tolerance: float

    def __post_init__(self) -> None:
        """Check every number; a `ValueError` names the first that is wrong."""
        if self.pixel_size is not None and not (
            _is_length(self.pixel_size) and PIXEL_SIZES[0] <= self.pixel_size <= PIXEL_SIZES[1]
        ):
            wanted = "null or a number in {:g}..{:g}".format(*PIXEL_SIZES)
            raise ValueError(f"pixels.pixel_size is {self.pixel_size!r}, {wanted} is wanted")
        if type(self.output_stride) is not int or not _MOST_ENLARGED <= self.output_stride <= LARGEST_SCAN_STRIDE:
            raise ValueError(
                f"pixels.output_stride is {self.output_stride!r}, {_MOST_ENLARGED}..{LARGEST_SCAN_STRIDE} is wanted"
            )
        for name, value in (("trained_pixels", self.trained_pixels), ("trained_slices", self.trained_slices)):
            if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_length, value)):
                raise ValueError(f"pixels.{name} is {value!r}, two positive numbers are wanted")
            if not value[0] <= value[1]:
                raise ValueError(f"pixels.{name} is {list(value)}, smallest <= largest is wanted")
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, (int, float)):
            raise ValueError(f"pixels.tolerance is {self.tolerance!r}, a number is wanted")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"pixels.tolerance is {self.tolerance!r}, a number in [0, 1) is wanted")

    @classmethod
    def of(
        cls, pixel_size: float | None, output_stride: int, spacings: Sequence[Sequence[float]], tolerance: float
    ) -> "PixelSpace":
        """That of a network and of the spacings (z, y, x), mm, of the scans that it was trained on."""
        sides = [side for spacing in spacings for side in spacing[1:]]
        distances = [spacing[0] for spacing in spacings]
        return cls(
            pixel_size, output_stride, (min(sides), max(sides)), (min(distances), max(distances)), float(tolerance)
        )

    @classmethod
    def from_json(cls, entry: object) -> "PixelSpace | None":
        """Read a card's entry: null, or an object of exactly the attributes.

        Raises:
            ValueError: It is something else.
        """
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or set(entry) != set(cls.__dataclass_fields__):
            raise ValueError(f"pixels is neither null nor an object of {', '.join(cls.__dataclass_fields__)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
        return cls(**values)

    def __str__(self) -> str:
        """For a reader."""
        seen = "every scan's own" if self.pixel_size is None else f"brought to {self.pixel_size:g} mm"
        return f"{seen}, trained on scans of {range_text(self.trained_pixels)} mm"

    def scan_stride(self, pixel_spacing: Sequence[float]) -> int:
        """See `scan_stride`; `pixel_spacing` is (y, x) of the scan, mm."""
        return scan_stride(pixel_spacing, self.pixel_size, self.output_stride)

    def warnings(self, spacing: Sequence[float], channels: int) -> list[str]:
        """What is unlike all training scans in a scan: sentences without a subject.

        Args:
            spacing: (z, y, x) of the scan, mm.
            channels: Slices that the network sees at once; a single one has no distance.
        """
        brought = "" if self.pixel_size is None else f", brought to {self.pixel_size:g} mm"
        found = [
            f"pixels of {side:.3g} mm are unlike those of the training, {range_text(self.trained_pixels)} mm{brought}"
            for side in dict.fromkeys(spacing[1:])
            if self._beyond(side, self.trained_pixels)
        ]
        if channels > 1 and self._beyond(spacing[0], self.trained_slices):
            trained = range_text(self.trained_slices)
            found.append(f"slices {spacing[0]:.3g} mm apart are unlike those of the training, {trained} mm")
        return [f"{sentence}; look at the labels before they are used" for sentence in found]

    def _beyond(self, length: float, trained: Range) -> bool:
        # A scan as it would be seen in training: enlarged or reduced by at most the tolerance.
        return not trained[0] * (1 - self.tolerance) <= length <= trained[1] * (1 + self.tolerance)


def _side(pixel_spacing: Sequence[float]) -> float:
    """The side of the square that is as large as a pixel."""
    return math.sqrt(pixel_spacing[0] * pixel_spacing[1])


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
