"""Dice of the validation cases while training goes on, for the curve only: no decision depends on it."""

import numpy as np

from smile_fast.models import Segmenter
from smile_fast.supervision import VOID, State
from smile_fast.training.inference import predict_labels
from smile_fast.training.view import TrainingView


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
        predicted = np.where(truth == VOID, 0, predict_labels(model, view.image(case), box=view.box(case)))
        for value, (organ, state) in enumerate(zip(view.organs, view.states[case], strict=True), start=1):
            drawn = truth == value
            if state == State.ANNOTATED and drawn.any():
                both = np.count_nonzero(drawn & (predicted == value))
                scores[organ].append(2 * both / (np.count_nonzero(drawn) + np.count_nonzero(predicted == value)))
    return {organ: float(np.mean(dice)) for organ, dice in scores.items() if dice}
