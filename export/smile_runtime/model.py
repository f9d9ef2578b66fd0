"""An exported model file: what it must contain, and how it is loaded and run."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from smile_runtime._onnx_scan import WireError, scan_onnx
from smile_runtime.errors import InputError
from smile_runtime.files import check_readable, reason
from smile_runtime.preprocessing import ORIENTATION

METADATA_KEY = "smile_fast"  # of the entry in the file's metadata_props that holds the card
SCHEMA = 1
INPUT = "hu"  # int16 [N, C, H, W], HU
LABELS = "labels"  # uint8 [N, H, W], 0 or organ number
PROBABILITIES = "probabilities"  # optional, float or uint8 (round(255 p)) [N, K, H, W]
MAX_ORGANS = 126  # label values 1..126; above are pseudo-labels and void
HEADS = ("sigmoid", "softmax")
PRECISIONS = ("fp32", "fp16", "int8")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
_MAX_CARD_CHARACTERS = 2**20


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to run an exported file and to know where it comes from.

    Attributes:
        organs: Names; label value k + 1 is organs[k].
        channels: Slices seen at once, odd.
        window: (lowest, highest) HU that the network tells apart; applied inside the graph.
        head: ``sigmoid`` (one decision an organ) or ``softmax`` (the K + 1 class baseline).
        threshold: Probability above which a voxel belongs to an organ (sigmoid head); applied inside the graph.
        orientation: Of the slices, seen as [x, y, z]; only ``LPS`` is defined.
        provenance: How the model was made; any JSON object.
        parity: The certificate that the file computes what the training side computes; any JSON object.
        precision: ``fp32``, ``fp16`` or ``int8``: what the network's convolutions compute in.
        schema: Version of this list.
    """

    organs: tuple[str, ...]
    channels: int
    window: tuple[float, float]
    head: str
    threshold: float = 0.5
    orientation: str = ORIENTATION
    provenance: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check every field; a `ValueError` names the first that is wrong."""
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, this version of smile_runtime reads schema {SCHEMA}")
        organs = self.organs
        if not isinstance(organs, tuple) or not all(isinstance(o, str) and o.isprintable() and o for o in organs):
            raise ValueError("organs is not a list of names")
        if not 1 <= len(set(organs)) == len(organs) <= MAX_ORGANS:
            raise ValueError(f"organs has {len(organs)} names, 1..{MAX_ORGANS} different ones are wanted")
        if type(self.channels) is not int or self.channels < 1 or self.channels % 2 == 0:
            raise ValueError(f"channels is {self.channels!r}, a positive odd number is wanted")
        if not isinstance(self.window, tuple) or len(self.window) != 2 or not all(map(_is_finite, self.window)):
            raise ValueError(f"window is {self.window!r}, two finite numbers are wanted")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window is {list(self.window)}, lowest < highest is wanted")
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}, one of {', '.join(HEADS)} is wanted")
        if not _is_finite(self.threshold) or not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold!r}, a number between 0 and 1 is wanted")
        if self.orientation != ORIENTATION:
            raise ValueError(f"orientation is {self.orientation!r}, {ORIENTATION!r} is wanted")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, one of {', '.join(PRECISIONS)} is wanted")
        if not isinstance(self.provenance, dict) or not isinstance(self.parity, dict):
            raise ValueError("provenance and parity must be JSON objects")

    def to_json(self) -> str:
        """The text that goes into the file's metadata under `METADATA_KEY`.

        Raises:
            ValueError: Provenance or parity holds NaN or an infinite number.
        """
        return json.dumps({"schema": self.schema, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str = "the model card") -> "ModelCard":
        """Read and check what `to_json` wrote.

        Args:
            text: JSON.
            source: What it was read from, for messages.

        Raises:
            InputError: The text is no JSON object, a field is missing, unknown or wrong, or the schema is another.
        """
        try:
            if len(text) > _MAX_CARD_CHARACTERS:
                raise ValueError(f"it has {len(text)} characters")
            card = json.loads(text, parse_constant=_refuse_constant)
            if not isinstance(card, dict):
                raise ValueError("it is not a JSON object")
            if card.get("schema") != SCHEMA:  # first, because the fields depend on it
                raise ValueError(f"schema is {card.get('schema')!r}, this version reads schema {SCHEMA}")
            names = {item.name for item in fields(cls)}
            if wrong := sorted(names ^ set(card)):
                raise ValueError(f"{wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
            for name in ("organs", "window"):
                card[name] = tuple(card[name]) if isinstance(card[name], list) else card[name]
            return cls(**card)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source} cannot be used: {_first_line(error)}") from error


class Model:
    """A loaded model file, checked against its contract.

    Attributes:
        path: The file.
        card: What the file says about itself.
        has_probabilities: Whether it was exported with probabilities.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        """Load a model.

        Args:
            path: An ``.onnx`` file exported by smile-fast.
            threads: CPU threads of one inference; all cores if None.
            provider: ``cpu`` or ``cuda``. A provider that is asked for and does not work is an error.

        Raises:
            InputError: The file is missing, damaged, not from smile-fast, of another schema, keeps tensors in other
                files or contradicts its own card; or the provider is unknown or not available.
        """
        self.path = Path(path)
        content = _read(self.path)
        self.card = _card(content, self.path)
        self._session = _session(content, self.path, threads, provider)
        _check_contract(self._session, self.card, self.path)
        self.has_probabilities = len(self._session.get_outputs()) == 2

    def labels(
        self,
        hu: npt.NDArray[np.int16],  # [N, C, H, W]
    ) -> npt.NDArray[np.uint8]:
        """Segment a batch of slices.

        Args:
            hu: [N, C, H, W] int16 HU in slices order, C = card.channels.

        Returns:
            [N, H, W] uint8: 0 or organ number.

        Raises:
            InputError: The model fails on this input, or answers with something else than its card promises.
        """
        labels = self._run(LABELS, hu)
        batch, _, height, width = hu.shape
        if labels.shape != (batch, height, width) or (labels.size and labels.max() > len(self.card.organs)):
            raise InputError(
                f"{self.path} contradicts its model card: for slices of {height} x {width} it wrote labels of shape"
                f" {labels.shape} up to {labels.max(initial=0)} with {len(self.card.organs)} organs: export it again"
            )
        return labels

    def probabilities(
        self,
        hu: npt.NDArray[np.int16],  # [N, C, H, W]
    ) -> npt.NDArray[Any]:
        """Probabilities of a batch of slices.

        Args:
            hu: As for `labels`.

        Returns:
            [N, K, H, W] float16, float32, or uint8, which is round(255 p).

        Raises:
            InputError: The file was exported without probabilities, or fails on this input.
        """
        if not self.has_probabilities:
            raise InputError(f"{self.path} was exported without probabilities: export it again with them")
        return self._run(PROBABILITIES, hu)

    def _run(self, output: str, hu: npt.NDArray[np.int16]) -> npt.NDArray[Any]:
        try:
            result: npt.NDArray[Any] = self._session.run([output], {INPUT: hu})[0]
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise InputError(f"{self.path} fails on slices of shape {hu.shape}: {_first_line(error)}") from error
        return result


def _read(path: Path) -> bytes:
    if check_readable(path) > _MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than 2 GiB: it is not a model exported by smile-fast")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _card(content: bytes, path: Path) -> ModelCard:
    """The file's card; refuses, before any session exists, what must not be run."""
    try:
        scan = scan_onnx(content)
    except WireError as error:
        raise InputError(f"{path} is not an ONNX file, or is damaged or cut short: {error}") from error
    if not scan.has_graph:
        raise InputError(f"{path} is not an ONNX file: it holds no graph")
    if scan.external_data:
        raise InputError(f"{path} keeps tensors in other files, which is not allowed: export it as one file")
    cards = [value for key, value in scan.metadata if key == METADATA_KEY]
    if len(cards) != 1:
        raise InputError(
            f"{path} is an ONNX file without a model card: only files from `smile-fast export` can be used"
        )
    return ModelCard.from_json(cards[0], source=f"the model card of {path}")


def _session(content: bytes, path: Path, threads: int | None, provider: str) -> ort.InferenceSession:
    if provider not in PROVIDERS:
        raise InputError(f"there is no provider {provider!r}: {' or '.join(PROVIDERS)} is wanted")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads were asked for: at least 1 is wanted")
    wanted = PROVIDERS[provider]
    remedy = "install onnxruntime-gpu instead of onnxruntime, or use provider cpu"
    if wanted not in ort.get_available_providers():
        raise InputError(f"provider {provider!r} is not in this installation of onnxruntime: {remedy}")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised below; the log would only repeat it on stderr
    options.intra_op_num_threads = threads or 0
    try:
        session = ort.InferenceSession(content, options, providers=list(dict.fromkeys([wanted, PROVIDERS["cpu"]])))
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise InputError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
    if session.get_providers()[0] != wanted:  # onnxruntime itself would go on with the CPU
        raise InputError(f"provider {provider!r} does not start on this machine: check its driver, or use provider cpu")
    return session


def _check_contract(session: ort.InferenceSession, card: ModelCard, path: Path) -> None:
    inputs = [(arg.name, arg.type, len(arg.shape)) for arg in session.get_inputs()]
    outputs = {arg.name: arg for arg in session.get_outputs()}
    if inputs != [(INPUT, "tensor(int16)", 4)]:
        raise InputError(f"{path} does not take one int16 input {INPUT} [N, C, H, W]: export it again")
    batch, channels, height, width = session.get_inputs()[0].shape
    if channels != card.channels:
        raise InputError(f"{path} takes {channels} channels and its model card says {card.channels}: export it again")
    if any(isinstance(size, int) for size in (batch, height, width)):
        raise InputError(f"{path} takes only slices of {height} x {width} in batches of {batch}: export it again")
    labels = outputs.pop(LABELS, None)
    if labels is None or labels.type != "tensor(uint8)" or len(labels.shape) != 3:
        raise InputError(f"{path} does not write a uint8 output {LABELS} [N, H, W]: export it again")
    probabilities = outputs.pop(PROBABILITIES, None)
    if outputs:
        raise InputError(f"{path} has an unknown output {next(iter(outputs))}: it does not come from smile-fast")
    if probabilities is None:
        return
    types = ("tensor(float)", "tensor(float16)", "tensor(uint8)")
    if probabilities.type not in types or len(probabilities.shape) != 4:
        raise InputError(f"{path} does not write {PROBABILITIES} as floats or uint8 [N, K, H, W]: export it again")
    organs = probabilities.shape[1]
    if isinstance(organs, int) and organs != len(card.organs):
        raise InputError(
            f"{path} segments {organs} organs and its model card names {len(card.organs)}: export it again"
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
