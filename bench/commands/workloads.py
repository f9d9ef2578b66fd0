"""What is measured of whole commands, and what the figures are called."""

from dataclasses import dataclass

STEPS, CAPTURED = "steps/s", "the same step replayed on one batch, steps/s"
SHARE, BUSY = "share of the replayed step", "GPU busy, share"
CASE, START = "a case, s", "start, s"
EXPORT = "export, s"
VOLUME = "a volume of a folder, s"


@dataclass(frozen=True)
class Cohort:
    """Synthetic CT volumes of `size` x `size` x `slices` voxels.

    Attributes:
        train: cases in the training split. test: cases in the test split.
    """

    train: int = 48
    test: int = 4
    size: int = 512
    slices: int = 60


@dataclass(frozen=True)
class Training:
    """`smile-fast train` under the settings that a user gets.

    Attributes:
        epochs: so many. warmup: share of the steps that are not counted: the first ones tune, compile and capture.
        options: further ones. replays: steps of a round on one batch.
    """

    backbone: str
    epochs: float
    cohort: Cohort = Cohort()
    warmup: float = 0.25
    options: tuple[str, ...] = ()
    replays: int = 30


@dataclass(frozen=True)
class Scoring:
    """`smile-fast evaluate` or `export` of a run that was trained for that.

    Attributes:
        training: of the run; two folds or more, so that there is a small split and a large one.
        repetitions: of an export.
    """

    training: Training
    repetitions: int = 3


# Enough steps for half a minute at the goal's speed, a minute or two at the first run's.
_TRAINED = Training("resnet18", 2, options=("--folds", "12"))
WORKLOADS: dict[str, Training | Scoring] = {
    "train-resnet50": Training("resnet50", 3),
    "train-resnet18": Training("resnet18", 6),
    "evaluate": Scoring(_TRAINED),
    "export": Scoring(_TRAINED),
}
NAMES = [f"commands/{name}" for name in WORKLOADS]
