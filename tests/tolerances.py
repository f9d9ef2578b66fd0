"""Every tolerance of the tests, as a rule with its reason."""

import numpy as np
import torch
from torch import Tensor

# Probabilities of torch and onnxruntime: both compute in float32, with convolutions summed in another order and the
# BatchNorms folded into the weights. A logit of size 10 then differs by some 10 * 2^-23 * sqrt(number of layers).
EXPORTED_PROBABILITY = {"rtol": 0.0, "atol": 2e-5}

# What storing a probability in fewer bits adds: half a step.
STORED_PROBABILITY = {
    "float32": {"rtol": 0.0, "atol": 0.0},
    "float16": {"rtol": 0.0, "atol": 2.0**-12},
    "uint8": {"rtol": 0.0, "atol": 0.5 / 255 + 1e-7},
}

# The same convolutions on another sampling grid: float32 sums of some hundred terms in another order, through 16 blocks
# whose residual sums grow; relative to features of size 1 to 100.
RESTRUCTURED_FEATURES = {"rtol": 1e-4, "atol": 1e-3}

# A logit read back from its probability: one rounding of p, 6e-8, divided by p (1 - p), at most 57 for |z| <= 4.
LOGIT_OF_SIGMOID = {"rtol": 0.0, "atol": 1e-5}

# HU after a resampling that moves nothing: grid coordinates in [-1, 1] are rounded (6e-8), which on a patch of 64
# shifts a sample by some 4e-6 pixels; between neighbours that differ by 4000 HU that is 0.016 HU, twice for two axes.
RESAMPLED_HU = {"rtol": 0.0, "atol": 0.05}

# A sum of losses against float64. Each voxel carries a few float32 roundings (6e-8), which average out over many
# voxels; on the few hundred voxels of a test they may not, so this is ten times the goal of 1e-7 on real sizes.
LOSS_RELATIVE = 1e-6

# A gradient against float64, in units in the last place of its dtype. exp, the sum 1 + e and the division round once
# or twice each: at most 4 in float32. A 16-bit gradient is a rounded float32 one: at most the neighbouring number.
GRADIENT_ULPS = {torch.float32: 4, torch.bfloat16: 1, torch.float16: 1, torch.float64: 8}

# Interpolated logits carry the rounding of two lerps, about 4 roundings of the largest logit (|z| < 16 in the tests),
# and the adjoint adds up at most a few hundred terms of size 1: errors relative to the largest entry of the gradient.
# A 16-bit gradient is rounded once at the end.
UPSAMPLED_GRADIENT_RELATIVE = {
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float64: 1e-14,
}

# flash-attention's rule: our error against float64 is at most twice that of plain PyTorch in the same dtype. Where
# PyTorch happens to be exact, the floor is one float32 rounding, in which every loss is returned.
TIMES_TORCH_ERROR = 2.0
LOSS_FLOOR = 2.0**-23


def assert_no_worse_than_torch(ours: float, plain_torch: float, exact: float) -> None:
    """Assert flash-attention's rule on one loss."""
    allowed = TIMES_TORCH_ERROR * abs(plain_torch - exact) + LOSS_FLOOR * abs(exact)
    assert abs(ours - exact) <= allowed, f"{ours} is {abs(ours - exact)} away from {exact}, {allowed} are allowed"


def gradient_ulps(gradient: Tensor, exact: Tensor) -> float:
    """Return the largest distance of a gradient from the exact float64 one, in units in the last place."""
    if gradient.dtype in (torch.bfloat16, torch.float16):
        # Neighbours differ by one as integers, and no gradient changes sign: its sign is that of the label.
        nearest = exact.float().to(gradient.dtype)
        steps = gradient.view(torch.int16).int() - nearest.view(torch.int16).int()
        return float(steps.abs().max()) if steps.numel() else 0.0
    nearest = exact.abs().to(gradient.dtype).numpy()
    ulp = torch.from_numpy(np.spacing(nearest)).double()
    return float(((gradient.double() - exact).abs() / ulp).max()) if gradient.numel() else 0.0
