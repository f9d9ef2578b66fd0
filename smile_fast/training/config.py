"""All settings of a training run, in one place, as plain JSON."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from smile_runtime.errors import InputError

if TYPE_CHECKING:
    from smile_runtime.volume.preprocessing import BodyRule

Method = Literal["baseline", "smile", "smiler"]
_INF = float("inf")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `smile-fast train`; every field is a command-line option of the same name.

    Args:
        method: "baseline" (K+1 softmax, missing = background), "smile" or "smiler".
        policy: supervision policy of the sigmoid heads: "smile", "channel-drop" or "naive" (the baseline has none).
        backbone, output_stride, width, rates, channels, window: see `smile_fast.models.ModelConfig`.
        crop_size: height and width in pixels of the training patches; 0 takes the cohort's largest slice,
            rounded up to a multiple of 32, at most 512. With body_crop they are no larger than the bodies' median.
        batch_size: slices per step.
        epochs: length of the first stage in passes over the training slices.
        budget: seconds of training for all stages together; 0 means that `epochs` counts.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        lr: peak learning rate; None takes 1e-3 for adamw and 1e-2 for sgd.
        weight_decay: of the convolution weights (not of biases and BatchNorm).
        warmup: share of each stage over which the learning rate rises linearly.
        ema: decay of the exponential moving average of the weights; 0 switches it off.
        organ_share: share of the slices of a batch that are drawn because they show a given organ.
        flip: probability of a left-right mirror image (0: organs are not symmetric).
        rotate: largest rotation in degrees. scale: largest relative change of size.
        translate: largest shift as a share of the patch. intensity: largest relative change of contrast and,
            in the same share of the window, of brightness. noise: largest standard deviation of added noise, HU.
        rounds: T, relabelling rounds of the curriculum (smiler).
        gamma_max: share of the positive candidates that the last round takes (smiler).
        scope: segments of the selection: "volume" or "slice" (smiler).
        round_share: length of each round's training relative to the first stage (smiler).
        pseudo_negative: whether a pseudo-label is a negative for the other missing organs.
        fold, folds: cross-validation inside the training split; folds = 0 uses every case for training.
        seed: of the start weights, the sampling and the augmentation.
        amp: "auto" (bfloat16 on CUDA, float32 on CPU), "off" or "bfloat16".
        validate_every: epochs between two looks at the validation cases; 0 never.
        tensorboard: also write TensorBoard events (needs the package tensorboard).
        body_crop: leave the air around the body out, in patches and predictions, as production then does; runs of
            before this setting read as False.

    Source:
        Petit et al., "Handling Missing Annotations for Semantic Segmentation with Deep ConvNets", DLMIA 2018.
    """

    method: Method = "smile"
    policy: Literal["smile", "channel-drop", "naive"] = "smile"
    backbone: str = "resnet50"
    output_stride: int = 8
    width: int = 64
    rates: tuple[int, ...] = ()
    channels: int = 1
    window: tuple[float, float] = (-160.0, 240.0)
    crop_size: int = 0
    batch_size: int = 8
    epochs: float = 20.0
    budget: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.05
    ema: float = 0.0
    organ_share: float = 0.7
    flip: float = 0.0
    rotate: float = 10.0
    scale: float = 0.15
    translate: float = 0.05
    intensity: float = 0.1
    noise: float = 10.0
    rounds: int = 2
    gamma_max: float = 0.66
    scope: Literal["volume", "slice"] = "volume"
    round_share: float = 0.5
    pseudo_negative: bool = False
    fold: int = 0
    folds: int = 0
    seed: int = 0
    amp: Literal["auto", "off", "bfloat16"] = "auto"
    validate_every: float = 0.0
    tensorboard: bool = False
    body_crop: bool = True

    def __post_init__(self) -> None:
        for name, text, holds in self._rules():
            if not holds:
                given = getattr(self, name)
                raise InputError(f"The setting {name} must be {text}, but {given!r} was given.")

    def _rules(self) -> list[tuple[str, str, bool]]:
        return [
            ("method", "baseline, smile or smiler", self.method in get_args(Method)),
            ("policy", "smile, channel-drop or naive", self.policy in ("smile", "channel-drop", "naive")),
            ("policy", "left out for the baseline", self.method != "baseline" or self.policy == "smile"),
            (
                "backbone",
                "resnet18, resnet34, resnet50 or resnet101",
                self.backbone in ("resnet18", "resnet34", "resnet50", "resnet101"),
            ),
            ("output_stride", "8 or 16", self.output_stride in (8, 16)),
            ("width", "a multiple of 8", self.width >= 8 and self.width % 8 == 0),
            ("rates", "positive", all(rate >= 1 for rate in self.rates)),
            ("channels", "a positive odd number", self.channels >= 1 and self.channels % 2 == 1),
            (
                "window",
                "a lower and a higher HU",
                len(self.window) == 2 and -_INF < self.window[0] < self.window[1] < _INF,
            ),
            ("crop_size", "0 or a multiple of 32", self.crop_size >= 0 and self.crop_size % 32 == 0),
            # BatchNorm over the pooled image has one value per slice and channel: it cannot train on one slice.
            ("batch_size", "at least 2", self.batch_size >= 2),
            ("epochs", "positive", 0 < self.epochs < _INF),
            ("budget", "0 or a positive time", 0 <= self.budget < _INF),
            ("optimizer", "adamw or sgd", self.optimizer in ("adamw", "sgd")),
            ("lr", "positive", self.lr is None or 0 < self.lr < _INF),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < _INF),
            ("warmup", "in [0, 1)", 0 <= self.warmup < 1),
            ("ema", "in [0, 1)", 0 <= self.ema < 1),
            ("organ_share", "in [0, 1]", 0 <= self.organ_share <= 1),
            ("flip", "in [0, 1]", 0 <= self.flip <= 1),
            ("rotate", "in [0, 180]", 0 <= self.rotate <= 180),
            ("scale", "in [0, 0.9]", 0 <= self.scale <= 0.9),
            ("translate", "in [0, 0.9]", 0 <= self.translate <= 0.9),
            ("intensity", "in [0, 1]", 0 <= self.intensity <= 1),
            ("noise", "0 or more", 0 <= self.noise < _INF),
            ("rounds", "at least 1", self.rounds >= 1),
            ("gamma_max", "in (0, 1]", 0 < self.gamma_max <= 1),
            ("scope", "volume or slice", self.scope in ("volume", "slice")),
            ("round_share", "positive", 0 < self.round_share < _INF),
            ("folds", "0 or at least 2", self.folds == 0 or self.folds >= 2),
            ("fold", "0 or more and less than folds", self.fold == 0 or 0 < self.fold < self.folds),
            ("seed", "0 or more, and less than 2^63", 0 <= self.seed < 2**63),
            ("amp", "auto, off or bfloat16", self.amp in ("auto", "off", "bfloat16")),
            ("validate_every", "0 or more", 0 <= self.validate_every < _INF),
        ]

    @property
    def body(self) -> "BodyRule | None":
        """By which rule the air is left out; None leaves nothing out."""
        from smile_runtime.volume.preprocessing import BodyRule  # not at the top: options are declared without numpy

        return BodyRule() if self.body_crop else None

    @property
    def stages(self) -> int:
        """1 + T for smiler, 1 for the others."""
        return 1 + self.rounds if self.method == "smiler" else 1

    @property
    def peak_lr(self) -> float:
        """The learning rate, with the optimizer's default filled in."""
        return self.lr if self.lr is not None else {"adamw": 1e-3, "sgd": 1e-2}[self.optimizer]

    def gamma(self, round_number: int) -> float:
        """gamma_t = (t / T) gamma_max: the share of the candidates that round t takes."""
        return round_number / self.rounds * self.gamma_max

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`; unknown names are refused, and missing ones take their defaults."""
        unknown = sorted(set(settings) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"The training settings name {', '.join(unknown)}, which this version does not know.")
        known = dict(settings)
        for name in ("rates", "window"):
            if name in known:
                known[name] = tuple(known[name])
        try:
            return cls(**known)
        except TypeError as error:
            raise InputError(f"The training settings hold a value of the wrong type ({error}).") from None
