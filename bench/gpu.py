"""One command for a machine with an NVIDIA GPU: builds, tests, sanitizes, measures. `make gpu`, or python -m bench.gpu.

Writes bench/results/<gpu>.json ($OUT/<gpu>.json where OUT is set):

    machine      gpu, driver, torch, triton, nvcc, python, commit
    steps        name -> {passed, seconds, tail: last lines of the output}, in the order in which they ran
    ceilings     what this session's GPU reaches: copy_gbps (read and write), read_gbps
    rows         workload -> op -> {milliseconds per implementation and peer (median and minimum), gbps}
    step         the training step: milliseconds of the network alone and with the loss, eager and compiled
    volumes      a whole volume in fp32 and fp16: ours, its session alone, torch eager and compiled

A figure in this file was measured in the same session as its ceilings. The exit status is 1 if a step failed.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 40  # lines
BUILD = ROOT / "build" / "gpu"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


def run_step(name: str, command: list[str], steps: dict[str, Any], timeout: int) -> bool:
    """Run a command, keep the end of its output, say how it went."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'export'}", "SMILE_FAST_GPU": "1"}
    if name.startswith("compute-sanitizer"):  # every tensor an allocation of its own: its ends are seen
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, passed = done.stdout, done.returncode == 0
    except (subprocess.TimeoutExpired, OSError) as error:
        output, passed = str(error), False
    seconds = round(time.monotonic() - started, 1)
    steps[name] = {"passed": passed, "seconds": seconds, "tail": output.splitlines()[-TAIL:]}
    print(f"{'ok    ' if passed else 'FAILED'} {name} ({seconds} s)", flush=True)
    if not passed:
        print("\n".join(steps[name]["tail"]), flush=True)
    return passed


def build_commands() -> list[list[str]]:
    """Return the commands that build both extension modules into this checkout, for the Python that runs."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    import pybind11

    configure = [
        *(cmake or "cmake", "-S", ".", "-B", str(BUILD)),
        *(["-G", "Ninja"] if ninja else []),
        *("-DSMILE_FAST_PYTHON=ON", "-DSMILE_FAST_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'smile_fast'}",
    ]
    return [configure, [cmake or "cmake", "--build", str(BUILD), "--parallel"]]


def sanitizer_command(tool: str) -> list[str]:
    """Return how compute-sanitizer runs the ragged shapes."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [program, "--tool", tool, "--error-exitcode", "1", sys.executable, "-m", "bench.gpu_shapes"]


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    import torch
    import triton

    def first_line(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().splitlines()[-1]
        except (OSError, IndexError):
            return "unknown"

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "nvcc": first_line("nvcc", "--version"),
        "python": platform.python_version(),
        "commit": first_line("git", "rev-parse", "--short", "HEAD"),
    }


def results_path(gpu: str) -> Path:
    """Return where the results of a GPU go."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


def measured(name: str, measure: Callable[[], dict[str, Any]], steps: dict[str, Any]) -> dict[str, Any]:
    """Run one group of measurements as a step; a failure is recorded and does not stop the others."""
    started = time.monotonic()
    try:
        found, error = measure(), ""
    except Exception as problem:  # whatever fails belongs in the record
        found, error = {}, f"{type(problem).__name__}: {problem}"
    steps[name] = {"passed": not error, "seconds": round(time.monotonic() - started, 1), "tail": [error]}
    print(f"{'FAILED' if error else 'ok    '} {name} {error}", flush=True)
    return found


def main() -> int:
    """Run all steps; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("build", "test", "sanitize", "bench"), help="one part alone")
    only = parser.parse_args().only
    steps: dict[str, Any] = {}
    if only in (None, "build"):
        for number, command in enumerate(build_commands()):
            run_step(("configure", "build")[number], command, steps, 600)
    if only in (None, "test"):
        run_step("tests", [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "tests/gpu"], steps, 1200)
    if only in (None, "sanitize"):
        for tool in SANITIZERS:
            run_step(f"compute-sanitizer {tool}", sanitizer_command(tool), steps, 900)
    record: dict[str, Any] = {"machine": machine(), "steps": steps}
    if only in (None, "bench"):
        from bench import gpu_ops, gpu_step, gpu_volume

        record["ceilings"] = measured("ceilings", gpu_ops.ceilings, steps)
        record["rows"] = {}
        for name, workload in gpu_ops.WORKLOADS.items():
            record["rows"][name] = measured(name, workload, steps)
        record["step"] = measured("training step", gpu_step.training_step, steps)
        record["volumes"] = measured("whole volumes", gpu_volume.rows, steps)
        print(gpu_ops.table(record))
    from smile_runtime.files import write_json

    path = results_path(record["machine"]["gpu"])
    write_json(path, record)
    print(path)
    return 0 if all(step["passed"] for step in steps.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
