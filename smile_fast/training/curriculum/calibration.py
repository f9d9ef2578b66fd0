"""Temperature scaling on annotated organs: by how much an organ's logits are too sure of themselves.

A temperature an organ and no bias: p > 0.5, and with it who is a candidate, stays as it was.

Source:
    Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.training.curriculum.samples import FALSE_NEGATIVE, KINDS, TRUE_POSITIVE, OrganSample

RANGE = (0.05, 20.0)  # of the temperatures
_HALVINGS = 60
_GOLDEN = (math.sqrt(5) - 1) / 2


def temperature_of(sample: OrganSample) -> float:
    """The temperature of an organ by a sample of its voxels; each kind counts as much as it has voxels.

    Rounded to four digits, so that processes which sum in another order agree.
    """
    logits, truth, weights = [], [], []
    for kind in KINDS:
        own = sample.logits(kind).double()
        if len(own):
            logits.append(own)
            truth.append(torch.full_like(own, float(kind in (FALSE_NEGATIVE, TRUE_POSITIVE))))
            weights.append(torch.full_like(own, sample.population[kind] / len(own)))
    return fit_temperature(torch.cat(logits), torch.cat(truth), torch.cat(weights))


def fit_temperature(
    logits: Tensor,  # [m]
    truth: Tensor,  # [m] 0 or 1
    weights: Tensor,  # [m]
) -> float:
    """The temperature within `RANGE` at which the negative log-likelihood is least, to four digits."""

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        each = F.binary_cross_entropy_with_logits(scaled, truth, reduction="none")
        return float((each * weights).sum())

    # The loss is convex in 1 / T, and so it falls and then rises along log T: golden sections find its lowest point.
    low, high = (math.log(limit) for limit in RANGE)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_HALVINGS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return float(f"{math.exp((low + high) / 2):.4g}")
