"""What is learned at the start of a round, from annotated organs alone: confidence heads and temperatures."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.supervision import State
from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.calibration import temperature_of
from smile_fast.training.curriculum.confidence import FEWEST, Heads, fit_heads
from smile_fast.training.curriculum.samples import BUDGET, CONTEXT, channels_of, draw_samples
from smile_fast.training.rounds import Round

if TYPE_CHECKING:
    from smile_fast.training.view import TrainingView

MOST_CASES = 32  # of each organ


@dataclass(frozen=True)
class Fit:
    """What was learned, as numbers that one process can hand to others.

    Attributes:
        heads: all NaN where no confidence is wanted.
        temperatures: [K] float64; 0 where none is wanted, or nothing is annotated.
    """

    heads: Heads
    temperatures: Tensor

    @classmethod
    def empty(cls, model: Segmenter, organs: int) -> "Fit":
        """Nothing was learned."""
        numbers = channels_of(model) + CONTEXT + 1
        weights = torch.full((organs, 2, numbers), torch.nan, dtype=torch.float64)
        return cls(Heads(weights), torch.zeros(organs, dtype=torch.float64))

    @property
    def tensors(self) -> list[Tensor]:
        """All of it."""
        return [self.heads.weights, self.temperatures]

    def of(self, this: Round, organs: tuple[str, ...]) -> Round:
        """The round, with what was learned in its record."""
        if this.braking is None:
            return this
        judged = tuple(organ for k, organ in enumerate(organs) if self.heads.judges(k, positive=True))
        warm = {organ: t for organ, t in zip(organs, self.temperatures.tolist(), strict=True) if t > 0}
        return replace(this, braking=replace(this.braking, judged=judged, temperatures=warm))


def fits(config: TrainConfig) -> bool:
    """Whether anything is learned at the start of a round."""
    return config.brakes.score == "confidence" or config.brakes.calibrate


def digest_of(view: "TrainingView", seed: int, number: int) -> str:
    """SHA-256 of what the heads of a round are fitted to, beside the weights; no array is read."""
    cases = fitted_cases(view, seed, number)
    shown = [[case, *map(str, view.states[case]), view.counts[case].tolist()] for case in cases]
    return hashlib.sha256(json.dumps([seed, number, BUDGET, shown]).encode()).hexdigest()


def fitted_cases(view: "TrainingView", seed: int, number: int) -> list[str]:
    """Cases in a random order, until each organ has `MOST_CASES` in which it is annotated, or all."""
    chosen, had = [], np.zeros(len(view.organs), np.int64)
    for place in np.random.default_rng([seed, number]).permutation(len(view.cases)):
        case = view.cases[place]
        annotated = np.array([state is State.ANNOTATED for state in view.states[case]])
        if (annotated & (had < MOST_CASES)).any():
            chosen.append(case)
            had += annotated
    return chosen


def fit_round(
    config: TrainConfig,
    model: Segmenter,
    view: "TrainingView",
    held_out: "TrainingView",
    number: int,
    check: Callable[[], None] = lambda: None,
) -> Fit:
    """Learn what the settings want, and say in a line what came of it.

    Args:
        config: of the run.
        model: the network of the round.
        view: its training cases, human labels only.
        held_out: its validation cases, likewise; temperatures are fitted to them where they show an organ annotated.
        number: t.
        check: called before each case; may raise to give up.
    """
    seed, organs = (config.seed, number), view.organs
    empty = Fit.empty(model, len(organs))
    heads, temperatures = empty.heads, empty.temperatures
    trained = draw_samples(model, view, fitted_cases(view, *seed), seed, check)
    if config.brakes.score == "confidence":
        heads = fit_heads(trained)
        _say_unjudged(heads, organs)
    if config.brakes.calibrate:
        unseen = draw_samples(model, held_out, fitted_cases(held_out, *seed), seed, check)
        best = [trained[k] if unseen[k].empty_handed else unseen[k] for k in range(len(organs))]
        found = [0.0 if sample.empty_handed else temperature_of(sample) for sample in best]
        temperatures = torch.tensor(found, dtype=torch.float64)
        warm = ", ".join(f"{organ} {t:.4g}" if t else f"{organ} none" for organ, t in zip(organs, found, strict=True))
        print(f"round {number}, temperatures: {warm}", file=sys.stderr)
    return Fit(heads, temperatures)


def _say_unjudged(heads: Heads, organs: tuple[str, ...]) -> None:
    for k, organ in enumerate(organs):
        if not heads.judges(k, positive=True):
            print(
                f"warning: --score: {organ}: annotated cases do not show {FEWEST} right and {FEWEST} wrong voxels to "
                "learn confidence from; its candidates are ranked by probability",
                file=sys.stderr,
            )
