"""Simulate missing annotations: declare an exact share of them hidden, the way the paper removes them."""

import math
import zlib
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from smile_fast.data.annotations import Declarations
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError


def simulate_missing(declarations: Declarations, alpha: float, seed: int, cases: Sequence[str]) -> Declarations:
    """Hide a share of every organ's annotations.

    Per organ, the n cases of `cases` in which it is annotated or hidden are put into an order that depends on the seed
    and the organ only, and the first min(round(alpha n), n - 1) of them become hidden, the others annotated. So the
    same call gives the same result whatever was hidden before, alpha = 0 restores every annotation, and what is hidden
    at a lower alpha is hidden at a higher one too.

    Args:
        declarations: the state of every pair; not changed.
        alpha: share to hide, in 0..1; halves are rounded up. One annotated case an organ always remains.
        seed: 0 or more.
        cases: the cases that may be hidden: the training cases.

    Returns:
        New declarations; missing and absent pairs and all other cases are as they were.

    Raises:
        InputError: alpha or seed is out of range.
    """
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise InputError(f"--alpha: {alpha} is not a share of annotations; give a number in 0..1")
    if seed < 0:
        raise InputError(f"--seed: {seed} is negative; give 0 or more")
    result = {case: dict(states) for case, states in declarations.items()}
    for organ in next(iter(declarations.values()), {}):
        pool = sorted(case for case in cases if declarations[case][organ] in (State.ANNOTATED, State.HIDDEN))
        order = np.random.default_rng([seed, zlib.crc32(organ.encode())]).permutation(len(pool))
        count = hidden_count(alpha, len(pool))
        for rank, index in enumerate(order):
            result[pool[index]][organ] = State.HIDDEN if rank < count else State.ANNOTATED
    return result


def hidden_count(alpha: float, n: int) -> int:
    """How many of n annotations are hidden: alpha n, halves up, but never the last one.

    In decimal, because 0.145 * 100 is 14.499999999999998 in binary.
    """
    wanted = int((Decimal(str(alpha)) * n).to_integral_value(ROUND_HALF_UP))
    return max(0, min(wanted, n - 1))
