"""An exported model file: what it must contain, and how it is loaded and run."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from smile_runtime.errors import AllocationError, InputError, first_line
from smile_runtime.io.files import check_readable, reason
from smile_runtime.model.card import METADATA_KEY, ModelCard
from smile_runtime.model.session import DEVICES, DeviceBuffers, is_allocation_error, open_session
from smile_runtime.model.trust import trusted_card

__all__ = [
    "INPUT",
    "LABELS",
    "METADATA_KEY",
    "PIXEL_SPACING",
    "PROBABILITIES",
    "Model",
    "ModelCard",
]

INPUT = "hu"  # int16 [N, C, H, W], HU
PIXEL_SPACING = "pixel_spacing"  # of models with a pixel size: float64 [2], mm of the scan's rows and columns
LABELS = "labels"  # uint8 [N, H, W], 0 or organ number
PROBABILITIES = "probabilities"  # optional, float or uint8 (round(255 p)) [N, K, H, W]

_MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
_START_BYTES = 2**16


class Model:
    """A loaded model file, checked against its contract.

    Attributes:
        path: The file.
        card: What the file says about itself.
        sha256: Of the file, hexadecimal.
        providers: What onnxruntime computes with, the one that was asked for first.
        has_probabilities: Whether it was exported with probabilities.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        provider: str = "cpu",
        gpu: int = 0,
    ) -> None:
        """Load a model.

        Args:
            path: An ``.onnx`` file exported by smile-fast.
            threads: CPU threads of one inference; `smile_runtime.threads.default_threads` if None.
            provider: ``cpu``, ``cuda`` or ``tensorrt``. One that is asked for and does not work is an error.
            gpu: Number of the GPU, for ``cuda`` and ``tensorrt``.

        Raises:
            InputError: The file is missing, damaged, not from smile-fast, of another schema, keeps tensors in other
                files or contradicts its own card; or the provider is unknown or not available.
        """
        self.path = Path(path)
        content = _read(self.path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.card = trusted_card(content, self.path)
        self._session = open_session(content, self.path, threads, provider, gpu)
        _check_contract(self._session, self.card, self.path)
        self.providers: list[str] = self._session.get_providers()
        self.has_probabilities = len(self._session.get_outputs()) == 2
        self._buffers = DeviceBuffers(self._session, DEVICES[provider], gpu) if provider in DEVICES else None

    def labels(
        self,
        hu: npt.NDArray[np.int16],  # [N, C, H, W]
        pixel_spacing: Sequence[float] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Segment a batch of slices.

        Args:
            hu: [N, C, H, W] int16 HU in slices order, C = card.channels.
            pixel_spacing: (y, x) of the slices, mm; None if their pixels are the model's. A model without a pixel size
                takes any.

        Returns:
            [N, H, W] uint8: 0 or organ number.

        Raises:
            AllocationError: This many slices at once do not fit into memory.
            InputError: The model fails on this input, or answers with something else than its card promises.
        """
        labels = self._run(LABELS, hu, pixel_spacing)
        batch, _, height, width = hu.shape
        if labels.shape != (batch, height, width) or (labels.size and labels.max() > len(self.card.organs)):
            raise InputError(
                f"{self.path}: contradicts its model card, for slices of {height} x {width} it wrote labels of shape"
                f" {labels.shape} up to {labels.max(initial=0)} with {len(self.card.organs)} organs; export it again"
            )
        return labels

    def probabilities(
        self,
        hu: npt.NDArray[np.int16],  # [N, C, H, W]
        pixel_spacing: Sequence[float] | None = None,
    ) -> npt.NDArray[Any]:
        """Probabilities of a batch of slices.

        Args:
            hu: As for `labels`.
            pixel_spacing: As for `labels`.

        Returns:
            [N, K, H, W] float16, float32, or uint8, which is round(255 p).

        Raises:
            InputError: The file was exported without probabilities, or fails on this input.
        """
        if not self.has_probabilities:
            raise InputError(f"{self.path}: was exported without probabilities; export it again with them")
        return self._run(PROBABILITIES, hu, pixel_spacing)

    def _run(self, output: str, hu: npt.NDArray[np.int16], pixel_spacing: Sequence[float] | None) -> npt.NDArray[Any]:
        beside: dict[str, npt.NDArray[Any]] = {}
        if (side := self.card.pixel_size) is not None:
            beside[PIXEL_SPACING] = np.array((side, side) if pixel_spacing is None else pixel_spacing, np.float64)
        try:
            if self._buffers is not None and output == LABELS:
                return self._buffers.labels(np.ascontiguousarray(hu), beside)
            result: npt.NDArray[Any] = self._session.run([output], {INPUT: hu, **beside})[0]
        except Exception as error:  # onnxruntime's errors share no base class of their own
            if is_allocation_error(error):
                raise AllocationError(
                    f"{self.path}: needs more memory for slices of shape {hu.shape} than is free; free some"
                ) from error
            raise InputError(
                f"{self.path}: fails on slices of shape {hu.shape} ({first_line(error)}); export it again"
            ) from error
        return result


def _read(path: Path) -> bytes:
    if check_readable(path) > _MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than 2 GiB; give a model exported by smile-fast")
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
            if start[:1] != b"\x08":  # field 1, the format's version: every ONNX file begins with it
                raise InputError(f"{path}: not an ONNX file, it does not begin like one; give an exported model")
            return start + file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error


def _check_contract(session: ort.InferenceSession, card: ModelCard, path: Path) -> None:
    inputs = [(arg.name, arg.type, len(arg.shape)) for arg in session.get_inputs()]
    if card.pixel_size is not None:
        if inputs[1:] != [(PIXEL_SPACING, "tensor(double)", 1)] or session.get_inputs()[1].shape != [2]:
            raise InputError(
                f"{path}: has a pixel size and no second input {PIXEL_SPACING}, float64 [2]; export it again"
            )
        del inputs[1]
    outputs = {arg.name: arg for arg in session.get_outputs()}
    if inputs != [(INPUT, "tensor(int16)", 4)]:
        raise InputError(f"{path}: does not take one int16 input {INPUT} [N, C, H, W]; export it again")
    batch, channels, height, width = session.get_inputs()[0].shape
    if channels != card.channels:
        raise InputError(f"{path}: takes {channels} channels and its model card says {card.channels}; export it again")
    if any(isinstance(size, int) for size in (batch, height, width)):
        raise InputError(f"{path}: takes only slices of {height} x {width} in batches of {batch}; export it again")
    labels = outputs.pop(LABELS, None)
    if labels is None or labels.type != "tensor(uint8)" or len(labels.shape) != 3:
        raise InputError(f"{path}: does not write a uint8 output {LABELS} [N, H, W]; export it again")
    probabilities = outputs.pop(PROBABILITIES, None)
    if outputs:
        raise InputError(f"{path}: has an unknown output {next(iter(outputs))}; give a model exported by smile-fast")
    if probabilities is None:
        return
    types = ("tensor(float)", "tensor(float16)", "tensor(uint8)")
    if probabilities.type not in types or len(probabilities.shape) != 4:
        raise InputError(f"{path}: does not write {PROBABILITIES} as floats or uint8 [N, K, H, W]; export it again")
    organs = probabilities.shape[1]
    if isinstance(organs, int) and organs != len(card.organs):
        raise InputError(
            f"{path}: segments {organs} organs and its model card names {len(card.organs)}; export it again"
        )
