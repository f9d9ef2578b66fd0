"""Options of the suites, and what pytest-benchmark writes about the machine."""

from typing import Any

import pytest

from bench import machine
from bench.comparison import CPU, CUDA
from bench.data_path.names import LEFT_OUT
from smile_fast.ops.native.core import CORE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small sizes, two repetitions: whether all runs and agrees")
    parser.addoption("--target", default=machine.instruction_set(), help="instruction set of our kernels")
    parser.addoption("--device", choices=(CPU, CUDA), default=CPU, help="which machine is described")


def pytest_configure(config: pytest.Config) -> None:
    if CORE:
        CORE.use_cpu_capability(config.getoption("--target"))


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    if config.getoption("--device") == CUDA:
        return machine.describe_gpu()
    return machine.describe(config.getoption("--target"))


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return machine.commit()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which peers did not take part: a run without them passes."""
    for report in terminalreporter.stats.get("passed", []):
        for kind, said in report.user_properties:
            if kind == LEFT_OUT:
                terminalreporter.write_line(f"{report.nodeid}: left out: {said}")
