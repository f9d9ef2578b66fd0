"""Sources of a cohort: each has a scanner of its own and draws some of the organs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PHASES = ((0.85, 0.1), (0.1, 0.9), (0.02, 0.02))  # portal, arterial, without contrast
_PROPERTIES = 6
_STREAM = 0x736F7572  # keeps a scanner's random numbers apart from those of the cases


@dataclass(frozen=True)
class Scanner:
    """How a source scans; the lengths are factors on those of a phantom without sources.

    Attributes:
        noise: standard deviation, HU.
        blur: point spread in the slice, standard deviation in pixels.
        portal, arterial: shares of a full contrast phase, 0..1.
        pixel: factor on the pixel size; the matrix stays, so the field of view grows with it.
        step: factor on the slice distance; the number of slices falls as it grows.
        offset: calibration error, HU.
        table: distance of the table behind the patient, mm.
    """

    noise: float
    blur: float
    portal: float
    arterial: float
    pixel: float
    step: float
    offset: float
    table: float

    @classmethod
    def draw(cls, seed: int, source: int, sources: int) -> "Scanner":
        """The scanner of one of several sources.

        Every property takes its range in equal steps, in an order of its own: two sources lie at opposite ends.

        Args:
            seed: of the cohort.
            source: 0 .. sources - 1.
            sources: how many there are.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, sources)))
        ranks = np.array([rng.permutation(sources) for _ in range(_PROPERTIES)])  # [property, source]
        jitter = rng.uniform(-0.1, 0.1, ranks.shape) / sources
        place = np.clip(ranks / max(sources - 1, 1) + jitter, 0, 1)[:, source]
        portal, arterial = _PHASES[(int(rng.integers(3)) + source) % 3]
        noise, blur, pixel, step, offset, table = (float(p) for p in place)
        return cls(
            noise=5 + 30 * noise,
            blur=0.4 + 0.8 * blur,
            portal=portal,
            arterial=arterial,
            pixel=0.8 * 1.75**pixel,
            step=0.6 + step,
            offset=-8 + 16 * offset,
            table=4 + 36 * table,
        )

    def slices(self, count: int) -> int:
        """Slices that cover what ``count`` slices of the usual distance do."""
        return max(8, round(count / self.step))


def source_name(source: int) -> str:
    """source_a, source_b, ...; at most 26."""
    return f"source_{chr(ord('a') + source)}"


def deal_organs(organs: Sequence[str], sources: int) -> tuple[tuple[str, ...], ...]:
    """Who draws what where nobody says: the organs in turn, and again from the first where sources are left."""
    count = max(len(organs), sources)
    return tuple(tuple(organs[i % len(organs)] for i in range(source, count, sources)) for source in range(sources))
