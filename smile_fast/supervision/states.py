"""Annotation states and policies. Needs numpy only."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from smile_runtime.label_map import LABEL_VALUES, MAX_ORGANS


class State(StrEnum):
    """What was declared about one organ in one case."""

    ANNOTATED = "annotated"
    """Drawn wherever the organ exists."""
    MISSING = "missing"
    """Not drawn, or only in part."""
    ABSENT = "absent"
    """Known not to be there, e.g. resected: every voxel is a certain negative."""
    HIDDEN = "hidden"
    """Drawn, but training must behave as if it were not: its voxels count as unlabelled for every organ."""


class Policy(StrEnum):
    """Which (voxel, organ) pairs a loss may use."""

    SMILE = "smile"
    """Annotated organs everywhere, and every organ at a voxel that carries another organ's human label."""
    NO_EPSILON = "no-epsilon"
    """Annotated organs, and every organ at its own human label: what others' labels say of it is left out."""
    CHANNEL_DROP = "channel-drop"
    """Annotated organs only."""
    NAIVE = "naive"
    """Every organ everywhere: what was not drawn is background."""


def check_states(states: Sequence[State | str], argument: str) -> tuple[State, ...]:
    """Return the states of one case as a tuple of `State`.

    Args:
        states: [K] states, or their names.
        argument: the caller's argument name, for the message.

    Raises:
        ValueError: a name is no state, or K is not in 1..126.
    """
    if isinstance(states, str):
        raise TypeError(f"{argument} must be a sequence of states, one an organ, got the string {states!r}")
    if not 1 <= len(states) <= MAX_ORGANS:
        raise ValueError(f"{argument} must name 1 to {MAX_ORGANS} organs, got {len(states)}")
    known = [state.value for state in State]
    for organ, state in enumerate(states):
        if state not in known:
            raise ValueError(f"{argument}[{organ}] must be one of {', '.join(known)}, got {state!r}")
    return tuple(State(state) for state in states)


def visible_lut(states: Sequence[State | str]) -> np.ndarray:
    """Return the lookup table from a human label value to what training may see of it.

    Args:
        states: [K] states of one case; organ k has label value k + 1.

    Returns:
        [256] uint8: 0 for the value of a hidden organ, every other value itself.

    Raises:
        ValueError: see `check_states`.
    """
    lut = np.arange(LABEL_VALUES, dtype=np.uint8)
    for organ, state in enumerate(check_states(states, "states")):
        if state is State.HIDDEN:
            lut[organ + 1] = 0
    return lut
