"""One command for a machine with an NVIDIA GPU: builds, tests, sanitizes, measures. `make gpu`, or python -m bench.gpu.

Writes bench/results/<gpu>.jsonl, and a copy to $OUT where OUT is set, anew after every step: a line a step (whether it
passed, seconds, the last lines of its output), and a line a benchmark, as on a CPU.

Every step and every benchmark is a process of its own: one that fails, hangs or breaks the CUDA context stops none of
the others. `--only` runs one part; what other parts have found at the same commit stays in the file. The exit status is
1 if a step failed, 2 if there is no GPU.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import benchmark_table, catalogue, machine, records, runner
from bench.comparison import CUDA
from bench.machine import ROOT, TOOLKIT
from bench.records import Record

BUILD = ROOT / "build" / "gpu"
PARTS = ("build", "test", "sanitize", "bench")
NEEDED = ("nibabel", "numpy", "onnxruntime", "pybind11", "pytest", "pytest_benchmark", "torch", "triton")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TAIL = 40  # lines
BUILD_SECONDS, TEST_SECONDS, SANITIZER_SECONDS, BENCHMARK_SECONDS = 600, 1200, 1200, 600


class Steps:
    """Runs steps and keeps what they found: in the file, after every one of them."""

    def __init__(self, found: dict[str, Any], commit: dict[str, Any], folder: Path) -> None:
        """Go on with the record of this machine; steps of another commit say nothing any more.

        Args:
            found: the machine. commit: of the checkout. folder: of the records.
        """
        self._commit = commit
        name = records.path_of(found, folder).name
        self.paths = [folder / name, *([Path(os.environ["OUT"]) / name] if os.environ.get("OUT") else [])]
        self.record = Record(found, records.now())
        if self.paths[0].exists():
            self.record = records.read(self.paths[0]).merged(self.record)
        same = {key: step for key, step in self.record.steps.items() if commit.items() <= step.items()}
        self.record = replace(self.record, steps=same)

    def save(self, **more: dict[str, Any]) -> None:
        """Add steps or benchmarks, and write the file as a whole or not at all."""
        self.record = self.record.merged(Record(self.record.machine, records.now(), **more))
        for path in self.paths:
            records.write(self.record, path)

    def step(self, name: str, command: list[str], timeout: float, environment: dict[str, str] | None = None) -> bool:
        """Run a command, keep the end of its output, say how it went."""
        print(f"...    {name}", flush=True)
        started = time.monotonic()
        passed, output = run(command, timeout, environment or {})
        seconds = round(time.monotonic() - started, 1)
        tail = output.splitlines()[-TAIL:]
        print(f"{'ok    ' if passed else 'FAILED'} {name} ({seconds} s)", flush=True)
        if not passed:
            print("\n".join(tail), flush=True)
        self.save(steps={name: {"passed": passed, "seconds": seconds, "tail": tail, **self._commit}})
        return passed

    def benchmark(self, name: str) -> None:
        """Measure one workload in a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            if self.step(name, runner.command(runner.arguments(name, CUDA, path)), BENCHMARK_SECONDS):
                measured = runner.record_of(path)
                if measured:
                    print(f"       {runner.summary(measured.benchmarks[name])}", flush=True)
                    self.save(benchmarks=measured.benchmarks)


def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
    """Run a command with all its children; whether it succeeded in time, and its output."""
    full = {
        **os.environ,
        "PATH": f"{os.environ.get('PATH', '')}:{TOOLKIT}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=full, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return False, str(error)
        note = ""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            note = f"\nstopped after {timeout} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: the group has its number
                process.wait()
        output.seek(0)
        return process.returncode == 0 and not note, output.read() + note


def build_commands() -> dict[str, list[str]]:
    """Return the commands that build both extension modules into this checkout, for the Python that runs."""
    configure = [
        *("cmake", "-S", ".", "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release"),
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
        *("-DSMILE_FAST_PYTHON=ON", "-DSMILE_FAST_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'smile_fast'}",
    ]
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    return {"configure": configure, "build": ["cmake", "--build", str(BUILD), "--parallel"]}


def test_command() -> list[str]:
    """Return how the tests on the device are run: warnings of newer versions are no failures."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "--tb=short", "tests/gpu"]


def sanitizer_command(tool: str, implementation: str) -> list[str]:
    """Return how compute-sanitizer runs the ragged shapes."""
    options = ["--tool", tool, "--error-exitcode", "1", "--print-limit", "10"]
    return ["compute-sanitizer", *options, sys.executable, "-m", "bench.ragged_shapes", implementation]


def run_part(part: str, steps: Steps) -> None:
    """Run all steps of a part, whatever becomes of them."""
    if part == "build":
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            print(f"missing, and some steps will fail: pip install {' '.join(missing)}", flush=True)
        for name, command in build_commands().items():
            steps.step(name, command, BUILD_SECONDS)
    elif part == "test":
        steps.step("tests", test_command(), TEST_SECONDS, {"SMILE_FAST_GPU": "1"})
    elif part == "sanitize":
        for implementation in ("cuda", "triton"):
            for tool in SANITIZERS:
                # Every tensor an allocation of its own: its ends are seen.
                alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
                name, command = f"{tool}, {implementation}", sanitizer_command(tool, implementation)
                steps.step(f"compute-sanitizer {name}", command, SANITIZER_SECONDS, alone)
    else:
        for name in catalogue.names(CUDA):
            steps.benchmark(name)


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part alone; may be repeated")
    parts = parser.parse_args(arguments).only or PARTS
    found = machine.describe_gpu()
    if found["gpu"] == "none":
        print("error: torch sees no CUDA device; make gpu needs one, and a torch that is built for it", file=sys.stderr)
        return 2
    steps = Steps(found, machine.commit(), records.RESULTS)
    steps.save()
    for part in PARTS:
        if part in parts:
            run_part(part, steps)
    print(benchmark_table.table(steps.record))
    failed = [name for name, step in steps.record.steps.items() if not step["passed"]]
    print(f"{len(steps.record.steps)} steps, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    print("\n".join(str(path) for path in steps.paths))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
