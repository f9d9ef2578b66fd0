"""What a run was measured on: that decides which record it is compared with."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.heap import allocator
from smile_fast.ops.native.core import CORE

ROOT = Path(__file__).parents[1]


def instruction_set() -> str:
    """What our kernels use, unless they were told otherwise: the best one."""
    return str(CORE.cpu_capabilities()[0]) if CORE else "none"


def describe(target: str) -> dict[str, Any]:
    """Everything that a figure may depend on.

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


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether it has uncommitted changes; the records of other runs are none."""
    return {
        "id": _output(["git", "rev-parse", "--short=12", "HEAD"]),
        "time": _output(["git", "log", "-1", "--format=%cI"]),
        "dirty": bool(_output(["git", "status", "--porcelain", "--untracked-files=no", "--", ":!bench/results"])),
    }


def record_name(machine: dict[str, Any]) -> str:
    """Name of the record that runs with this description belong to, such as amd-epyc-2-cores-avx512."""
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


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
