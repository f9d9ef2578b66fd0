"""Supervision tables: the only place where policy lives.

A kernel looks a voxel's label value up and gets two words of K bits: `known` (w_k, may the loss use organ k here)
and `positive` (y*_k, is organ k here). It knows neither states nor policies.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from smile_fast.supervision.states import Policy, State, check_states
from smile_runtime.label_map import LABEL_VALUES, PSEUDO_BACKGROUND, PSEUDO_BIT, VOID, WORD_BITS

if TYPE_CHECKING:
    from torch import Tensor


def build_tables(
    states: Sequence[Sequence[State | str]],  # [B][K]
    policy: Policy | str,
    *,
    pseudo_negative: bool = False,
) -> "Tensor":
    """Build the supervision tables of a batch.

    How a label value is read (organ k has value k + 1):

    | value | positive | known under smile | no-epsilon | channel-drop | naive |
    |---|---|---|---|---|---|
    | 0, or the value of a hidden organ | none | annotated, absent k | the same | the same | all |
    | 1..K, human label of organ o (not hidden) | o | all | annotated, absent k, and o | annotated, absent k | all |
    | 0x80 | o, pseudo-label, o missing or hidden | o | annotated, absent k, and o | the same | the same | all |
    | 0x80 | o, pseudo-label, o annotated or absent | read as 0 | | | | |
    | 0x80, pseudo-background | none | all | all | all | all |
    | 255 (void) and values that name no organ | none | none | none | none | none |

    Args:
        states: [B][K] declared state of every organ in every image of the batch.
        policy: which pairs are known.
        pseudo_negative: take a pseudo-label as a certain negative of every organ but its own.

    Returns:
        [B, 256, 2, ceil(K / 32)] int32, on the CPU. [..., 0, :] are the known words, [..., 1, :] the positive
        words; organ k is bit k % 32 of word k // 32.

    Raises:
        ValueError: empty batch, images that disagree on K, K outside 1..126, unknown state or policy.

    Source: Petit et al., DLMIA 2018, section 2.1 (policy smile); DESIGN, section 2.
    """
    import torch  # states are used where torch must stay unloaded, e.g. in the command line's --help

    if len(states) == 0:
        raise ValueError("states must describe at least one image, got none")
    if policy not in [member.value for member in Policy]:
        raise ValueError(f"policy must be one of {', '.join(Policy)}, got {policy!r}")
    images = [check_states(image, f"states[{index}]") for index, image in enumerate(states)]
    for index, image in enumerate(images):
        if len(image) != len(images[0]):
            raise ValueError(
                f"states[{index}] names {len(image)} organs, states[0] names {len(images[0])}: "
                "one batch needs one list of organs"
            )
    return torch.from_numpy(np.stack([_table(image, Policy(policy), pseudo_negative) for image in images]))


@lru_cache(maxsize=4096)  # one entry a distinct case: the training loop asks for the same ones every iteration
def _table(states: tuple[State, ...], policy: Policy, pseudo_negative: bool) -> np.ndarray:
    """Return one image's table, [256, 2, ceil(K / 32)] int32."""
    organs = len(states)
    everything = np.ones(organs, dtype=bool)
    declared = np.array([state in (State.ANNOTATED, State.ABSENT) for state in states])
    unlabelled = everything if policy is Policy.NAIVE else declared
    labelled = declared if policy in (Policy.CHANNEL_DROP, Policy.NO_EPSILON) else everything

    known = np.zeros((LABEL_VALUES, organs), dtype=bool)  # void and foreign values stay unknown
    positive = np.zeros((LABEL_VALUES, organs), dtype=bool)
    known[0] = unlabelled
    for organ, state in enumerate(states):
        human, pseudo = organ + 1, PSEUDO_BIT | (organ + 1)
        known[human] = unlabelled if state is State.HIDDEN else labelled
        positive[human, organ] = state is not State.HIDDEN
        if policy is Policy.NO_EPSILON and state is not State.HIDDEN:
            known[human, organ] = True
        known[pseudo] = unlabelled
        if not declared[organ]:
            known[pseudo, organ] = positive[pseudo, organ] = True
            if pseudo_negative:
                known[pseudo] = everything
    known[PSEUDO_BACKGROUND] = everything
    assert not known[VOID].any()  # MAX_ORGANS keeps every pseudo-label below it

    table = np.stack([_pack(known), _pack(positive)], axis=1)
    table.setflags(write=False)  # shared through the cache
    return table


def _pack(bits: np.ndarray) -> np.ndarray:
    """Pack [256, K] booleans into [256, ceil(K / 32)] int32, bit k % 32 of word k // 32."""
    words = -(-bits.shape[1] // WORD_BITS)
    padded = np.zeros((LABEL_VALUES, words * WORD_BITS), dtype=np.uint8)
    padded[:, : bits.shape[1]] = bits
    packed = np.packbits(padded, axis=1, bitorder="little")
    return packed.view("<u4").astype(np.uint32).view(np.int32)
