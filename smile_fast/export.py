"""A trained run as one ONNX file: HU in, label map out, everything that is needed to run it inside."""

import importlib.metadata
import json
import logging
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import smile_fast
from smile_fast.data.store import INDEX, Store
from smile_fast.models import Segmenter
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.files import atomic_path, check_writable, refuse_overwrite, sha256
from smile_runtime.model import INPUT, LABELS, METADATA_KEY, PROBABILITIES, Model, ModelCard
from smile_runtime.preprocessing import slice_context

OPSET = 20
MIN_IDENTICAL = 0.9999  # share of voxels; float32 kernels of two libraries differ in the last bits
PARITY_CASES = 4
THRESHOLD = 0.5
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_TRACED = (2, 96, 80)  # N, H, W; all different and above 1, which torch.export would take for constants


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file. size: its bytes. card: what it says about itself. seconds: wall time of the export.
    """

    path: Path
    size: int
    card: ModelCard
    seconds: float


@dataclass(frozen=True)
class Sample:
    """Slices on which network and file are compared: hu [n, C, H, W] int16 of one case."""

    case: str
    hu: NDArray[np.int16]


class ExportedGraph(nn.Module):
    """The network with what production needs around it, made of standard operators only.

    Args:
        model: a trained network.
        probabilities: also return the organs' probabilities.
    """

    def __init__(self, model: Segmenter, probabilities: bool) -> None:
        super().__init__()
        self.model, self.with_probabilities = model, probabilities

    def forward(
        self,
        hu: Tensor,  # [N, C, H, W] int16
    ) -> tuple[Tensor, ...]:  # labels [N, H, W] uint8, and probabilities [N, K, H, W] float32 on request
        """Window, segment, upsample, decide."""
        logits = self.model(hu)
        size = (hu.shape[-2], hu.shape[-1])
        labels = self.model.label_map(logits, size)
        return (labels, self.model.probabilities(logits, size)) if self.with_probabilities else (labels,)


def export_run(run: Run, path: Path, *, probabilities: bool = False) -> Exported:
    """Write a run's network as one ONNX file and check it against torch on cases of the run's store.

    Args:
        run: a run that has finished training.
        path: the file, its name ending in .onnx; replaced if it exists, left alone if anything fails.
        probabilities: give the organs' probabilities [N, K, H, W] as a second output.

    Returns:
        What was written, the parity certificate in its card.

    Raises:
        InputError: the run has no final weights, its store is gone, the file cannot be written or has another name,
            or its label maps differ from the network's in more than 0.01 % of the voxels.
    """
    started = time.monotonic()
    refuse_overwrite(path, [run.model_path, run.checkpoint_path, run.path / "config.json", run.store_path / INDEX])
    check_writable(path)
    if path.suffix.lower() != ".onnx":
        raise InputError(f"cannot write {path}: choose a name that ends in .onnx, so that other programs know it")
    model, store = run.load_model(), run.store()
    card = ModelCard(
        organs=run.organs,
        channels=model.config.channels,
        window=(float(model.config.window[0]), float(model.config.window[1])),
        head=model.config.head,
        threshold=THRESHOLD,
        body=run.config.body,
        provenance=provenance(run, store),
    )
    proto = to_onnx(model, probabilities=probabilities)
    samples = parity_samples(run, store, model.config.channels)
    with atomic_path(path) as temporary:
        _write(proto, card, temporary)
        card = replace(card, parity=certify(model, Model(temporary), samples))
        _write(proto, card, temporary)
        Model(temporary)  # the file as it will be used: contract, card and graph
        size = temporary.stat().st_size
    return Exported(path, size, card, time.monotonic() - started)


def to_onnx(model: Segmenter, *, probabilities: bool) -> onnx.ModelProto:
    """Convert a network to an ONNX model with weights inside and dynamic batch, height and width."""
    channels = model.config.channels
    batch, height, width = _TRACED
    graph = ExportedGraph(model, probabilities).eval()
    sizes = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    with _quiet():
        program = torch.onnx.export(
            graph,
            (torch.zeros(batch, channels, height, width, dtype=torch.int16),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LABELS, PROBABILITIES] if probabilities else [LABELS],
            dynamic_shapes=(sizes,),
            verbose=False,
        )
    assert program is not None  # it is None only when the exporter itself writes the file
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def parity_samples(run: Run, store: Store, channels: int) -> list[Sample]:
    """Choose slices of up to four cases: the one with most organ voxels, the first, and a cut-out of another size.

    Organ voxels are counted by the index (visible labels); without any the middle slice is taken.
    """
    cases = [case for split in ("test", "validation", "train") for case in run.cases(split)]
    samples = []
    for case in dict.fromkeys(cases[:: max(1, len(cases) // PARITY_CASES)][:PARITY_CASES]):
        image = store.read_image(case)
        voxels = np.array(store.cases[case].counts).sum(axis=1)
        busiest = int(voxels.argmax()) if voxels.any() else len(image) // 2
        samples.append(Sample(case, slice_context(image, [busiest, 0], channels)))
        height, width = image.shape[1:]
        rows, columns = slice(height // 8, height - 1), slice(0, width - width // 5)
        samples.append(Sample(case, slice_context(image[:, rows, columns], [busiest], channels)))
    return samples


def certify(model: Segmenter, exported: Model, samples: Sequence[Sample]) -> dict[str, Any]:
    """Compare a file with the network that it was made from.

    Args:
        model: the network in evaluation mode, on the CPU.
        exported: the loaded file.
        samples: what to compare them on.

    Returns:
        The certificate, plain JSON.

    Raises:
        InputError: less than 99.99 % of the voxels have the same label.
    """
    voxels = identical = 0
    difference = 0.0 if exported.has_probabilities else None
    worst = (1.0, "")
    for sample in samples:
        size = (sample.hu.shape[2], sample.hu.shape[3])
        with torch.inference_mode():
            logits = model(torch.from_numpy(sample.hu))
            labels = model.label_map(logits, size).numpy()
            probabilities = model.probabilities(logits, size).numpy()
        same = int((labels == exported.labels(sample.hu)).sum())
        voxels, identical = voxels + labels.size, identical + same
        worst = min(worst, (same / labels.size, sample.case))
        if difference is not None:
            found = exported.probabilities(sample.hu)
            difference = max(difference, float(np.abs(found - probabilities).max(initial=0)))
    share = identical / max(voxels, 1)
    if not share >= MIN_IDENTICAL:
        raise InputError(
            f"the exported file and the network agree on {share:.4%} of the voxels only (worst case {worst[1]}, "
            f"{worst[0]:.4%}; {MIN_IDENTICAL:.2%} are wanted), so nothing was written: try other versions of torch "
            f"({torch.__version__}) and onnxruntime ({importlib.metadata.version('onnxruntime')})"
        )
    return {
        "cases": list(dict.fromkeys(sample.case for sample in samples)),
        "slices": sum(len(sample.hu) for sample in samples),
        "sizes": [list(size) for size in sorted({sample.hu.shape[2:] for sample in samples})],
        "voxels": voxels,
        "identical_voxels": identical,
        "identical_share": share,
        "max_probability_difference": difference,
        "required_share": MIN_IDENTICAL,
    }


def provenance(run: Run, store: Store) -> dict[str, Any]:
    """Tell how a run was made: method, settings, fingerprints and versions, plain JSON."""
    record = {
        "method": run.config.method,
        "settings": run.config.to_json(),
        "model": run.model_config.to_json(),
        "cases": {split: len(run.cases(split)) for split in ("train", "validation", "test")},
        "store_sha256": sha256(store.path / INDEX),
        "config_sha256": sha256(run.path / "config.json"),
        "annotations_sha256": sha256(run.path / "annotations.csv"),
        "weights_sha256": sha256(run.model_path),
        "commit": _commit(),
        "versions": {
            "smile-fast": smile_fast.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))  # lists for tuples, as they will be read back
    return plain


def format_certificate(exported: Exported) -> str:
    """Return what the terminal shows after an export."""
    card, parity = exported.card, exported.card.parity
    difference = parity["max_probability_difference"]
    outputs = LABELS if difference is None else f"{LABELS} and {PROBABILITIES}"
    lines = [
        f"wrote {exported.path}: {exported.size / 1e6:.1f} MB in {exported.seconds:.0f} s",
        f"  input {INPUT} int16 [N, {card.channels}, H, W], output {outputs}, {card.head} head",
        f"  organs: {', '.join(f'{value} {organ}' for value, organ in enumerate(card.organs, start=1))}",
        f"  parity: {parity['identical_voxels']} of {parity['voxels']} voxels as in torch "
        f"({parity['identical_share']:.4%}), {parity['slices']} slices of {len(parity['cases'])} cases, "
        f"{len(parity['sizes'])} sizes",
    ]
    if difference is not None:
        lines.append(f"  largest difference of a probability: {difference:.1e}")
    return "\n".join(lines)


def _write(proto: onnx.ModelProto, card: ModelCard, path: Path) -> None:
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, card.to_json()
    path.write_bytes(proto.SerializeToString())


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter leaves for debugging: stack traces would give away the folders of this machine."""
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for output in proto.graph.output:
        output.ClearField("metadata_props")
    del proto.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose warnings are about torch's own deprecations and packages that are not used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _commit() -> str | None:
    """Return the commit that the package runs from, None for an installed one."""
    checkout = Path(smile_fast.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
