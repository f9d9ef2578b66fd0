"""All settings of a training run, in one place: declared once, kept as plain JSON."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from smile_fast.models.config import ModelConfig
from smile_fast.settings import Settings, declared, documented, setting, unusable
from smile_fast.training.curriculum.settings import Brakes
from smile_runtime.errors import InputError
from smile_runtime.volume.pixel_size import PIXEL_SIZES, cohort_pixel_size, range_text, reachable_pixel_sizes

if TYPE_CHECKING:
    from smile_runtime.volume.preprocessing import BodyRule


def _share(default: float, help: str, group: str) -> Any:
    return setting(default, help, "a number in [0, 1]", lambda value: 0 <= value <= 1, group=group)


def _positive(default: float | None, help: str, group: str) -> Any:
    """A float that may be None where the default is."""
    return setting(default, help, "a positive number", lambda value: 0 < value < inf, group=group, kind=float)


def _not_negative(default: float, help: str, group: str) -> Any:
    return setting(default, help, "0 or a positive number", lambda value: 0 <= value < inf, group=group)


def _millimetres(text: str) -> float | None:
    """A pixel size in mm, None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if PIXEL_SIZES[0] <= number <= PIXEL_SIZES[1] else None


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Seconds of "90s", "10m", "2h" or a plain number of seconds."""
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 10m or 2h") from None
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 10m or 2h")
    return seconds


@documented
@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of `smile-fast train`; every one of them, and of the network's, is an option of the same name.

    Source:
        Petit et al., "Handling Missing Annotations for Semantic Segmentation with Deep ConvNets", DLMIA 2018.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    brakes: Brakes = field(default_factory=Brakes)

    method: Literal["baseline", "marginal", "smile", "smiler"] = setting(
        "smile",
        "baseline (softmax, missing = background), marginal (softmax, what is not labelled is background or a missing "
        "organ), smile (sigmoids, certain labels alone), or smiler (smile and relabelling rounds)",
        group="method",
        choices=("baseline", "marginal", "smile", "smiler"),
    )
    policy: Literal["smile", "no-epsilon", "channel-drop", "naive"] = setting(
        "smile",
        "which labels the sigmoid heads trust (a softmax has none): smile (what is certain), no-epsilon (less what "
        "other organs' labels say of an organ), channel-drop (annotated organs alone) or naive (missing = background)",
        group="method",
        choices=("smile", "no-epsilon", "channel-drop", "naive"),
    )
    rounds: int = setting(
        2, "T, number of relabelling rounds of smiler", "at least 1", lambda rounds: rounds >= 1, group="method"
    )
    gamma_max: float = setting(
        0.66,
        "share of the positive candidates that the last round takes",
        "a number in (0, 1]",
        lambda gamma: 0 < gamma <= 1,
        group="method",
    )
    scope: Literal["volume", "slice"] = setting(
        "volume", "what a round selects its share from", group="method", choices=("volume", "slice")
    )
    round_share: float = _positive(0.5, "length of a round relative to the training on human labels", "method")
    pseudo_negative: bool = setting(
        False, "take a pseudo-label as a negative for the other missing organs", group="method"
    )
    keep_rounds: bool = setting(
        False, "keep the weights that each round begins with, for the predictions of Figure 4", group="method"
    )

    epochs: float = _positive(20.0, "passes over the training slices, in the training on human labels", "schedule")
    budget: float = setting(
        0.0,
        "training time instead of epochs, e.g. 90s, 10m or 2h, for all rounds together (0: as long as the epochs take)",
        "0 or a positive time",
        lambda seconds: 0 <= seconds < inf,
        group="schedule",
        metavar="TIME",
        parse=parse_time,
    )
    # BatchNorm over the pooled image has one value per slice and channel: it cannot train on one slice.
    batch_size: int = setting(
        8, "slices per step, over all processes", "at least 2", lambda slices: slices >= 2, group="schedule"
    )
    optimizer: Literal["adamw", "sgd"] = setting(
        "adamw", "sgd has a momentum of 0.9", group="schedule", choices=("adamw", "sgd")
    )
    lr: float | None = _positive(None, "peak learning rate (default: 1e-3 for adamw, 1e-2 for sgd)", "schedule")
    weight_decay: float = _not_negative(
        1e-4, "weight decay of the convolutions, not of biases and BatchNorm", "schedule"
    )
    clip_norm: float = _not_negative(
        0.0, "largest norm of the gradient, a longer one is scaled down to it (0: off)", "schedule"
    )
    warmup: float = setting(
        0.05,
        "share of a round over which the learning rate rises",
        "a number in [0, 1)",
        lambda share: 0 <= share < 1,
        group="schedule",
    )
    batch_norm: Literal["synchronised", "frozen"] = setting(
        "synchronised",
        "statistics of a BatchNorm in training: synchronised (of the whole batch, over all processes) or frozen (the "
        "running ones it starts with, as --weights brings them)",
        group="schedule",
        choices=("synchronised", "frozen"),
    )
    ema: float = setting(
        0.0,
        "decay of the averaged weights that are evaluated and exported (0: off)",
        "a number in [0, 1)",
        lambda decay: 0 <= decay < 1,
        group="schedule",
    )
    amp: Literal["auto", "off", "bfloat16"] = setting(
        "auto", "bfloat16 arithmetic: auto takes it on CUDA", group="schedule", choices=("auto", "off", "bfloat16")
    )
    seed: int = setting(
        0,
        "seed of start weights, sampling and augmentation",
        "0 or more, and less than 2^63",
        lambda seed: 0 <= seed < 2**63,
        group="schedule",
    )

    pixel_size: str = setting(
        "auto",
        "mm a pixel that slices are brought to, in training and then in production: a number, auto (the median of the "
        "training cases) or native (every scan's own pixels, whatever their size)",
        "auto, native or {:g} to {:g} mm".format(*PIXEL_SIZES),
        lambda text: text in ("auto", "native") or _millimetres(text) is not None,
        group="data",
        metavar="auto|native|MM",
    )
    crop_size: int = setting(
        0,
        "patch height and width in pixels of the network, a multiple of 32 (0: the largest slice, at most 512)",
        "0 or a multiple of 32",
        lambda size: size >= 0 and size % 32 == 0,
        group="data",
    )
    organ_share: float = _share(0.7, "share of a batch that is drawn because it shows some organ", "data")
    flip: float = _share(0.0, "probability of a left-right mirror image (0: organs are not symmetric)", "data")
    rotate: float = setting(
        10.0,
        "largest rotation, degrees",
        "a number in [0, 180]",
        lambda degrees: 0 <= degrees <= 180,
        group="data",
    )
    scale: float = setting(
        0.15,
        "largest relative change of size",
        "a number in [0, 0.9]",
        lambda change: 0 <= change <= 0.9,
        group="data",
    )
    translate: float = setting(
        0.05,
        "largest shift, share of the patch",
        "a number in [0, 0.9]",
        lambda shift: 0 <= shift <= 0.9,
        group="data",
    )
    intensity: float = _share(
        0.1, "largest relative change of contrast, and of brightness in shares of the window", "data"
    )
    noise: float = _not_negative(10.0, "largest standard deviation of added noise, HU", "data")
    fold: int = setting(0, "validation fold, from 0", "0 or more", lambda fold: fold >= 0, group="data")
    folds: int = setting(
        0,
        "folds of a cross-validation (0: train on all cases of the training split)",
        "0 or at least 2",
        lambda folds: folds == 0 or folds >= 2,
        group="data",
    )
    validate_every: float = _not_negative(0.0, "epochs between two looks at the validation cases (0: never)", "data")
    tensorboard: bool = setting(False, "also write TensorBoard events (needs the package tensorboard)", group="data")
    body_crop: bool = setting(
        True, "leave the air around the body out, in training and then in production", group="data"
    )

    def __post_init__(self) -> None:
        """Refuse a value that cannot be used, alone or beside the others."""
        super().__post_init__()
        if self.head == "softmax" and self.policy != "smile":
            raise InputError(f"--policy: {self.policy!r} cannot be used, the {self.method} has none; leave it out")
        if self.fold and self.fold >= self.folds:
            raise unusable("fold", self.fold, "0, or a number less than --folds")
        if self.model.organs and self.model.head != self.head:
            raise unusable("method", self.method, f"one whose network ends in a {self.model.head}")

    @property
    def head(self) -> Literal["sigmoid", "softmax"]:
        """The head of the method's network."""
        return "softmax" if self.method in ("baseline", "marginal") else "sigmoid"

    def of_cohort(self, organs: tuple[str, ...], spacings: Sequence[Sequence[float]]) -> "TrainConfig":
        """The settings of a run: the network gets the method's head, and organs and pixel size of its cohort.

        Args:
            organs: names, in the order of their label values.
            spacings: (z, y, x) of the training cases, mm.

        Raises:
            InputError: the cases cannot all be brought to the pixel size.
        """
        if self.pixel_size == "auto":
            pixel_mm: float | None = cohort_pixel_size(spacings)
        else:
            pixel_mm = _millimetres(self.pixel_size)  # None for native
        low, high = reachable_pixel_sizes(spacings, self.model.output_stride)
        if pixel_mm is not None and not low <= pixel_mm <= high:
            sides = range_text(side for _, *sides in spacings for side in sides)
            raise InputError(
                f"--pixel-size: the pixels of the training cases, {sides} mm, cannot all be brought to {pixel_mm:g} mm"
                f"; give {low:.3g} to {high:.3g}, or native"
            )
        return replace(self, model=replace(self.model, organs=organs, head=self.head, pixel_mm=pixel_mm))

    @property
    def body(self) -> "BodyRule | None":
        """By which rule the air is left out; None leaves nothing out."""
        from smile_runtime.volume.preprocessing import BodyRule  # not at the top: options are declared without numpy

        return BodyRule() if self.body_crop else None

    @property
    def last_round(self) -> int:
        """T for smiler; 0, the training on human labels, for the others."""
        return self.rounds if self.method == "smiler" else 0

    @property
    def peak_lr(self) -> float:
        """The learning rate, with the optimizer's default filled in."""
        return self.lr if self.lr is not None else {"adamw": 1e-3, "sgd": 1e-2}[self.optimizer]

    def gamma(self, round_number: int) -> float:
        """gamma_t = (t / T) gamma_max: the share of the candidates that round t takes."""
        return round_number / self.rounds * self.gamma_max

    @classmethod
    def from_json(cls, record: Any) -> "TrainConfig":
        """The inverse of `to_json`; see `Settings.from_json`."""
        if isinstance(record, dict) and "model" in record:
            record = {**record, "model": ModelConfig.from_json(record["model"])}
        if isinstance(record, dict):  # a run from before there were brakes has none
            record = {**record, "brakes": Brakes.from_json(record["brakes"]) if "brakes" in record else Brakes()}
        return super().from_json(record)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "TrainConfig":
        """Settings by the names of their options, the network's among them; what is not named has its default."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        model: dict[str, Any] = {name: values.pop(name) for name in declared(ModelConfig) if name in values}
        brakes: dict[str, Any] = {name: values.pop(name) for name in declared(Brakes) if name in values}
        return cls(model=ModelConfig(**model), brakes=Brakes(**brakes), **values)
