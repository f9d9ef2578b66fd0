"""Where training stands, how long it goes on, and the learning rate on the way."""

from dataclasses import dataclass

from smile_fast.settings import default_of
from smile_fast.training.config import TrainConfig

POLY_POWER = 0.9  # Chen et al., "DeepLab", TPAMI 2018, section 4.1


@dataclass
class Position:
    """Where training stands.

    Attributes:
        round: 0 for the training on human labels, t for that on the labels of relabelling round t.
        step: steps done in this round. total_steps: steps done in all rounds. seconds: training time in this round.
    """

    round: int = 0
    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0


class Pace:
    """How long a round lasts: in steps, or in seconds when a budget is given."""

    def __init__(self, config: TrainConfig, round_number: int, steps_per_epoch: int) -> None:
        share = 1.0 if round_number == 0 else config.round_share
        whole = 1.0 + config.last_round * config.round_share
        self.seconds = config.budget * share / whole
        self.steps = max(1, round(config.epochs * share * steps_per_epoch))
        self._every = max(1, round(config.validate_every * steps_per_epoch)) if config.validate_every else 0

    @property
    def length(self) -> float:
        """Seconds of the round if there is a budget, else its steps."""
        return self.seconds or self.steps

    def done(self, position: Position) -> float:
        """How much of the round's length is done; a step that uses up the budget counts in part."""
        return min(self.length, position.seconds if self.seconds else position.step)

    def progress(self, position: Position) -> float:
        """Part of the round that is done, 0 to 1."""
        done = position.seconds / self.seconds if self.seconds else position.step / self.steps
        return min(1.0, done)

    def validates(self, position: Position) -> bool:
        """Whether the validation cases are looked at after this step."""
        return self._every > 0 and position.step % self._every == 0


class Course:
    """The whole training, with all rounds.

    Attributes:
        paces: of the rounds. steps_per_epoch: as the rounds have it.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.paces = [Pace(config, number, steps_per_epoch) for number in range(config.last_round + 1)]

    @property
    def length(self) -> float:
        """Seconds of all rounds if there is a budget, else their steps."""
        return sum(pace.length for pace in self.paces)

    def done(self, position: Position) -> float:
        """How much of the length is done."""
        earlier = sum(pace.length for pace in self.paces[: position.round])
        return earlier + self.paces[position.round].done(position)


def default_epochs(config: TrainConfig) -> float:
    """Epochs of all rounds together that a training without a budget has unless it is told otherwise."""
    return float(default_of(TrainConfig, "epochs")) * (1.0 + config.last_round * config.round_share)


def step_seed(seed: int, round_number: int, step: int) -> int:
    """A seed of its own for every step, in the 63 bits that torch takes."""
    return ((seed * 1_000_003 + round_number) * 1_000_003 + step) % 2**63


def dropout_seed(seed: int, rank: int) -> int:
    """A seed of its own for every rank of a step: each drops other features, what all draw alike has the step's."""
    return (seed + (rank + 1) * 0x9E3779B97F4A7C15) % 2**63


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then the poly schedule; every round of the curriculum goes through it once.

    Args:
        config: settings of the run.
        progress: part of the round that is done, in [0, 1].
    """
    warm = min(1.0, (progress + 1e-3) / config.warmup) if config.warmup else 1.0
    return config.peak_lr * warm * float(max(0.0, 1.0 - progress) ** POLY_POWER)


def average_weight(decay: float, step: int) -> float:
    """Weight of the model in the exponential moving average after step t, counted from 0.

    The decay is min(decay, (1 + t) / (10 + t)), so that the random start weights are forgotten early.
    """
    return 1 - min(decay, (1 + step) / (10 + step))
