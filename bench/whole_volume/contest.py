"""A whole volume, HU on disk to labels on disk, against the bare session and against what people write by hand.

Weights are random: how long a convolution takes does not depend on them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from bench.interleaved import Contest, Contestant
from bench.measure import COSTS
from bench.whole_volume.processes import peak_memory, start_up
from bench.whole_volume.scans import load, write_scan
from bench.whole_volume.workloads import (
    BYTES_A_VOXEL,
    CHANNELS_LAST,
    EAGER,
    FEWER_PIXELS,
    FP32,
    MONAI,
    NO_CROP,
    OURS,
    SESSION,
    Workload,
)
from smile_fast.exporter.graph import fold_batchnorm, to_onnx, without_probabilities
from smile_fast.exporter.onnx_file import serialize
from smile_fast.exporter.precision import Calibration, quantize
from smile_fast.models import ModelConfig, Segmenter
from smile_runtime.model.exported import INPUT, LABELS, ModelCard
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, slice_context, slices_view

DIFFERING = 1e-3  # share of voxels: random weights leave many near ties, which kernels of two libraries may break
# In int8 a probability errs by some 1e-2 to 1e-1, and random weights have few that are surer than that.
DIFFERING_INT8 = 0.1
COMPARED = 8  # slices at most, where the box is compared
CALIBRATED = 4  # slices
Volume = NDArray[np.int16]  # [D, H, W]
Inferer = Callable[[Volume], NDArray[np.uint8]]


@torch.no_grad()
def network(workload: Workload) -> Segmenter:
    """A random network that calls about half of the pixels something."""
    torch.manual_seed(0)
    organs = tuple(f"organ {number}" for number in range(workload.organs))
    model = Segmenter(ModelConfig(organs, workload.backbone, 16, width=workload.width)).eval()
    noise = torch.randint(-160, 240, (1, 1, 128, 128), dtype=torch.int16)
    model.classifier[-1].bias -= model(noise).transpose(0, 1).flatten(1).median(dim=1).values
    return model


def write_model(model: Segmenter, path: Path, calibration: Volume | None = None) -> None:
    """Export a network without a run: nothing is certified but by the benchmark's own check.

    Args:
        model: the network. path: the file.
        calibration: slices whose activations set int8 scales; the file is fp32 without them.
    """
    config = model.config
    graph = without_probabilities(to_onnx(fold_batchnorm(model)))
    precision = "fp32" if calibration is None else "int8"
    if calibration is not None:
        graph = quantize(graph, Calibration(["scan"], [calibration[:, None]]))
    card = ModelCard(config.organs, config.channels, config.window, config.head, body=BodyRule(), precision=precision)
    path.write_bytes(serialize(graph, card))


def slices_of(scan: Path, predictor: Predictor) -> tuple[Volume, BodyBox]:
    """A scan's slices as networks see them, and the box that the predictor computes of them."""
    loaded = predictor.load(scan)
    return np.ascontiguousarray(slices_view(loaded.volume.data, loaded.geometry)), loaded.box


def feeds_of(predictor: Predictor, slices: Volume, box: BodyBox) -> list[NDArray[np.int16]]:
    """Every batch [N, C, H, W] that the predictor gives its session: the work that nothing around it can avoid."""
    fed: list[NDArray[np.int16]] = []
    infer = predictor.model.labels

    def labels(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
        fed.append(hu.copy())
        return infer(hu)

    with patch.object(predictor.model, "labels", labels):
        predictor.predict(slices, box=box)
    assert fed, "the predictor did not use its session"
    return fed


def by_hand(infer: Inferer, scan: Path, out: Path) -> None:
    """What a person writes around a network: read with nibabel, infer, write with nibabel."""
    image: Any = nib.load(scan)
    slices = np.ascontiguousarray(np.asarray(image.dataobj, dtype=np.int16).transpose(2, 1, 0))
    labels = infer(slices)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), image.affine), out)


@torch.inference_mode()
def eager(model: Segmenter, layout: torch.memory_format, slices: Volume) -> NDArray[np.uint8]:
    """A loop over batches of slices."""
    labels, batch = np.empty(slices.shape, np.uint8), batch_of(slices)
    for first in range(0, len(slices), batch):
        hu = torch.from_numpy(slice_context(slices, range(len(slices))[first : first + batch], model.config.channels))
        logits = model(hu.contiguous(memory_format=layout))
        labels[first : first + batch] = model.label_map(logits, slices.shape[1:]).numpy()
    return labels


def batch_of(slices: Volume) -> int:
    """Slices at a time: as many as fill 512 x 512 pixels, as ours takes."""
    return max(1, 512 * 512 // max(1, slices[0].size))


def monai_inferer(model: Segmenter) -> Inferer | None:
    """MONAI's sliding window over whole slices; None where MONAI is not installed: it is no dependency of ours."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return None

    @torch.inference_mode()
    def infer(slices: Volume) -> NDArray[np.uint8]:
        size, batch = slices.shape[1:], batch_of(slices)
        hu = torch.from_numpy(slices[:, None]).float()
        full = sliding_window_inference(hu, size, batch, lambda part: model.upsample(model(part), size), overlap=0.0)
        best, organ = full.max(dim=1)
        return torch.where(best > 0, organ + 1, 0).to(torch.uint8).numpy()

    return infer


def inferers(workload: Workload, model: Segmenter) -> dict[str, Inferer]:
    """What people write by hand, by name."""
    if not workload.by_hand:
        return {}
    last = network(workload).to(memory_format=torch.channels_last)
    found: dict[str, Inferer] = {
        EAGER: partial(eager, model, torch.contiguous_format),
        CHANNELS_LAST: partial(eager, last, torch.channels_last),
    }
    if (inferer := monai_inferer(last)) is not None:
        found[MONAI] = inferer
    return found


def contest(workload: Workload, folder: Path) -> Contest:
    """Bring ours and the peers together; all use as many threads as torch."""
    scan, file, out, whole = (folder / name for name in ("scan.nii.gz", "model.onnx", "ours.nii.gz", "whole.nii.gz"))
    write_scan(workload.source, workload.slices, scan)
    model, threads = network(workload), torch.get_num_threads()
    write_model(model, file)
    exact, uncropped = Predictor(file, threads=threads), Predictor(file, threads=threads, crop=False)
    slices, box = slices_of(scan, exact)
    ours = exact
    if workload.int8:
        small = folder / "int8.onnx"
        write_model(model, small, box.crop(slices)[:CALIBRATED])
        ours = Predictor(small, threads=threads)
    fed = feeds_of(ours, slices, box)
    session = ours.model._session

    def bare() -> None:
        for hu in fed:
            session.run([LABELS], {INPUT: hu})

    by_name = inferers(workload, model)
    written = {name: folder / f"{name}.nii.gz" for name in by_name}
    scripts = [Contestant(name, partial(by_hand, infer, scan, written[name])) for name, infer in by_name.items()]

    def check() -> dict[str, float]:
        ours.predict_file(scan, out)
        assert len(np.unique(load(out))) >= 2, "one label everywhere: agreement would say nothing"
        differing = {OURS: differing_in_box(load(out), model, slices, box)}
        uncropped.predict_file(scan, whole)
        for script in scripts:
            script.run()
            differing[script.name] = float((load(written[script.name]) != load(whole)).mean())
        for name, share in differing.items():
            most = DIFFERING_INT8 if workload.int8 and name == OURS else DIFFERING
            assert share <= most, f"{name}: {share:.2%} of the voxels differ"
        return {"share of differing voxels": max(differing.values())}

    pixels = sum(hu.shape[0] * hu.shape[2] * hu.shape[3] for hu in fed)
    facts: dict[str, Any] = {"voxels": slices.size, "computed pixels": pixels, "implementation": "smile_runtime"}
    facts[COSTS] = {FEWER_PIXELS: slices.size / pixels}
    if workload.processes:
        shapes = sorted({hu.shape for hu in fed})
        facts["peak memory"] = peak_memory(file, scan, folder / "other.nii.gz", shapes, threads)
        beyond = facts["peak memory"]["predict"] - facts["peak memory"]["session"]
        facts[COSTS] |= {BYTES_A_VOXEL: beyond / slices.size} | start_up(file)
    variants = []
    if workload.by_hand:
        variants.append(Contestant(NO_CROP, lambda: uncropped.predict_file(scan, whole)))
    if workload.int8:
        variants.append(Contestant(FP32, lambda: exact.predict_file(scan, whole)))
    return Contest(
        [Contestant(OURS, lambda: ours.predict_file(scan, out))],
        [Contestant(SESSION, bare), *variants, *scripts],
        check,
        facts,
    )


def differing_in_box(found: NDArray[np.uint8], model: Segmenter, slices: Volume, box: BodyBox) -> float:
    """Share of the voxels of some slices [X, Y, Z] that torch, given the same box, calls something else."""
    planes = list(box.slices)[:: -(-len(box.slices) // COMPARED)]
    expected = np.zeros((len(planes), *slices.shape[1:]), np.uint8)
    box.crop(expected)[:] = eager(model, torch.contiguous_format, np.ascontiguousarray(box.crop(slices)[planes]))
    return float((found.transpose(2, 1, 0)[planes] != expected).mean())
