"""A training that has nothing to learn from says so before its first step, not by a loss of 0."""

import numpy as np
from numpy.typing import NDArray

from smile_fast.supervision import Policy, State
from smile_fast.text_table import listed
from smile_fast.training.config import TrainConfig
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.label_map import WORD_BITS


def check_learnable(view: TrainingView, config: TrainConfig) -> list[str]:
    """Hold what is known of every organ against what learning it takes: a positive and a negative.

    Args:
        view: the training cases, human labels only.
        config: method and policy.

    Returns:
        One sentence for the organs without a positive, one for those without a negative, and one for those that no case
        shows as a whole, where there are such.

    Raises:
        InputError: no organ has a positive.
    """
    positives, negatives = _known_voxels(view, config)
    cases = f"{len(view.cases)} training cases"
    unseen = [organ for organ, voxels in zip(view.organs, positives, strict=True) if not voxels]
    if len(unseen) == len(view.organs):
        raise InputError(
            f"{view.store.path}: nothing is annotated, the {cases} show no voxel of an organ that training may learn "
            "from; correct annotations.csv or the label maps"
        )
    boundless = [
        organ
        for organ, ours, others in zip(view.organs, positives, negatives, strict=True)
        if ours and not others  # without a positive, the first sentence says it
    ]
    warnings = []
    if unseen:
        warnings.append(
            f"{view.store.path}: the {cases} show no voxel of {listed(unseen)} that training may learn from, so it "
            "cannot be found; annotate it in some of them"
        )
    if boundless:
        warnings.append(
            f"{view.store.path}: no voxel of the {cases} is known not to be {listed(boundless)}, so everything will be "
            "called that; declare it annotated in some case where it is drawn as a whole, or absent in some"
        )
    in_part = [
        organ
        for k, organ in enumerate(view.organs)
        if organ not in (*unseen, *boundless)
        and not any(states[k] is State.ANNOTATED for states in view.states.values())
    ]
    if in_part and config.method != "baseline" and config.policy != "naive":
        warnings.append(
            f"{view.store.path}: {listed(in_part)} is annotated in none of the {cases}, only drawn in part, so nothing "
            "but other organs is known not to be it; declare it annotated where it is drawn as a whole"
        )
    return warnings


def _known_voxels(view: TrainingView, config: TrainConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By organ the voxels [K] that are known to belong to it, and those [K] that are known not to.

    Void is taken for unlabelled, for the index does not count it: negatives may be too many, but are never missed.
    """
    policy = Policy.NAIVE if config.method == "baseline" else Policy(config.policy)
    organs = len(view.organs)
    words = view.tables(policy).numpy()[:, : organs + 1]  # [cases, values 0..K, 2, words]
    positives, negatives = np.zeros(organs, np.int64), np.zeros(organs, np.int64)
    for case, table in zip(view.cases, words, strict=True):
        drawn = view.counts[case].sum(axis=0, dtype=np.int64)  # [K]
        voxels = np.append(np.prod(view.store.cases[case].shape) - drawn.sum(), drawn)  # [values]
        bits = table[..., np.newaxis] >> np.arange(WORD_BITS) & 1  # [values, 2, words, 32]
        known, positive = bits.reshape(organs + 1, 2, -1)[..., :organs].transpose(1, 0, 2)  # [values, K]
        positives += voxels @ (known & positive)
        negatives += voxels @ (known & 1 - positive)
    return positives, negatives
