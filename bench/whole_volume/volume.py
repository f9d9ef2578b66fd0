"""A whole volume, HU on disk to labels on disk, against the bare session and against what people write by hand.

Weights are random: how long a convolution takes does not depend on them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from bench.agreement import UNDECIDED_VOLUME
from bench.comparison import OURS, Call, Comparison, Conditions
from bench.measure import COSTS
from bench.ops.names import IMPLEMENTATION
from bench.whole_volume.by_hand import Volume, inferers, loop, network, run_script
from bench.whole_volume.processes import peak_memory, start_up
from bench.whole_volume.scans import load, write_scan
from bench.whole_volume.workloads import BYTES_A_VOXEL, FEWER_PIXELS, FP32, NO_CROP, SESSION, Workload
from smile_fast.exporter.graph import fold_batchnorm, to_onnx, without_probabilities
from smile_fast.exporter.onnx_file import serialize
from smile_fast.exporter.precision import Calibration, half_network, quantize
from smile_fast.models import Segmenter
from smile_runtime.model.exported import INPUT, LABELS, ModelCard
from smile_runtime.model.session import PROVIDERS
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, slices_view

COMPARED = 8  # slices at most, where the box is compared
CALIBRATED = 4  # slices


def write_model(model: Segmenter, path: Path, precision: str = "fp32", calibration: Volume | None = None) -> None:
    """Export a network without a run: nothing is certified but by the benchmark's own check.

    Args:
        model: the network. path: the file.
        precision: "fp32", "fp16" or "int8".
        calibration: slices whose activations set int8 scales.
    """
    config, folded = model.config, fold_batchnorm(model)
    graph = without_probabilities(to_onnx(half_network(folded) if precision == "fp16" else folded))
    if calibration is not None:
        graph = quantize(graph, Calibration(["scan"], [calibration[:, None]], [(1.0, 1.0)]))
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

    def labels(hu: NDArray[np.int16], pixel_spacing: Sequence[float] | None) -> NDArray[np.uint8]:
        fed.append(hu.copy())
        return infer(hu, pixel_spacing)

    with patch.object(predictor.model, "labels", labels):
        predictor.predict(slices, box=box)
    assert fed, "the predictor did not use its session"
    return fed


def compare(workload: Workload, conditions: Conditions, folder: Path) -> Comparison:
    """Bring ours and the peers together; on a CPU all use as many threads as torch.

    Skips the benchmark where onnxruntime has no provider for the device.
    """
    if PROVIDERS[conditions.device] not in ort.get_available_providers():
        pytest.skip(f"onnxruntime has no {PROVIDERS[conditions.device]} here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    scan, file, out, whole = (folder / name for name in ("scan.nii.gz", "model.onnx", "ours.nii.gz", "whole.nii.gz"))
    write_scan(workload.source, workload.slices, scan)
    model, threads = network(workload), torch.get_num_threads()
    predictor = partial(Predictor, threads=threads, provider=conditions.device)
    write_model(model, file, "fp16" if workload.precision == "fp16" else "fp32")
    floating, uncropped = predictor(file), predictor(file, crop=False)
    slices, box = slices_of(scan, floating)
    ours = floating
    if workload.precision == "int8":
        small = folder / "int8.onnx"
        write_model(model, small, "int8", box.crop(slices)[:CALIBRATED])
        ours = predictor(small)
    fed = feeds_of(ours, slices, box)
    session = ours.model._session

    def bare() -> None:
        for hu in fed:
            session.run([LABELS], {INPUT: hu})

    model = model.to(conditions.device)
    by_name = inferers(workload, model, conditions)
    written = {name: folder / f"{name}.nii.gz" for name in by_name}
    scripts = [Call(name, partial(run_script, infer, scan, written[name])) for name, infer in by_name.items()]

    def check() -> dict[str, float]:
        ours.predict_file(scan, out)
        assert len(np.unique(load(out))) >= 2, "one label everywhere: agreement would say nothing"
        differing = {OURS: differing_in_box(load(out), model, slices, box, workload.precision)}
        uncropped.predict_file(scan, whole)
        for script in scripts:
            script.run()
            differing[script.name] = float((load(written[script.name]) != load(whole)).mean())
        for name, share in differing.items():
            precision = "fp32" if workload.precision == "int8" and name != OURS else workload.precision
            assert share <= UNDECIDED_VOLUME[precision], f"{name}: {share:.2%} of the voxels differ from torch"
        return {"share of differing voxels": max(differing.values())}

    pixels = sum(hu.shape[0] * hu.shape[2] * hu.shape[3] for hu in fed)
    facts: dict[str, Any] = {IMPLEMENTATION: "smile_runtime", "voxels": slices.size, "computed pixels": pixels}
    facts[COSTS] = {FEWER_PIXELS: slices.size / pixels}
    if workload.processes:
        shapes = sorted({hu.shape for hu in fed})
        facts["peak memory"] = peak_memory(file, scan, folder / "other.nii.gz", shapes, threads)
        beyond = facts["peak memory"]["predict"] - facts["peak memory"]["session"]
        facts[COSTS] |= {BYTES_A_VOXEL: beyond / slices.size} | start_up(file)
    others = []
    if workload.by_hand:
        others.append(Call(NO_CROP, lambda: uncropped.predict_file(scan, whole)))
    if workload.precision == "int8":
        others.append(Call(FP32, lambda: floating.predict_file(scan, whole)))
    return Comparison(
        [Call(OURS, lambda: ours.predict_file(scan, out))], [Call(SESSION, bare), *others, *scripts], check, facts
    )


def differing_in_box(found: NDArray[np.uint8], model: Segmenter, slices: Volume, box: BodyBox, precision: str) -> float:
    """Share of the voxels of some slices [X, Y, Z] that torch, given the same box, calls something else."""
    chosen = list(box.slices)[:: -(-len(box.slices) // COMPARED)]
    expected = np.zeros((len(chosen), *slices.shape[1:]), np.uint8)
    inside = np.ascontiguousarray(box.crop(slices)[chosen])
    box.crop(expected)[:] = loop(model, inside, half=precision == "fp16")
    return float((found.transpose(2, 1, 0)[chosen] != expected).mean())
