"""Dice of the validation cases while training goes on, for the curve only: no decision depends on it."""

import numpy as np

from smile_fast.models import Segmenter
from smile_fast.supervision import State
from smile_fast.supervision.overlap import joint_histogram, organ_dice
from smile_fast.training.inference import predict_labels
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import VOID


def validate(model: Segmenter, view: TrainingView) -> dict[str, float]:
    """Mean Dice per organ over the validation cases in which the organ is annotated and present.

    Hidden organs stay hidden here: whoever reads the curve to choose a number of epochs is training too.

    Args:
        model: the network.
        view: the validation cases.
    """
    scores: dict[str, list[float]] = {organ: [] for organ in view.organs}
    for case in view.cases:
        truth = view.visible_labels(case)
        found = predict_labels(model, view.image(case), box=view.box(case), spacing=view.spacing(case))
        joint = joint_histogram(truth, found)
        joint[VOID] = 0
        for value, (organ, state) in enumerate(zip(view.organs, view.states[case], strict=True), start=1):
            dice = organ_dice(joint, value)
            if dice is not None and state == State.ANNOTATED and joint[value].any():
                scores[organ].append(dice)
    return {organ: float(np.mean(found)) for organ, found in scores.items() if found}
