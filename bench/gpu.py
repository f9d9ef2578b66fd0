"""One command for a machine with an NVIDIA GPU: builds, tests, sanitizes, measures. `make gpu`, or python -m bench.gpu.

Writes bench/results/<gpu>.json, and a copy to $OUT where OUT is set, anew after every step:

    machine      gpu, driver, torch, triton, nvcc, python, commit
    steps        name -> {passed, seconds, tail: last lines of the output}, in the order in which they ran
    rows         name -> what bench/gpu_ops.py or gpu_step.py measured; "ceilings": what this GPU's memory reaches

Every step and every row is a process of its own: one that fails, hangs or breaks the CUDA context stops none of the
others. `--only` runs one part; what other parts have found at the same commit stays in the file. The exit status is 1
if a step failed, 2 if there is no GPU.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import gpu_ops, gpu_step
from bench.gpu_table import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BUILD = ROOT / "build" / "gpu"
TOOLKIT = "/usr/local/cuda/bin"
PARTS = ("build", "test", "sanitize", "bench")
NEEDED = ("numpy", "pybind11", "pytest", "torch", "triton")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TAIL = 40  # lines
BUILD_SECONDS, TEST_SECONDS, SANITIZER_SECONDS, ROW_SECONDS = 600, 1200, 1200, 600
VOLUME_SECONDS = 600
VOLUME_ROWS = ("whole volume, fp32", "whole volume, fp16")  # gpu_volume needs onnxruntime: not imported here


class Record:
    """The JSON file, written after every step."""

    def __init__(self, machine: dict[str, str], results: Path) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-") + ".json"
        self.paths = [results / name, *([Path(os.environ["OUT"]) / name] if os.environ.get("OUT") else [])]
        self.content: dict[str, Any] = {"machine": machine, "steps": {}, "rows": {}}
        if self.paths[0].exists():
            before = json.loads(self.paths[0].read_text(encoding="utf-8"))
            if before["machine"] == machine:
                self.content = before

    def save(self) -> None:
        """Write the file, as a whole or not at all."""
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(path)

    def step(self, name: str, command: list[str], timeout: float, environment: dict[str, str] | None = None) -> bool:
        """Run a command, keep the end of its output, say how it went."""
        print(f"...    {name}", flush=True)
        started = time.monotonic()
        passed, output = run(command, timeout, environment or {})
        seconds = round(time.monotonic() - started, 1)
        tail = output.splitlines()[-TAIL:]
        self.content["steps"].pop(name, None)  # to the end
        self.content["steps"][name] = {"passed": passed, "seconds": seconds, "tail": tail}
        print(f"{'ok    ' if passed else 'FAILED'} {name} ({seconds} s)", flush=True)
        if not passed:
            print("\n".join(tail), flush=True)
        self.save()
        return passed

    def row(self, name: str, module: str, timeout: float = ROW_SECONDS) -> None:
        """Measure one row in a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            self.content["rows"].pop(name, None)
            if self.step(name, [sys.executable, "-m", module, name, str(out)], timeout):
                self.content["rows"][name] = json.loads(out.read_text(encoding="utf-8"))
                self.save()


def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
    """Run a command with all its children; whether it succeeded in time, and its output."""
    full = {
        **os.environ,
        "PATH": f"{os.environ.get('PATH', '')}:{TOOLKIT}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'export'}",
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
    """Return how the tests on the device are run: warnings of versions that nobody has seen yet are no failures."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "--tb=short", "tests/gpu"]


def sanitizer_command(tool: str, implementation: str) -> list[str]:
    """Return how compute-sanitizer runs the ragged shapes."""
    options = ["--tool", tool, "--error-exitcode", "1", "--print-limit", "10"]
    return ["compute-sanitizer", *options, sys.executable, "-m", "bench.gpu_shapes", implementation]


def machine() -> dict[str, str]:
    """Return what the figures are measured on."""
    import torch

    def last_line(*command: str) -> str:
        passed, output = run(list(command), 60, {})
        return output.strip().splitlines()[-1] if passed and output.strip() else "unknown"

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": last_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": last_line(sys.executable, "-c", "import triton; print(triton.__version__)"),
        "nvcc": last_line("nvcc", "--version"),
        "python": platform.python_version(),
        "commit": last_line("git", "rev-parse", "--short", "HEAD"),
    }


def run_part(part: str, record: Record) -> None:
    """Run all steps of a part, whatever becomes of them."""
    if part == "build":
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            print(f"missing, and some steps will fail: pip install {' '.join(missing)}", flush=True)
        for name, command in build_commands().items():
            record.step(name, command, BUILD_SECONDS)
    elif part == "test":
        record.step("tests", test_command(), TEST_SECONDS, {"SMILE_FAST_GPU": "1"})
    elif part == "sanitize":
        for implementation in ("cuda", "triton"):
            for tool in SANITIZERS:
                # Every tensor an allocation of its own: its ends are seen.
                alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
                name, command = f"{tool}, {implementation}", sanitizer_command(tool, implementation)
                record.step(f"compute-sanitizer {name}", command, SANITIZER_SECONDS, alone)
    else:
        for name in gpu_ops.ROWS:
            record.row(name, "bench.gpu_ops")
        for name in gpu_step.ROWS:
            record.row(name, "bench.gpu_step")
        for name in VOLUME_ROWS:
            record.row(name, "bench.gpu_volume", VOLUME_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part alone; may be repeated")
    parts = parser.parse_args(arguments).only or PARTS
    found = machine()
    if found["gpu"] == "none":
        print("error: torch sees no CUDA device; make gpu needs one, and a torch that is built for it", file=sys.stderr)
        return 2
    record = Record(found, RESULTS)
    record.save()
    for part in PARTS:
        if part in parts:
            run_part(part, record)
    print(table(record.content))
    print("\n".join(str(path) for path in record.paths))
    return 0 if all(step["passed"] for step in record.content["steps"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
