"""What the loss computes for one logit, and sums of logarithms. All of it in float32."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def bce(logit, known, positive):
    """Return what the loss and its derivative are made of, for logits z with label y.

    With x = z where y = 0 and x = -z where y = 1, BCE = max(x, 0) + log(1 + exp(-|x|)) and dBCE/dz = +-sigmoid(x).
    An unknown voxel's margin x is replaced by -inf, for which all three results are 0. Gradient and e are
    within 2^-20 of their size for |z| < 16 and 2^-17 beyond, where the exponent's rounding shows; an e below 2^-126
    may be 0.

    Returns:
        linear = max(x, 0) and e = exp(-|x|), float32: the loss is linear + log(1 + e); the gradient w (sigmoid(z) - y).
    """
    margin = tl.where(known, tl.where(positive, -logit, logit), float("-inf"))
    # exp2 may flush what is denormal, which spares each logit three instructions of 36.
    e = tl.exp2(tl.abs(margin) * -LOG2_E)
    root = tl.rsqrt(1.0 + e)  # the reciprocal of 1 + e, in [1, 2], as the square of rsqrt: cheaper than a division
    slope = tl.where(margin >= 0, 1.0, e) * (root * root)
    linear = tl.maximum(margin, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return linear, e, tl.where(positive & known, -slope, slope)


@triton.jit
def join(p, q):
    """Return (1 + p) (1 + q) - 1: log1p of it is log1p(p) + log1p(q), and small numbers keep their digits."""
    return tl.fma(p, q, p + q)


@triton.jit
def log1p(q):
    """Return log(1 + q) for q >= 0 to float32 accuracy; what 1 + q rounds off is put back to first order."""
    rounded = 1.0 + q
    lost = q - (rounded - 1.0)
    return tl.log(rounded) + lost / rounded
