"""How far results are from the exact ones, and when nothing is timed because they disagree."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MANTISSA = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}  # bits, the hidden one included
SMALLEST = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}  # exponent of the smallest normal number

# Peers compute in their own dtype: bfloat16 has two digits, and loses one where a loss is much smaller than the logits.
# This tells a wrong formula from a rounded one; how well we do is recorded, see `gradient_ulps`.
LOSS_RELATIVE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.01}
GRADIENT_OF_LARGEST = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.005}

# Shares of voxels. Float32 interpolation may decide a near tie the other way, a wrong formula does more.
UNDECIDED_LABELS = {"cpu": 1e-5, "cuda": 1e-4}
UNDECIDED_PSEUDO_LABELS = 1e-4  # which rounding may rank the other way
# Whole volumes: random weights leave many near ties, which kernels of two libraries may break; float16 has more.
# In int8 a probability errs by some 1e-2 to 1e-1, and random weights have few that are surer than that.
UNDECIDED_VOLUME = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.1}


class Result(NamedTuple):
    """What a loss gives."""

    loss: Tensor  # []
    gradient: Tensor  # like the logits


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Distance of a scalar from the exact one, relative to it; 0 when both are 0."""
    difference = abs(float(value.double()) - float(exact))
    return difference / abs(float(exact)) if difference else 0.0


def gradient_ulps(gradient: Tensor, exact: Tensor) -> float:
    """Largest distance of a gradient from the exact float64 one, in units in the last place of the exact one.

    A 16-bit gradient is compared with the nearest 16-bit number: 0 is correctly rounded.
    """
    if not gradient.numel():
        return 0.0
    if gradient.dtype != torch.float32:
        exact = exact.to(gradient.dtype).double()
    gradient, exact = gradient.cpu(), exact.cpu()
    _, exponent = np.frexp(exact.numpy())  # |exact| = m * 2^exponent with 0.5 <= m < 1
    ulp = np.ldexp(1.0, np.maximum(exponent, SMALLEST[gradient.dtype] + 1) - MANTISSA[gradient.dtype])
    return float((np.abs(gradient.double().numpy() - exact.numpy()) / ulp).max())


def ulps_of_largest(gradient: Tensor, exact: Tensor) -> float:
    """The same in units in the last place of the largest exact entry, for gradients that are sums with cancellation."""
    largest = float(exact.abs().max())
    if largest == 0:
        return 0.0 if not gradient.any() else math.inf
    ulp = 2.0 ** (math.frexp(largest)[1] - MANTISSA[gradient.dtype])
    return float((gradient.double() - exact).abs().max()) / ulp


def assert_agrees(name: str, result: Result, exact: Result) -> None:
    """Raise AssertionError, naming whose they are, unless its loss and gradient are the exact ones but for rounding."""
    dtype = result.gradient.dtype
    error = relative_error(result.loss, exact.loss)
    assert error <= LOSS_RELATIVE[dtype], f"{name}: loss {float(result.loss)}, exact {float(exact.loss)}"
    largest = float(exact.gradient.abs().max())
    worst = float((result.gradient.double() - exact.gradient).abs().max())
    assert worst <= GRADIENT_OF_LARGEST[dtype] * largest, f"{name}: gradient off by {worst}, largest entry {largest}"
