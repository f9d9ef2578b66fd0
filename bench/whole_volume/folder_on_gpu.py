"""A folder of scans on a GPU, HU on disk to labels on disk, against a loop by hand; models are loaded and warm."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from bench.agreement import UNDECIDED_VOLUME
from bench.commands.cohort import FOLDER, command
from bench.comparison import OURS, Call, Comparison, Conditions
from bench.ops.names import IMPLEMENTATION
from bench.whole_volume.by_hand import loop, network, run_script
from bench.whole_volume.scans import load, save
from bench.whole_volume.volume import write_model
from bench.whole_volume.workloads import EAGER, Folder, Workload
from smile_runtime.io.nifti import read_image
from smile_runtime.model.session import PROVIDERS
from smile_runtime.predict.folder import list_jobs, output_folder, predict_folder
from smile_runtime.predict.predictor import Predictor
from smile_runtime.predict.run_report import RunReport
from smile_runtime.volume.preprocessing import to_slices

DISTINCT = 4  # scans; the others are links to them


def scans_of(workload: Folder, folder: Path) -> list[Path]:
    """Synthetic scans in a folder of their own; made where they are not there."""
    scans = folder / f"scans-{workload.volumes}x{workload.size}x{workload.slices}"
    if not scans.exists():
        raw, unfinished = folder / f"raw-{scans.name}", folder / f"unfinished-{scans.name}"
        distinct = min(DISTINCT, workload.volumes)
        size = ("--size", workload.size, "--slices", workload.slices)
        command("phantom", raw, "--train", distinct, "--test", 0, *size, "--force")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        names = [unfinished / f"scan_{number:03d}.nii.gz" for number in range(workload.volumes)]
        for made, name in zip(sorted((raw / "imagesTr").iterdir()), names, strict=False):
            image = read_image(made)
            slices, geometry = to_slices(image.data, image.affine)
            save(slices, geometry.spacing, name)
        for number in range(distinct, workload.volumes):
            os.link(names[number % distinct], names[number])
        unfinished.rename(scans)
    return sorted(scans.iterdir())


def compare(workload: Folder, conditions: Conditions, folder: Path) -> Comparison:
    """Bring a folder, or one scan alone, and a loop with torch and nibabel over the same scans together.

    Skips the benchmark where onnxruntime has no provider for the device.
    """
    if PROVIDERS[conditions.device] not in ort.get_available_providers():
        pytest.skip(f"onnxruntime has no {PROVIDERS[conditions.device]} here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    scans = scans_of(workload, folder if conditions.shrink > 1 else FOLDER)
    file, ours, theirs, alone = (folder / name for name in ("model.onnx", "ours", "theirs", "alone"))
    for out in (ours, theirs, alone):
        out.mkdir()
    model = network(Workload(workload.backbone, "phantom", width=workload.width, precision="fp16"))
    write_model(model, file, "fp16")
    predictor = Predictor(file, provider=conditions.device)
    model = model.to(conditions.device)

    def segment() -> None:
        if workload.volumes == 1:
            predictor.predict_file(scans[0], ours / scans[0].name)
            return
        report = RunReport(predictor)
        with output_folder(ours):
            predict_folder(predictor, list_jobs(scans[0].parent, ours, previews=False), report)
        assert report.count("written") == len(scans), report.files

    def by_hand() -> None:
        for scan in scans:
            run_script(partial(loop, model, half=True), scan, theirs / scan.name)

    def check() -> dict[str, float]:
        segment()
        by_hand()
        whole = Predictor(file, provider=conditions.device, crop=False)
        shares = []
        for scan in scans[:DISTINCT]:
            predictor.predict_file(scan, alone / scan.name)
            found, wanted = (out / scan.name for out in (ours, alone))
            assert found.read_bytes() == wanted.read_bytes(), f"{scan.name}: other labels in a folder than alone"
            assert len(np.unique(load(found))) >= 2, "one label everywhere: agreement would say nothing"
            whole.predict_file(scan, alone / scan.name)
            shares.append(float((load(theirs / scan.name) != load(alone / scan.name)).mean()))
        assert max(shares) <= UNDECIDED_VOLUME["fp16"], f"{max(shares):.2%} of the voxels differ from torch"
        return {"share of differing voxels": max(shares)}

    facts: dict[str, Any] = {
        IMPLEMENTATION: "smile_runtime",
        "volumes": len(scans),
        "voxels": workload.size**2 * workload.slices,
    }
    return Comparison([Call(OURS, segment)], [Call(EAGER, by_hand)], check, facts)
