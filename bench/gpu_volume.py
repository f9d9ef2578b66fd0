"""A whole volume on a GPU, HU on disk to labels on disk, against the bare session and torch.

`python -m bench.gpu_volume ROW OUT.json` measures one row. Where onnxruntime has no CUDA provider a row says so and
holds no figure. Not yet run on a GPU; the test runs the same code on the CPU.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from bench.whole_volume.contest import by_hand, feeds_of, network, slices_of, write_model
from bench.whole_volume.scans import load, write_scan
from bench.whole_volume.workloads import EAGER, OURS, SESSION, Workload
from smile_fast.exporter.graph import fold_batchnorm, to_onnx, without_probabilities
from smile_fast.exporter.onnx_file import serialize
from smile_fast.exporter.precision import half_network
from smile_fast.models import Segmenter
from smile_runtime.model.exported import INPUT, LABELS, ModelCard
from smile_runtime.model.session import PROVIDERS
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.preprocessing import BodyRule, slice_context

Precision = Literal["fp32", "fp16"]
COMPILED = "torch.compile"
PHANTOM = Workload("resnet50", "phantom")
DIFFERING = {"fp32": 1e-3, "fp16": 1e-2}  # share of voxels: random weights leave many near ties
BATCH_PIXELS = 16 * 512 * 512  # for torch: as ours takes


def volume(
    precision: Precision,
    workload: Workload = PHANTOM,
    *,
    provider: str = "cuda",
    compiled: bool = True,
    repetitions: int = 5,
) -> dict[str, Any]:
    """Milliseconds of ours, of its session alone on the same batches, and of torch, eager and compiled.

    Args:
        precision: of ours; torch computes float32 without TF32, or under autocast to float16.
        workload: which scan and network.
        provider: of onnxruntime; torch uses the device of this name.
        compiled: whether torch.compile takes part.
        repetitions: of each, one after another in turn, after one that is not counted.
    """
    if PROVIDERS[provider] not in ort.get_available_providers():
        return {"milliseconds": {}, "facts": {"skipped": f"onnxruntime has no {PROVIDERS[provider]} here"}}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan, file, out = folder / "scan.nii.gz", folder / "model.onnx", folder / "ours.nii.gz"
        write_scan(workload.source, workload.slices, scan)
        model = network(workload)
        (write_model if precision == "fp32" else write_half)(model, file)
        ours = Predictor(file, provider=provider)
        slices, box = slices_of(scan, ours)
        fed, session = feeds_of(ours, slices, box), ours.model._session
        model = model.to(provider)
        eager = partial(infer, model, model, precision)

        def bare() -> None:
            for hu in fed:
                session.run([LABELS], {INPUT: hu})

        calls: dict[str, Callable[[], object]] = {
            OURS: lambda: ours.predict_file(scan, out),
            SESSION: bare,
            EAGER: partial(by_hand, eager, scan, folder / "eager.nii.gz"),
        }
        if compiled:
            fast = partial(infer, torch.compile(model), model, precision)
            calls[COMPILED] = partial(by_hand, fast, scan, folder / "compiled.nii.gz")
        taken = interleaved(calls, repetitions)
        found = box.crop(load(out).transpose(2, 1, 0))[list(box.slices)]
        expected = eager(np.ascontiguousarray(box.crop(slices)[list(box.slices)]))
        differing = float((found != expected).mean())
        assert len(np.unique(found)) >= 2, "one label everywhere: agreement would say nothing"
        assert differing <= DIFFERING[precision], f"{differing:.2%} of the voxels differ from torch"
    facts = {"voxels": slices.size, "computed pixels": box.pixels, "share of differing voxels": differing}
    return {"milliseconds": taken, "facts": facts}


def write_half(model: Segmenter, path: Path) -> None:
    """Export a network in fp16 without a run, as `write_model` does in fp32."""
    config = model.config
    graph = without_probabilities(to_onnx(half_network(fold_batchnorm(model))))
    card = ModelCard(config.organs, config.channels, config.window, config.head, body=BodyRule(), precision="fp16")
    path.write_bytes(serialize(graph, card))


@torch.inference_mode()
def infer(
    forward: Callable[[torch.Tensor], torch.Tensor],
    model: Segmenter,
    precision: Precision,
    slices: NDArray[np.int16],  # [D, H, W]
) -> NDArray[np.uint8]:
    """What people write by hand: a loop over batches of slices, on the model's device."""
    device = next(model.parameters()).device
    labels, batch = np.empty(slices.shape, np.uint8), max(1, BATCH_PIXELS // slices[0].size)
    for first in range(0, len(slices), batch):
        planes = range(len(slices))[first : first + batch]
        hu = torch.from_numpy(slice_context(slices, planes, model.config.channels)).to(device)
        with torch.autocast(device.type, torch.float16, enabled=precision == "fp16"):
            logits = forward(hu)
        labels[first : first + batch] = model.label_map(logits.float(), slices.shape[1:]).cpu().numpy()
    return labels


def interleaved(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, dict[str, float]]:
    """Median and minimum milliseconds of each call; all of them end with labels on the host, so nothing is pending."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repetition:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: {"median": statistics.median(times), "minimum": min(times)} for name, times in taken.items()}


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "whole volume, fp32": partial(volume, "fp32"),
    "whole volume, fp16": partial(volume, "fp16"),
}


def main(arguments: list[str]) -> None:
    """Measure one row and write it."""
    name, out = arguments
    Path(out).write_text(json.dumps(ROWS[name]()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
