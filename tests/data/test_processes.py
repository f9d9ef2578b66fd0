import os
import signal
import subprocess
import sys
import time

import pytest

from smile_fast.data.processes import run_jobs
from smile_runtime.errors import InputError


def double(job):
    return 2 * job


def stumble(job):
    raise {"memory": MemoryError, "bug": ZeroDivisionError}[job]


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [-1, 1, 2, 9])
def test_every_job_is_done_once(workers):
    assert sorted(run_jobs(double, [1, 2, 3], workers, advice="")) == [2, 4, 6]
    assert list(run_jobs(double, [], workers, advice="")) == []


def threads(job):
    return os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize(("given", "share"), [("1", "1"), ("2", "1"), ("5", "2")])
def test_workers_share_the_threads_of_the_command(monkeypatch, given, share):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert list(run_jobs(threads, [1, 2, 3], 2, advice="")) == [share] * 3
    assert list(run_jobs(threads, [1], 2, advice="")) == [given]  # in this process


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(InputError, match="memory: a worker process was killed or had too little; buy some"):
        list(run_jobs(die, [1, 2], 2, advice="buy some"))


@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_memory_is_one_sentence_and_a_bug_is_none(workers):
    with pytest.raises(InputError, match=r"^memory: .*; buy some"):
        list(run_jobs(stumble, ["memory"] * 2, workers, advice="buy some"))
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(stumble, ["bug"] * 2, workers, advice="buy some"))


def test_a_worker_ends_with_its_parent(tmp_path):
    """A parent that is killed cannot tell its workers."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from smile_fast.data.processes import run_jobs\n"
        "def job(seconds):\n"
        "    time.sleep(seconds)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for worker in run_jobs(job, [0, 600, 600], 2, advice=''):\n"
        "        print(worker, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _alive(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 120  # only a defect takes that long
        while _alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _alive(worker)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # FileNotFoundError, or ProcessLookupError where it ended meanwhile
        return False
