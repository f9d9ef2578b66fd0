"""What the losses compute for one logit, and sums of logarithms. All of it in float32, within the first two units."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693115234375)  # 12 bits: its product with an exponent is exact
LN2_LOW = tl.constexpr(3.194618494528623e-05)
# exp(r) = 1 + r + r^2 (C0 + ... + C4 r^4) for |r| <= ln(2) / 2, relative error 4e-9
C0 = tl.constexpr(0.49999988079071045)
C1 = tl.constexpr(0.166665181517601)
C2 = tl.constexpr(0.04166954383254051)
C3 = tl.constexpr(0.00836898759007454)
C4 = tl.constexpr(0.0013751150108873844)
SMALLEST_EXPONENT = tl.constexpr(-105.0)  # exp of it rounds to 0


@triton.jit
def exp_precise(x):
    """Return exp(x) for x <= 0 within one unit in the last place, denormal results included.

    The hardware's exp2 of x * log2(e) is off by the rounding of that product: 6 units at x = -16.
    """
    exponent = tl.floor(tl.maximum(x, SMALLEST_EXPONENT) * LOG2_E + 0.5)  # a number, also where x is NaN
    x = tl.maximum(x, SMALLEST_EXPONENT, propagate_nan=tl.PropagateNan.ALL)
    r = tl.fma(exponent, -LN2_HIGH, x)
    r = tl.fma(exponent, -LN2_LOW, r)
    tail = tl.fma(r, C4, C3)
    tail = tl.fma(r, tail, C2)
    tail = tl.fma(r, tail, C1)
    tail = tl.fma(r, tail, C0)
    mantissa = tl.fma(r * r, tail, r) + 1.0
    # 2^exponent in two factors: one alone would be denormal below 2^-126.
    whole = exponent.to(tl.int32)
    half = whole >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    return mantissa * first * second


@triton.jit
def bce(logit, known, positive, PRECISE: tl.constexpr):
    """Return what the loss and its derivative are made of, for logits z with label y.

    With x = z where y = 0 and x = -z where y = 1, BCE = max(x, 0) + log(1 + exp(-|x|)) and dBCE/dz = +-sigmoid(x).
    An unknown voxel's margin x is replaced by -inf, for which all three results are 0. With PRECISE the gradient is
    within 3 units; without, within 2^-20, which no 16-bit result shows.

    Returns:
        linear = max(x, 0) and e = exp(-|x|), float32: the loss is linear + log(1 + e); the gradient w (sigmoid(z) - y).
    """
    margin = tl.where(known, tl.where(positive, -logit, logit), float("-inf"))
    if PRECISE:
        e = exp_precise(-tl.abs(margin))
    else:
        e = tl.exp(-tl.abs(margin))
    # The reciprocal of 1 + e, in [1, 2], as the square of rsqrt: cheaper than a division, and one Newton step exact.
    root = tl.rsqrt(1.0 + e)
    reciprocal = root * root
    if PRECISE:
        reciprocal = tl.fma(reciprocal, tl.fma(-(1.0 + e), reciprocal, 1.0), reciprocal)
    slope = tl.where(margin >= 0, 1.0, e) * reciprocal
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


@triton.jit
def population(word):
    """Return the number of bits of a 32-bit word."""
    word = word.to(tl.uint32)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def either(a, b):
    """Combine two words of a reduction."""
    return a | b
