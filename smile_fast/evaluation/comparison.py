"""Two sets of scores of the same things: their mean difference, its bootstrap interval and Wilcoxon's p."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_SEED = 0  # of the bootstrap: equal scores give equal intervals
_ELEMENTS = 2**22  # drawn at once, so that many pairs do not fill the memory


@dataclass(frozen=True)
class PairedDifference:
    """How much higher the first of two sets of scores is.

    Attributes:
        pairs: how many.
        mean: of first minus second; NaN of no pair.
        low, high: bootstrap interval of the mean, from resampling pairs; NaN below two pairs.
        p: two-sided Wilcoxon signed-rank test; 1 where no pair differs, NaN below two pairs.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p: float


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES
) -> PairedDifference:
    """Compare two sets of scores of the same things, in the same order.

    Args:
        a: [n] scores, finite.
        b: [n] scores of the same things, finite.
        confidence: of the percentile bootstrap's interval, between 0 and 1.
        resamples: of the bootstrap, at least 1.

    Raises:
        ValueError: there are not as many of one as of the other, or a score is not finite.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)  # [n]
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"a and b: shapes {first.shape} and {second.shape} were given; give two lists as long")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a and b: a score is not finite; leave its pair out of both")
    differences = first - second
    count = differences.size
    if count < 2:
        mean = float(differences[0]) if count else math.nan
        return PairedDifference(count, mean, math.nan, math.nan, math.nan)
    means = _resampled_means(differences, resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return PairedDifference(count, float(differences.mean()), float(low), float(high), _wilcoxon_p(differences))


def _resampled_means(differences: NDArray[np.float64], resamples: int) -> NDArray[np.float64]:  # [resamples]
    generator, count = np.random.default_rng(_SEED), differences.size
    at_once = max(1, _ELEMENTS // count)
    parts = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(count, size=(min(at_once, resamples - start), count))
        parts.append(differences[drawn].mean(axis=1))
    return np.concatenate(parts)


def _wilcoxon_p(differences: NDArray[np.float64]) -> float:
    if not differences.any():
        return 1.0  # the test is not defined without a difference
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)
