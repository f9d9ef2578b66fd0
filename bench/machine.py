"""What a run was measured on: that decides which record it is compared with."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.allocators import allocator
from smile_fast.ops.native.core import CORE

ROOT = Path(__file__).resolve().parents[1]
TOOLKIT = "/usr/local/cuda/bin"  # where nvcc and compute-sanitizer are, mostly not on the path


def instruction_set() -> str:
    """What our kernels use, unless another one is asked for: the best."""
    return str(CORE.cpu_capabilities()[0]) if CORE else "none"


def describe(target: str) -> dict[str, Any]:
    """Everything that a figure of this CPU may depend on.

    Args:
        target: instruction set that our kernels use.
    """
    return {
        "device": "cpu",
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction set": target,
        "best instruction set": instruction_set(),
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "kernel": platform.release(),
        "transparent huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "allocator": allocator(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "compiler": _output([os.environ.get("CXX", "c++"), "--version"]).partition("\n")[0],
    }


def describe_gpu() -> dict[str, Any]:
    """Everything that a figure of this GPU may depend on; its name is "none" where torch sees no GPU."""
    toolkit = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{TOOLKIT}"}
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none"
    return {
        "device": "cuda",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "compiler": _output(["nvcc", "--version"], toolkit).rpartition("\n")[2],
    }


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether it has uncommitted changes; the records of other runs are none.

    A copy of a checkout without its history is told its commit by $COMMIT, as that of no changes.
    """
    return {
        "commit": _output(["git", "rev-parse", "--short=12", "HEAD"]) or os.environ.get("COMMIT", "")[:12],
        "dirty": bool(_output(["git", "status", "--porcelain", "--untracked-files=no", "--", ":!bench/results"])),
    }


def record_name(machine: dict[str, Any]) -> str:
    """Name of the record that runs with this description belong to, such as amd-epyc-2-threads-avx512."""
    if machine["device"] == "cuda":
        words = [machine["gpu"]]
    else:
        words = [machine["cpu"], f"{machine['threads']} threads", machine["instruction set"]]
        if machine["allocator"] != "default":
            words.append(machine["allocator"])
    return re.sub("[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def cpu() -> str:
    """The processor's name."""
    names = [
        line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _output(command: list[str], environment: Mapping[str, str] = os.environ) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
