"""Whole volumes, one benchmark a workload; `--smoke` makes it a test."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.interleaved import REPETITIONS
from bench.measure import measure
from bench.whole_volume import workloads
from bench.whole_volume.contest import contest

LONG_REPETITIONS = 3  # of minutes each


@pytest.mark.parametrize("name", [*workloads.NAMES, *workloads.LONG_NAMES])
def test(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, tmp_path: Path, name: str) -> None:
    smoke = pytestconfig.getoption("--smoke")
    if smoke and name not in workloads.SMOKE_NAMES:
        pytest.skip("differs from another workload in size alone")
    benchmark.group = name.split("/")[0]
    rounds = 2 if smoke else LONG_REPETITIONS if name in workloads.LONG_NAMES else REPETITIONS
    measure(benchmark, name, contest(workloads.workload_of(name, smoke=smoke), tmp_path), rounds)
