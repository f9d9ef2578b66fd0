"""A trained run as one ONNX file: HU in, label map out, everything that is needed to run it inside."""

import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from smile_fast.data.store import INDEX, Store
from smile_fast.exporter.bundle import write_bundle
from smile_fast.exporter.certificate import certify, format_parity, parity_samples
from smile_fast.exporter.folders import atomic_folder, check_new_folder
from smile_fast.exporter.graph import Probabilities, fold_batchnorm, to_onnx, without_probabilities
from smile_fast.exporter.precision import Precision, calibration_slices, half_network, quantize
from smile_fast.exporter.provenance import provenance
from smile_fast.exporter.triton_repo import write_triton_model
from smile_fast.models import Segmenter
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, check_writable, refuse_overwrite
from smile_runtime.model.exported import INPUT, LABELS, METADATA_KEY, PIXEL_SPACING, PROBABILITIES, Model, ModelCard

THRESHOLD = 0.5


@dataclass(frozen=True)
class Targets:
    """Where an export goes: at least one of three.

    Attributes:
        file: an .onnx file. triton_repo: a model repository of Triton, which gets a model of the run's name.
        bundle: a new folder like a MONAI Bundle.
    """

    file: Path | None = None
    triton_repo: Path | None = None
    bundle: Path | None = None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        paths: the file, the model's folder in the repository, the bundle; those that were asked for.
        size: bytes of the ONNX file. card: what it says about itself. probabilities: dtype of its second output.
        seconds: wall time of the export.
    """

    paths: tuple[Path, ...]
    size: int
    card: ModelCard
    probabilities: Probabilities | None
    seconds: float


def export_run(
    run: Run,
    targets: Targets,
    *,
    precision: Precision = "fp32",
    probabilities: Probabilities | None = None,
    device: torch.device | str = "cpu",
) -> Exported:
    """Write a run's network as one ONNX file and check it against torch on cases of the run's store.

    Args:
        run: a run that has finished training.
        targets: where to; an existing file is replaced, and left alone if anything fails.
        precision: "fp32", "fp16" for GPUs, or "int8" for CPUs, calibrated on the run's training cases.
        probabilities: give the organs' probabilities [N, K, H, W] as a second output of this dtype.
        device: where the network runs for the comparison. The file is always compared on the CPU; on the same GPU
            too if the network runs on one, onnxruntime can, and its precision is made for it.

    Returns:
        What was written, the parity certificate in its card.

    Raises:
        InputError: the run has no final weights, its store is gone, a target cannot be written or has another
            name, or the file's label maps differ from the network's by more than `certificate.REQUIREMENTS` allows.
    """
    started = time.monotonic()
    name = model_name(run)
    _check_targets(run, targets, name)
    model, store = run.load_model(), run.store
    proto, facts = build(run, store, model, precision, probabilities or "float32")
    card = ModelCard(
        organs=run.organs,
        channels=model.config.channels,
        window=(float(model.config.window[0]), float(model.config.window[1])),
        head=model.config.head,
        threshold=THRESHOLD,
        body=run.config.body,
        pixels=run.pixel_space,
        provenance=provenance(run, store),
        precision=precision,
    )
    final = proto if probabilities is not None else without_probabilities(proto)
    card = replace(card, parity=_parity(run, store, model.to(device), card, proto, final) | facts)
    content = serialize(final, card)
    paths = _write(content, card, targets, probabilities, name)
    return Exported(paths, len(content), card, probabilities, time.monotonic() - started)


def build(
    run: Run, store: Store, model: Segmenter, precision: Precision, probabilities: Probabilities
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Convert a run's network at a precision; the graph with both outputs, and facts for the certificate."""
    folded = fold_batchnorm(model)
    if precision == "fp16":
        return to_onnx(half_network(folded), probabilities=probabilities), {}
    proto = to_onnx(folded, probabilities=probabilities)
    if precision == "fp32":
        return proto, {}
    calibration = calibration_slices(store, run.cases("train"), model.config.channels, run.config.body)
    return quantize(proto, calibration), {"calibration": calibration.to_json()}


def serialize(proto: onnx.ModelProto, card: ModelCard) -> bytes:
    """The bytes of the file: the graph with its card."""
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, card.to_json()
    content: bytes = proto.SerializeToString()
    return content


def model_name(run: Run) -> str:
    """Name of the model where a folder or a server wants one: that of the run's folder."""
    return re.sub("[^A-Za-z0-9_.-]", "_", run.path.resolve().name)


def format_certificate(exported: Exported) -> str:
    """Return what the terminal shows after an export."""
    card = exported.card
    spacing = "" if card.pixel_size is None else f" and {PIXEL_SPACING} float64 [2]"
    outputs = LABELS if exported.probabilities is None else f"{LABELS} and {PROBABILITIES} ({exported.probabilities})"
    return "\n".join(
        [
            *(f"wrote {path}" for path in exported.paths),
            f"  {card.precision}, {exported.size / 1e6:.1f} MB in {exported.seconds:.0f} s",
            f"  input {INPUT} int16 [N, {card.channels}, H, W]{spacing}, output {outputs}, {card.head} head",
            *([] if card.pixels is None else [f"  pixels: {card.pixels}"]),
            f"  organs: {', '.join(f'{value} {organ}' for value, organ in enumerate(card.organs, start=1))}",
            *format_parity(card.parity),
        ]
    )


def _check_targets(run: Run, targets: Targets, name: str) -> None:
    """Refuse what cannot be written before minutes are spent on it."""
    if targets == Targets():
        raise InputError("MODEL.onnx: nothing was asked for; name a file, --triton-repo or --bundle")
    if targets.file is not None:
        inputs = [run.model_path, run.checkpoint_path, run.path / "config.json", run.store_path / INDEX]
        refuse_overwrite(targets.file, inputs)
        check_writable(targets.file)
        if targets.file.suffix.lower() != ".onnx":
            raise InputError(f"{targets.file}: no name that other programs know; choose one that ends in .onnx")
    if targets.triton_repo is not None:
        check_new_folder(targets.triton_repo / name)
    if targets.bundle is not None:
        check_new_folder(targets.bundle)


def _parity(
    run: Run, store: Store, model: Segmenter, card: ModelCard, proto: onnx.ModelProto, final: onnx.ModelProto
) -> dict[str, Any]:
    """Certify the graph that will be written; probabilities come from its twin that gives them, on a GPU if it can."""
    device = next(model.parameters()).device
    samples = parity_samples(run, store, card.channels)
    with tempfile.TemporaryDirectory() as folder:
        path = twin = Path(folder) / "model.onnx"
        path.write_bytes(serialize(final, card))
        if final is not proto:
            twin = Path(folder) / "twin.onnx"
            twin.write_bytes(serialize(proto, card))
        exported, others = Model(path), dict[str, Model]()
        if device.type == "cuda" and card.precision != "int8":
            with suppress(InputError):  # no onnxruntime for CUDA here: the certificate says where it was compared
                others["cuda"] = Model(path, provider="cuda", gpu=device.index)
        probabilities = "cpu", exported
        if others:
            probabilities = "cuda", Model(twin, provider="cuda", gpu=device.index)
        elif twin is not path:
            probabilities = "cpu", Model(twin)
        return certify(model, exported, samples, probabilities=probabilities, others=others)


def _write(
    content: bytes, card: ModelCard, targets: Targets, probabilities: Probabilities | None, name: str
) -> tuple[Path, ...]:
    written = []
    if targets.file is not None:
        with atomic_path(targets.file) as temporary:
            temporary.write_bytes(content)
            Model(temporary)  # the file as it will be used: contract, card and graph
        written.append(targets.file)
    if targets.triton_repo is not None:
        with atomic_folder(targets.triton_repo / name) as folder:
            write_triton_model(folder, content, card, probabilities, name)
            Model(folder / "1" / "model.onnx")
        written.append(targets.triton_repo / name)
    if targets.bundle is not None:
        with atomic_folder(targets.bundle) as folder:
            write_bundle(folder, content, card, probabilities, name)
            Model(folder / "models" / "model.onnx")
        written.append(targets.bundle)
    return tuple(written)
