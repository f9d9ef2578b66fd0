import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from smile_fast.data.processes import run_jobs, worker_processes
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


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_worker_processes_compute_with_one_thread(workers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with worker_processes(workers, advice="") as pool:
        ids = [pool.submit(os.getpid).result() for _ in range(3)]
        assert pool.submit(threads, None).result() == ("1" if workers == 2 else "5")
    assert (os.getpid() in ids) == (workers < 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_ends_worker_processes_is_one_sentence_and_a_bug_is_none(workers):
    with (
        pytest.raises(InputError, match=r"^memory: .*; buy some"),
        worker_processes(workers, advice="buy some") as pool,
    ):
        pool.submit(stumble, "memory").result()
    with pytest.raises(ZeroDivisionError), worker_processes(workers, advice="buy some") as pool:
        pool.submit(stumble, "bug").result()
    if workers == 2:
        with pytest.raises(InputError, match="a worker process was killed"), worker_processes(2, advice="") as pool:
            pool.submit(die, None).result()


def test_an_error_does_not_wait_for_the_work_of_others():
    def give_up():
        with worker_processes(2, advice="") as pool:
            pool.submit(time.sleep, 3600)
            raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        give_up()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_worker_processes_end_in_silence_with_a_signal(tmp_path, number, status):
    """Ctrl-C reaches the whole group, SIGTERM the parent alone."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from smile_fast.data.processes import worker_processes\n"
        "def job(seconds):\n"
        "    time.sleep(seconds)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        with worker_processes(2, advice='') as pool:\n"
        "            for future in [pool.submit(job, seconds) for seconds in (0, 600, 600)]:\n"
        "                print(future.result(), flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _alive(worker)
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        else:
            parent.send_signal(number)
        _, said = parent.communicate(timeout=120)  # only a defect takes that long
        assert (parent.returncode, said) == (status, "")
        assert not _alive(worker)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # FileNotFoundError, or ProcessLookupError where it ended meanwhile
        return False
