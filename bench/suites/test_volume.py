"""Whole volumes: `pytest bench/suites/test_volume.py`; `--smoke` makes it a test, `-k whole` takes minutes."""

from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import volume
from bench.interleaved import FEWEST_REPETITIONS, Run, ratio, summary
from bench.measure import ERRORS, MILLISECONDS, RATIOS
from bench.volume_process import peak_memory, start_up

REPETITIONS = 5


@pytest.mark.parametrize("name", volume.WORKLOADS)
def test_volume(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, tmp_path: Path, name: str) -> None:
    smoke = pytestconfig.getoption("--smoke")
    if smoke and name not in volume.SHORT:
        pytest.skip("a long form of another workload")
    workload = volume.SMOKE_WORKLOAD if smoke else volume.WORKLOADS[name]
    contest = volume.contest(workload, tmp_path)
    errors = contest.check()
    first, *others = [*contest.ours, *contest.peers]
    rounds = 2 if smoke else REPETITIONS if workload.slices < 100 else FEWEST_REPETITIONS
    runs: dict[str, list[Run]] = {one.name: [] for one in (first, *others)}

    def run_all() -> None:
        for one in (first, *others):
            runs[one.name].append(one.measured())

    benchmark.group = "whole_volume"
    benchmark.pedantic(run_all, rounds=rounds)
    shape = nib.load(tmp_path / "scan.nii.gz").shape
    benchmark.extra_info.update(
        {
            "name": f"whole_volume/{name}",
            "implementation": "smile_runtime",
            **contest.facts,
            ERRORS: errors,
            MILLISECONDS: {one: summary(found) for one, found in runs.items()},
            RATIOS: {first.name: {one.name: ratio(runs[one.name], runs[first.name]) for one in others}},
            **processes(tmp_path, shape),
        }
    )


def processes(folder: Path, shape: Any) -> dict[str, Any]:
    """Start-up time and memory of the same file and scan."""
    file, scan, out = folder / "model.onnx", folder / "scan.nii.gz", folder / "labels.nii.gz"
    memory = peak_memory(file, scan, out, shape, torch.get_num_threads())
    return {"start-up seconds": start_up(file), "peak memory": memory}
