"""How many CPUs a process may use by its affinity and its control groups, and what stands in its environment."""

import json
import os
import subprocess
import sys

import pytest

from smile_runtime import threads
from smile_runtime.threads import default_threads, set_threads, share_machine, usable_cpus

NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
V2 = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} {point} rw,nosuid,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
OTHERS = "22 27 0:21 / /proc rw,relatime - proc proc rw\n27 1 254:0 / / rw - ext4 /dev/vda rw,discard\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without any of the names, and as it was afterwards."""
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if name not in NAMES})
    return os.environ


@pytest.fixture
def many(monkeypatch):
    """A machine of 16 CPUs, all of which this process may use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


@pytest.fixture
def machine(tmp_path, many):
    """Writes the files of a machine, by their paths."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def version_2(group, **quotas):
    """A machine with control groups of version 2; quotas by folder, with _ for /."""
    files = {f"sys/fs/cgroup/{folder.replace('_', '/')}/cpu.max": text + "\n" for folder, text in quotas.items()}
    return {"proc/self/mountinfo": OTHERS + V2, "proc/self/cgroup": f"0::{group}\n", **files}


def version_1(group, quota, *, root="/", point="/sys/fs/cgroup/cpu,cpuacct", folder=""):
    """A machine with control groups of version 1, and beside them those of version 2 without any controller."""
    place = f"{point.lstrip('/')}/{folder}"
    return {
        "proc/self/mountinfo": OTHERS + MEMORY + V1.format(root=root, point=point) + V2.replace("group ", "group/v2 "),
        "proc/self/cgroup": f"9:name=systemd:/\n4:memory:/job\n2:cpu,cpuacct:{group}\n0::/\n",
        f"{place}/cpu.cfs_quota_us": f"{quota}\n",
        f"{place}/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/cpu.cfs_quota_us": "100000\n",  # of another controller's group: not ours
        "sys/fs/cgroup/memory/job/cpu.cfs_period_us": "100000\n",
    }


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("250000 100000", 3),  # a part of a CPU counts as one
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("40000 10000", 4),
        ("6400000 100000", 16),  # more than the affinity gives
        ("", 16),
        ("nonsense", 16),
    ],
)
def test_a_quota_of_version_2(machine, quota, cpus):
    assert usable_cpus(machine(version_2("/job", job=quota))) == cpus


def test_the_least_quota_of_all_groups_around_the_process_counts(machine):
    root = machine(
        version_2("/slice/job/step", slice="300000 100000", slice_job="800000 100000", slice_other="1 100000")
    )
    assert usable_cpus(root) == 3


def test_a_container_sees_its_own_group_as_the_top(machine):
    """With a name of its own (cgroup namespace) or with that which it has outside."""
    assert usable_cpus(machine(version_2("/", **{"": "400000 100000"}))) == 4
    assert usable_cpus(machine(version_2("/kubepods/pod1/c1", **{"": "200000 100000"}))) == 2
    assert usable_cpus(machine(version_2("/../other", **{"": "100000 100000"}))) == 1


@pytest.mark.parametrize(("quota", "cpus"), [(-1, 16), (150000, 2), (400000, 4), (10000, 1)])
def test_a_quota_of_version_1(machine, quota, cpus):
    assert usable_cpus(machine(version_1("/job", quota, folder="job"))) == cpus


def test_groups_of_version_1_in_a_container(machine):
    """Docker without a namespace: the mount's root is the container's group, whose files stand at the mount point."""
    root = machine(version_1("/docker/ab12", 300000, root="/docker/ab12", point="/cgroups/cpu"))
    assert usable_cpus(root) == 3


def test_a_system_without_control_groups_has_no_quota(tmp_path, machine):
    assert usable_cpus(tmp_path) == 16
    assert (
        usable_cpus(machine({"proc/self/mountinfo": "what\n\n1 2 3 - cgroup\n", "proc/self/cgroup": "0\n::\n"})) == 16
    )


def test_a_system_that_does_not_say_which_cpus_a_process_may_use(tmp_path, monkeypatch):
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


def test_the_affinity_of_the_process_counts():
    code = (
        "import os; from smile_runtime.threads import usable_cpus; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_number_and_wait_policy_are_set_where_the_user_has_set_neither(environment, monkeypatch):
    monkeypatch.setattr(threads, "usable_cpus", lambda: 5)
    share_machine()
    assert {name: environment[name] for name in NAMES if name in environment} == {
        "OMP_NUM_THREADS": "5",
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
    }


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"])
def test_who_says_how_to_wait_is_not_overruled(environment, name):
    """Not by the other names either: one of them may be stronger than the one that was given."""
    environment[name] = "7"
    share_machine()
    assert {key: environment[key] for key in NAMES[1:] if key in environment} == {name: "7"}


@pytest.mark.parametrize(
    ("given", "number", "kept"),
    [
        ("3", 3, "3"),
        (" 3 ", 3, " 3 "),
        ("4,2", 4, "4,2"),
        ("0", 5, "5"),
        ("", 5, "5"),
        ("many", 5, "5"),
        ("-1", 5, "5"),
    ],
)
def test_a_number_that_openmp_can_use_is_kept(environment, monkeypatch, given, number, kept):
    monkeypatch.setattr(threads, "usable_cpus", lambda: 5)
    environment["OMP_NUM_THREADS"] = given
    assert default_threads() == number
    share_machine()
    assert environment["OMP_NUM_THREADS"] == kept
    set_threads(2)
    assert default_threads() == 2


def test_smile_predict_sets_them_before_it_loads_anything(tmp_path):
    """What a library would have found when it was imported."""
    code = f"""
import builtins, json, os, sys
found, real = {{}}, builtins.__import__
def watching(name, *rest):
    if name in ("numpy", "onnxruntime", "scipy", "torch") and name not in found:
        found[name] = [os.environ.get(key) for key in {NAMES[:2]!r}]
    return real(name, *rest)
builtins.__import__ = watching
from smile_runtime.predict.cli import main
status = main(["{tmp_path}/none.onnx", "{tmp_path}/none.nii.gz", "-o", "{tmp_path}/labels.nii.gz"])
print(json.dumps([status, found]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    status, found = json.loads(done.stdout)
    assert status == 2
    assert found["numpy"] == found["onnxruntime"] == [str(usable_cpus()), "PASSIVE"]
