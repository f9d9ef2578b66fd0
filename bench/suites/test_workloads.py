"""One benchmark a workload and device; `--smoke` makes them tests, on a CPU those of a GPU, too."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench import catalogue
from bench.comparison import CPU, CUDA, SMOKE, Conditions
from bench.data_path.names import LEFT_OUT
from bench.measure import measure
from bench.timing import CpuTimer, Timer


def run(request: pytest.FixtureRequest, name: str, conditions: Conditions, timer: Timer) -> None:
    """Set a workload up and time it; pytest-benchmark reads its timer from the marker when its fixture is made."""
    request.node.add_marker(pytest.mark.benchmark(group=name.partition("/")[0], timer=timer.now))
    folder: Path = request.getfixturevalue("tmp_path")
    comparison = catalogue.comparison(name, conditions, folder)
    for peer, why in comparison.facts.get(LEFT_OUT, {}).items():
        request.node.user_properties.append((LEFT_OUT, f"{peer}, {why}"))
    try:
        measure(request.getfixturevalue("benchmark"), name, comparison, timer)
    finally:
        comparison.close()
        shutil.rmtree(folder)  # pytest would keep it, and volumes take hundreds of megabytes


@pytest.mark.parametrize("name", catalogue.names(CPU, long=True))
def test(request: pytest.FixtureRequest, name: str) -> None:
    if not request.config.getoption("--smoke"):
        run(request, name, Conditions(), catalogue.timer(name, CPU))
    elif catalogue.differs_in_size_alone(name):
        pytest.skip("differs from another workload in size alone")
    else:
        run(request, name, SMOKE, CpuTimer(repetitions=2))


@pytest.mark.parametrize("name", catalogue.names(CUDA))
def test_gpu(request: pytest.FixtureRequest, name: str) -> None:
    if request.config.getoption("--smoke"):
        run(request, name, replace(SMOKE, rehearsed=True), CpuTimer(repetitions=2))
    else:
        run(request, name, Conditions(CUDA), catalogue.timer(name, CUDA))
