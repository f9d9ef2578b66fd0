"""One benchmark a workload; `--smoke` makes it a test."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.interleaved import REPETITIONS
from bench.measure import measure
from bench.ops import NAMES, OPS
from bench.ops.peers import FULL, SMOKE


@pytest.mark.parametrize("name", NAMES)
def test(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, name: str) -> None:
    smoke = pytestconfig.getoption("--smoke")
    op, workload = name.split("/")
    benchmark.group = op
    contest = OPS[op].contest(OPS[op].WORKLOADS[workload], SMOKE if smoke else FULL)
    measure(benchmark, name, contest, rounds=2 if smoke else REPETITIONS)
