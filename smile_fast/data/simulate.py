"""Simulate missing annotations: declare an exact share of them hidden, the way the paper removes them."""

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
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
    _check(alpha, seed)
    result = {case: dict(states) for case, states in declarations.items()}
    for organ in next(iter(declarations.values()), {}):
        pool = sorted(case for case in cases if declarations[case][organ] in (State.ANNOTATED, State.HIDDEN))
        order = np.random.default_rng([seed, zlib.crc32(organ.encode())]).permutation(len(pool))
        count = hidden_count(alpha, len(pool))
        for rank, index in enumerate(order):
            result[pool[index]][organ] = State.HIDDEN if rank < count else State.ANNOTATED
    return result


def drawn_by_sources(
    declarations: Declarations, alpha: float, seed: int, sources: Mapping[str, str]
) -> dict[str, list[str]]:
    """Choose what each source draws: a share of the (source, organ) pairs is hidden.

    The n sources stand in an order that depends on the seed, and the first min(round(alpha n), n - 1) from a place on
    do not draw an organ; the place moves on by one from organ to organ, so no source loses much more than another.

    Args:
        declarations: the state of every pair.
        alpha: share of pairs to hide, in 0..1; one source an organ always remains.
        seed: 0 or more.
        sources: training case -> its source.

    Returns:
        Source -> the organs that it draws, of those that its cases have annotated or hidden.

    Raises:
        InputError: alpha or seed is out of range.
    """
    _check(alpha, seed)
    names = sorted(set(sources.values()))
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    drawn: dict[str, list[str]] = {name: [] for name in names}
    for k, organ in enumerate(next(iter(declarations.values()), {})):
        knows = {sources[case] for case in sources if declarations[case][organ] in (State.ANNOTATED, State.HIDDEN)}
        turned = [name for name in order[k % len(order) :] + order[: k % len(order)] if name in knows]
        for name in turned[hidden_count(alpha, len(turned)) :]:
            drawn[name].append(organ)
    return drawn


def hide_by_source(
    declarations: Declarations, sources: Mapping[str, str], drawn: Mapping[str, Collection[str]]
) -> Declarations:
    """Hide what the source of a case does not draw, and restore what it draws.

    Args:
        declarations: the state of every pair; not changed.
        sources: training case -> its source.
        drawn: source -> the organs that it draws.

    Returns:
        New declarations; missing and absent pairs and all other cases are as they were.
    """
    result = {case: dict(states) for case, states in declarations.items()}
    for case, source in sources.items():
        for organ, state in result[case].items():
            if state in (State.ANNOTATED, State.HIDDEN):
                result[case][organ] = State.ANNOTATED if organ in drawn[source] else State.HIDDEN
    return result


def _check(alpha: float, seed: int) -> None:
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise InputError(f"--alpha: {alpha} is not a share of annotations; give a number in 0..1")
    if seed < 0:
        raise InputError(f"--seed: {seed} is negative; give 0 or more")


def hidden_count(alpha: float, n: int) -> int:
    """How many of n annotations are hidden: alpha n, halves up, but never the last one.

    In decimal, because 0.145 * 100 is 14.499999999999998 in binary.
    """
    wanted = int((Decimal(str(alpha)) * n).to_integral_value(ROUND_HALF_UP))
    return max(0, min(wanted, n - 1))
