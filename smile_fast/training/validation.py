"""Dice of the validation cases while training goes on: for the curve, and for --stop, which undoes a worse round."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from smile_fast.models import Segmenter
from smile_fast.pipeline import in_order, worker_thread
from smile_fast.supervision import State
from smile_fast.supervision.overlap import joint_histogram, organ_dice
from smile_fast.training.inference import queue_labels
from smile_fast.training.ranks import ALONE, Ranks
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import VOID
from smile_runtime.volume.preprocessing import BodyBox

CaseDice = dict[str, float]
"""organ -> Dice of a case."""


def validate(model: Segmenter, view: TrainingView, ranks: Ranks = ALONE) -> dict[str, float]:
    """Mean Dice per organ over the validation cases in which the organ is annotated and present.

    Args:
        model: the network.
        view: the validation cases.
        ranks: who share the cases out; rank 0 gets the result, the others an empty one.
    """
    shares = ranks.gather(_dice(model, view, ranks.share.of(view.cases)))
    by_case = {case: dice for share in shares for case, dice in share.items()}
    scores = {organ: [by_case[c][organ] for c in view.cases if organ in by_case.get(c, {})] for organ in view.organs}
    return {organ: float(np.mean(found)) for organ, found in scores.items() if found}


def _dice(model: Segmenter, view: TrainingView, cases: Sequence[str]) -> dict[str, CaseDice]:
    """Dice of some validation cases.

    Hidden organs stay hidden here: whoever reads the curve to choose a number of epochs is training too. While a case
    is predicted the next one is read and the voxels of the one before it are counted.

    Args:
        model: the network.
        view: the validation cases.
        cases: some of them.
    """

    def read(case: str) -> tuple[NDArray[np.uint8], NDArray[np.int16], BodyBox]:
        return view.visible_labels(case), view.image(case), view.box(case)

    scores: dict[str, CaseDice] = {}
    with worker_thread("read") as reader, worker_thread("count") as counter:
        queued = (
            (truth, queue_labels(model, image, box=box, spacing=view.spacing(case)))
            for case, (truth, image, box) in zip(cases, in_order(read, cases, reader, ahead=1), strict=True)
        )
        for case, joint in zip(cases, in_order(_count, queued, counter, ahead=1), strict=True):
            for value, (organ, state) in enumerate(zip(view.organs, view.states[case], strict=True), start=1):
                dice = organ_dice(joint, value)
                if dice is not None and state == State.ANNOTATED and joint[value].any():
                    scores.setdefault(case, {})[organ] = dice
    return scores


def _count(case: tuple[NDArray[np.uint8], Callable[[], NDArray[np.uint8]]]) -> NDArray[np.int64]:  # [256, 256]
    """Voxels by visible label and predicted label, void left out."""
    truth, found = case
    joint = joint_histogram(truth, found())
    joint[VOID] = 0
    return joint
