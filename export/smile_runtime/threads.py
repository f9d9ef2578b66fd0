"""How many CPU threads a command uses and how they wait, chosen for a machine that others use, too."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_NUMBER = "OMP_NUM_THREADS"
# A thread that spins while it waits takes the core from the one that it waits for, as soon as the machine is busy.
# libgomp (torch's wheels, our core) goes by the first name and needs no GOMP_SPINCOUNT beside it, LLVM's and Intel's
# OpenMP by the second.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
_WAITING_NAMES = {*_WAITING, "GOMP_SPINCOUNT"}

# ID PARENT DEVICE ROOT MOUNT_POINT OPTIONS - TYPE SOURCE OPTIONS, of which version 1 names its controllers
_MOUNT = re.compile(r"\S+ \S+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)")
_QUOTA = re.compile(r"(\d+)\s+(\d+)\s*")  # CPU time and the period for which it is given; "max" or -1 is no quota


def share_machine() -> None:
    """Set number and wait policy of the process's threads in its environment, where the user has set neither.

    OpenMP and OpenBLAS read it once, when they are loaded: call this before numpy or torch is imported.
    """
    set_threads(default_threads())
    if not _WAITING_NAMES & os.environ.keys():
        os.environ.update(_WAITING)


def set_threads(threads: int) -> None:
    """Set the number of threads in the process's environment."""
    if threads != _given():
        os.environ[_NUMBER] = str(threads)


def default_threads() -> int:
    """The number that the user gave as OMP_NUM_THREADS, else that of the CPUs that this process may use."""
    return _given() or usable_cpus()


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those of its affinity, or of its control groups' quota where that is less.

    Args:
        root: Where ``proc`` and the control groups are mounted.

    Returns:
        At least 1; a part of a CPU counts as one.
    """
    # macOS knows only how many there are.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cpus, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _given() -> int:
    """The first number of OMP_NUM_THREADS, which may hold one a level; 0 if OpenMP could not use it either."""
    first = os.environ.get(_NUMBER, "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group around this process gives, in versions 1 and 2, where it limits them."""
    for where in control_groups("cpu", root):
        one, two = where / "cpu.cfs_quota_us", where / "cpu.cfs_period_us"
        quota = _QUOTA.fullmatch(read_text(where / "cpu.max") or f"{read_text(one)} {read_text(two)}")
        if quota is not None:
            yield int(quota[1]) / int(quota[2])


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's control groups in versions 1 and 2, from its own to the outermost.

    Args:
        controller: ``cpu`` or ``memory``; version 2 has all in one.
        root: Where ``proc`` and the control groups are mounted.
    """
    groups = {
        controller: PurePosixPath(path)  # version 2 has one without a name
        for controllers, path in re.findall(r"^\d+:(.*?):(/.*)$", read_text(root / "proc/self/cgroup"), re.MULTILINE)
        for controller in controllers.split(",")
    }
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        mount = _MOUNT.fullmatch(line)
        if mount is None:
            continue
        mounted, point, kind, options = mount.groups()
        group = groups.get("" if kind == "cgroup2" else controller)
        if group is None or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # A container may see its own group as the top and its name as it is outside: what is not there limits nothing.
        inside = PurePosixPath("/", group.relative_to(mounted) if group.is_relative_to(mounted) else group)
        for folder in (inside, *inside.parents):
            yield root / point.lstrip("/") / str(folder).lstrip("/")


def read_text(path: Path) -> str:
    """The text of a file of the kernel's; none where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
