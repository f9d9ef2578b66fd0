"""Every tolerance of the tests, as a rule with its reason."""

import math
import statistics

import numpy as np
import torch
from torch import Tensor

# Probabilities of torch and onnxruntime: both compute in float32, with convolutions summed in another order and the
# BatchNorms folded into the weights. A logit of size 10 then differs by some 10 * 2^-23 * sqrt(number of layers).
EXPORTED_PROBABILITY = {"rtol": 0.0, "atol": 2e-5}

# Probabilities of a file in fewer bits, before they are stored. fp16: logits up to 8 in steps of 2^-7, of which the
# convolutions collect a few, times the sigmoid's slope of 1/4. int8: some steps of 1/255 of the range of every
# activation; what the labels lose is bounded more tightly, by the exporter's own requirement on identical voxels.
PRECISION_PROBABILITY = {"fp32": EXPORTED_PROBABILITY["atol"], "fp16": 0.01, "int8": 0.3}

# What storing a probability in fewer bits adds: half a step.
STORED_PROBABILITY = {
    "float32": {"rtol": 0.0, "atol": 0.0},
    "float16": {"rtol": 0.0, "atol": 2.0**-12},
    "uint8": {"rtol": 0.0, "atol": 0.5 / 255 + 1e-7},
}

# The same convolutions on another sampling grid: float32 sums of some hundred terms in another order, through 16 blocks
# whose residual sums grow; relative to features of size 1 to 100.
RESTRUCTURED_FEATURES = {"rtol": 1e-4, "atol": 1e-3}

# The same convolution on other weights that add up to the same (RGB filters adapted to grey, a BatchNorm folded in):
# float32 sums of some hundred terms in another order, relative to outputs of size 1.
REORDERED_CONVOLUTION = {"rtol": 1e-4, "atol": 1e-5}
FOLDED_LOGITS = REORDERED_CONVOLUTION

# What a change that matters does to the same logits: more than a hundred times that.
OTHER_LOGITS = {"rtol": 1e-2, "atol": 1e-2}

# Logits of a slice alone and in a batch: a convolution may take another algorithm for another batch size, and its
# sums another order, through all layers of a network.
LOGITS_OF_A_BATCH = {"rtol": 1e-4, "atol": 1e-4}

# Share of voxels on which two such computations of the same logits agree: only near ties may differ.
IDENTICAL_LABELS = 0.999

# Two float32 logits of size 10, interpolated with some four roundings of 10 * 2^-24 each, whose order is certain.
NEAR_TIE = 1e-5

# Figures of a benchmark's record have four digits each: a ratio of two against the recorded ratio, three roundings of
# at most 5e-4.
RECORDED_RATIO = {"rel": 2e-3}

# Logits of size 10 that are interpolated in float32 by other products and sums: some eight roundings of 10 * 2^-24.
INTERPOLATED_LOGITS = {"rtol": 0.0, "atol": 1e-5}

# A temperature of four digits, and the end of a search that has halved its range far below that.
ROUNDED_TEMPERATURE = {"rel": 1e-3}

# A logit read back from its probability: one rounding of p, 6e-8, divided by p (1 - p), at most 57 for |z| <= 4.
LOGIT_OF_SIGMOID = {"rtol": 0.0, "atol": 1e-5}

# HU after a resampling that moves nothing: grid coordinates in [-1, 1] are rounded (6e-8), which on a patch of 64
# shifts a sample by some 4e-6 pixels; between neighbours that differ by 4000 HU that is 0.016 HU, twice for two axes.
RESAMPLED_HU = {"rtol": 0.0, "atol": 0.05}

# Bilinear and nearest resampling of the same disc: they differ on a rim of a pixel, which of the discs of these tests
# is less than 2% of all compared pixels, and up to 5% of the disc's own. The centre moves by less than half a pixel.
SAME_AFTER_RESAMPLING = 0.98
AREA_OF_DISC = {"rel": 0.05}
CENTRE_OF_DISC = {"abs": 0.5}

# The same over 120 patches, each moved by a quarter of a pixel to one side or the other: 0.25 / sqrt(120) = 0.023, four
# times that. All to one side would be 0.25.
MEAN_CENTRE_OF_DISC = {"abs": 0.1}

# Pixels of a scan: a triangle filter whose width is no whole number of them has its mass a little beside its middle.
RESAMPLED_PLACE = {"rtol": 0.0, "atol": 0.2}

# A disc of 18 mm that is found by its brightness in pixels of the logits of 8 mm, means over them: the rim is cut like
# a polygon of some fourteen sides. One that is moved by 2 mm, or 10% too large, would be below.
BRIGHT_DISC_DICE = 0.93

# Distances of below 100 mm in the phantoms' float32 fields: some hundred roundings of 100 * 2^-24 = 6e-6 mm.
FIELD_MM = 1e-3

# Noise of a written phantom: a source's cases differ by 10% of it, and HU are whole numbers.
MEASURED_NOISE = {"rel": 0.2, "abs": 1.0}

# HU of a phantom on another machine: exp and sin may differ in the last place, and a value near a half rounds
# elsewhere. Another draw of its noise, of 9 HU or more, is far outside.
REPEATED_HU = {"rtol": 0.0, "atol": 1.0}

# Share of a grid's voxels that may change sides when an ellipsoid is built along another axis: those on its surface.
VOXELS_ON_A_SURFACE = 1e-3

# Formulas of a few float64 operations: shares of counts, exact to some units in the last place.
FLOAT64_SHARE = {"rel": 1e-15}
FLOAT64_FORMULA = {"rel": 1e-12}

# A running average kept in float32: each of some ten updates rounds twice.
FLOAT32_AVERAGE = {"rel": 1e-6}

# Rounded figures: a mean Dice over organs that were written with four digits, and the share of identical voxels of a
# certificate, where only near ties differ.
SUMMARY_DICE = {"abs": 1e-4}
IDENTICAL_SHARE = {"abs": 1e-4}

# Dice of torch's and of the exported file's label map: near ties of a small organ, one voxel in a thousand.
DICE_OF_EXPORTED = {"abs": 1e-3}

# The warm-up starts a thousandth of a round ahead, so that no step has a rate of zero: half way through a warm-up of a
# fifth of the round, that is 1% of the rate.
WARM_UP_MIDDLE = {"rel": 0.02}

# Pictures: the window, the resampling to the shown size and the blending of colours each round to one of 255 grey
# levels. Outlines drawn over a filled rectangle of 8 x 16 pixels take up to a quarter of it.
GREY_LEVELS = {"rtol": 0.0, "atol": 3}
FILLED_AREA = {"rel": 0.25}


def share_of_draws(draws: int, share: float) -> float:
    """How far the share of n independent draws may be from its expectation: three standard deviations."""
    return 3 * math.sqrt(share * (1 - share) / draws)


# A sum of losses against float64. Each voxel carries up to four float32 roundings (exp, the product of 1 + e, its
# logarithm, the sum), which average out over many voxels; on the few hundred voxels of a test they may not.
LOSS_RELATIVE = 4 * 2.0**-24

# A gradient against float64, in units in the last place of its dtype. exp, the sum 1 + e and the division round once
# or twice each: at most 4 in float32. A 16-bit gradient is a rounded float32 one: at most the neighbouring number.
GRADIENT_ULPS = {torch.float32: 4, torch.bfloat16: 1, torch.float16: 1, torch.float64: 8}

# The norm of a clipped gradient: torch adds up the squares of a few million float32 values in float32, pairwise, and
# scales by a factor that is rounded once; half a dozen roundings of 2^-24.
CLIPPED_NORM_RELATIVE = 8 * 2.0**-24
# Cross-entropy of the baseline is torch's own, in float32, on logits that were interpolated in float32.
CROSS_ENTROPY_GRADIENT = {"rtol": 1e-5, "atol": 1e-7}
FLOAT32_SUMS = {"rtol": 1e-5, "atol": 0.0}

# A loss of bfloat16 logits against that of the same numbers in float32: computed in float32 in either case.
LOSS_OF_HALF_LOGITS = {"rel": 1e-5}

# The goal for a sum of losses over the voxels of a real image, where roundings average out.
LOSS_RELATIVE_LARGE = 1e-7

# The gradient of upsampled logits adds up terms of one voxel each; its error is held against the sum of their absolute
# values, in units of the computing dtype's rounding. An interpolated logit carries some 4 roundings of the largest
# logit M (the weights and two lerps), and a slope s has |ds/du| <= s: 4 M. exp, division, products with the weights and
# the sums add 16. A 16-bit gradient is rounded once more, at the end.
UPSAMPLED_ROUNDINGS = 16.0
UPSAMPLED_ROUNDINGS_OF_LOGIT = 4.0


def upsampled_logit_error(largest_logit: float) -> float:
    """How far two ways to interpolate the same logits may differ: each rounds numbers up to the largest 4 times."""
    return 2 * UPSAMPLED_ROUNDINGS_OF_LOGIT * largest_logit * 2.0**-24


# Interpolation in float64 with integer weights against torch's: one or two roundings of 1.1e-16.
INTERPOLATED_FLOAT64 = {"rtol": 1e-15, "atol": 1e-15}

# The same float32 loss or gradient, scaled in another order: some ten roundings of 6e-8; what a compiler fuses may
# underflow where we do not.
SCALED_FLOAT32 = {"rtol": 1e-6, "atol": 0.0}
COMPILED_FLOAT32 = {"rtol": 1e-6, "atol": 1e-12}

# An upsampled gradient of another cut into tiles: float32 sums of the terms of hundreds of voxels in another order,
# which may cancel.
RETILED_GRADIENT = {"rtol": 1e-4, "atol": 1e-6}

# Triton's interpreter truncates to bfloat16 where a GPU rounds to the nearest: twice the error.
TIMES_TRUNCATED = 2.0

# flash-attention's rule: our error against float64 is at most twice that of plain PyTorch in the same dtype. Where
# PyTorch happens to be exact, the floor is one float32 rounding, in which every loss is returned.
TIMES_TORCH_ERROR = 2.0
LOSS_FLOOR = 2.0**-23


def assert_no_worse_than_torch(ours: float, plain_torch: float, exact: float) -> None:
    """Assert flash-attention's rule on one loss."""
    allowed = TIMES_TORCH_ERROR * abs(plain_torch - exact) + LOSS_FLOOR * abs(exact)
    assert abs(ours - exact) <= allowed, f"{ours} is {abs(ours - exact)} away from {exact}, {allowed} are allowed"


def upsampled_gradient_error(gradient: Tensor, exact: Tensor, magnitude: Tensor, largest_logit: float) -> float:
    """Return the largest error of an upsampled loss's gradient, in units of what its rule allows: at most 1.

    Args:
        gradient: what is tested.
        exact: the same in float64.
        magnitude: float64, the sum of the absolute values of the terms of each entry.
        largest_logit: the largest absolute value of a logit.
    """
    computed_in = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    roundings = UPSAMPLED_ROUNDINGS + UPSAMPLED_ROUNDINGS_OF_LOGIT * largest_logit
    allowed = roundings * torch.finfo(computed_in).eps / 2 * magnitude
    if gradient.dtype != computed_in:
        allowed += (
            torch.finfo(gradient.dtype).eps / 2 * exact.abs() + torch.finfo(gradient.dtype).smallest_normal * 2**-11
        )
    return float(((gradient.double() - exact).abs() / allowed.clamp(min=1e-300)).max())


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


def twice_rounded(dtype: torch.dtype) -> dict[str, float]:
    """Two ways to the same product that round twice each; below the smallest normal number a rounding is absolute."""
    finfo = torch.finfo(dtype)
    return {"rtol": 2 * finfo.eps, "atol": 2 * finfo.tiny * finfo.eps}


# Steps that differ in rounding alone: Adam moves a weight by up to the learning rate whatever the size of its gradient,
# also by one that is nothing but rounding. The rates of these steps sum to 0.0027, and signs may differ.
CAPTURED_STEPS = {"rel": 0.01, "abs": 0.006}

# Distances between places of some ten mm in float64, summed in another order.
FLOAT64_DISTANCE = {"rtol": 1e-12, "atol": 1e-12}

# Marching cubes cut the edges and corners of a block of some ten voxels a side.
SURFACE_AREA = {"rel": 0.03}

# Two balls of 30 mm whose surfaces are steps of voxels: 1 mm on one lattice, 5 x 1.5 x 1 mm on the other. Column
# lengths of a lattice tilted by 25 degrees would add 10% to a volume.
BALL_ON_LATTICES = {"ml": {"rel": 0.02}, "dice": {"abs": 0.01}, "nsd": {"abs": 0.05}, "hd95_mm": {"abs": 0.5}}

# The gradient of a batch whose images several processes share, in float64, relative to its largest entry: what is owed.
# Sums of some thousand terms in another order differ by 1e-14; a divisor that is not the whole batch's by 1e-1.
GRADIENT_OF_RANKS = 1e-6

# A BatchNorm over images that several processes share: sums of 100 terms in another order, of values whose mean is 15
# standard deviations from 0, of which float32 loses four bits.
NORMALISED_BY_RANKS = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}

# A place of a voxel, mm: NIfTI keeps affines in float32, and places up to 500 mm then in steps of 3e-5.
FLOAT32_GEOMETRY = {"rtol": 0.0, "atol": 1e-4}

# Sums over the voxels of a batch, added up rank by rank instead of at once: float32 and float64 sums in another order.
SUMS_OF_RANKS = {"rtol": 1e-6, "atol": 0.0}

# Weights and running statistics after a step in float64, from gradients whose sums have another order.
WEIGHTS_OF_RANKS = {"rtol": 1e-6, "atol": 1e-9}

# The loss of the first step where one of two ranks drops other features than one process does: a tenth of it.
OTHER_DROPOUT = {"rel": 0.1}


def within_seeds(dice: list[float]) -> float:
    """How far one more training may be from the mean of some that differ in their seed alone: four deviations."""
    return 4 * statistics.stdev(dice)


# Mean and standard deviation of a few float32 numbers of up to some 200, from their sum and the sum of their squares:
# the mean square, 4e4, is known to 4e-3, and a spread of 20 to a fraction of that.
SPREAD_OF_SQUARES = {"abs": 1e-2}
