"""The contest of whole volumes on a GPU, run on the CPU, and where it cannot run at all."""

import json

import numpy as np
import pytest

from bench import gpu_volume
from bench.whole_volume.workloads import EAGER, OURS, SESSION, Workload

SMALL = Workload("resnet18", "phantom", slices=3, width=8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_contest_runs_and_agrees_with_torch(precision):
    row = gpu_volume.volume(precision, SMALL, provider="cpu", compiled=False, repetitions=2)
    assert set(row["milliseconds"]) == {OURS, SESSION, EAGER}
    assert all(0 < taken["minimum"] <= taken["median"] for taken in row["milliseconds"].values())
    assert 0 < row["facts"]["computed pixels"] <= row["facts"]["voxels"]


def test_labels_that_differ_from_torch_are_no_result(monkeypatch):
    real = gpu_volume.infer
    monkeypatch.setattr(gpu_volume, "infer", lambda *arguments: (real(*arguments) == 0).astype(np.uint8))
    with pytest.raises(AssertionError, match="differ from torch"):
        gpu_volume.volume("fp32", SMALL, provider="cpu", compiled=False, repetitions=1)


def test_without_the_provider_a_row_says_why_it_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    for name in gpu_volume.ROWS:
        gpu_volume.main([name, str(tmp_path / "row.json")])
        row = json.loads((tmp_path / "row.json").read_text())
        assert row == {"milliseconds": {}, "facts": {"skipped": "onnxruntime has no CUDAExecutionProvider here"}}
