"""Free memory: the machine's, or that of its control groups."""

import pytest

from smile_runtime.memory import free_memory

MEMINFO = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n"


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(version, limit, used, stat=""):
    """A control group of either version."""
    if version == 2:
        lines = ("0::/job\n", "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        names, folder = ("memory.max", "memory.current"), "sys/fs/cgroup/job"
    else:
        lines = ("4:memory:/job\n", "33 24 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
        names, folder = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "sys/fs/cgroup/memory/job"
    values = dict(zip((*names, "memory.stat"), (limit, used, stat), strict=True))
    return {"proc/self/cgroup": lines[0], "proc/self/mountinfo": lines[1]} | {
        f"{folder}/{name}": text for name, text in values.items()
    }


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 8000 * 1024),
        ({"proc/meminfo": MEMINFO} | group(2, "max\n", "5"), 8000 * 1024),
        ({"proc/meminfo": MEMINFO} | group(2, "1000\n", "900\n"), 100),
        ({"proc/meminfo": MEMINFO} | group(2, "1000", "900", "anon 1\ninactive_file 70\n"), 170),
        ({"proc/meminfo": MEMINFO} | group(1, "1000", "900", "inactive_file 1\ntotal_inactive_file 70\n"), 170),
        ({"proc/meminfo": MEMINFO} | group(1, "9223372036854771712", "900"), 8000 * 1024),
        ({"proc/meminfo": MEMINFO} | group(2, "1000", "1900"), 0),
    ],
)
def test_the_least_of_what_machine_and_groups_leave(tmp_path, files, free):
    assert free_memory(machine(tmp_path, files)) == free


def test_this_machine_has_some():
    assert free_memory() is None or free_memory() > 2**20
