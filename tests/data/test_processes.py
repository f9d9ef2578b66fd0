import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from smile_fast.data.processes import run_jobs, this_process, worker_processes
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
    with pytest.raises(InputError, match=r"^memory: a worker process was killed, .*; buy some$"):
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


def processes(workers, **options):
    return worker_processes(workers, advice="buy some", preload="smile_fast.data.processes", **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_compute_with_one_thread(workers, monkeypatch):
    """And this one keeps its own number."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("NUMEXPR_MAX_THREADS", raising=False)
    with processes(workers) as pool:
        assert os.environ["OMP_NUM_THREADS"] == "5"
        assert "NUMEXPR_MAX_THREADS" not in os.environ
        assert os.getpid() not in [pool.submit(os.getpid).result() for _ in range(3)]
        assert pool.submit(threads, None).result() == "1"


KEPT: list[str] = []


def keep(value):
    KEPT.append(value)


def kept():
    return KEPT


def test_what_is_given_is_there_before_the_first_work():
    with processes(2, begin=keep, given=("this",)) as pool:
        assert [pool.submit(kept).result() for _ in range(4)] == [["this"]] * 4


def test_this_process_does_the_work_at_once(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with this_process(advice="") as pool:
        assert pool.submit(os.getpid).result() == os.getpid()
        assert pool.submit(threads, None).result() == "5"


def alone():
    return this_process(advice="buy some")


@pytest.mark.parametrize("workers", [alone, lambda: processes(2)])
def test_what_ends_the_work_is_one_sentence_and_a_bug_is_none(workers):
    with pytest.raises(InputError, match=r"^memory: .* too little; buy some$"), workers() as pool:
        pool.submit(stumble, "memory").result()
    with pytest.raises(ZeroDivisionError), workers() as pool:
        pool.submit(stumble, "bug").result()


def test_a_worker_process_that_was_killed_is_one_sentence():
    with pytest.raises(InputError, match=r"^memory: a worker process was killed, .*; buy some$"), processes(2) as pool:
        pool.submit(die, None).result()


@pytest.mark.parametrize(
    ("error", "why"), [(OSError(28, "No space left on device"), "no space left on device"), (EOFError(), "the first")]
)
@pytest.mark.parametrize("method", ["__init__", "submit"])
def test_worker_processes_that_cannot_be_started_are_one_sentence(monkeypatch, method, error, why):
    def full(self, *arguments, **options):
        raise error

    monkeypatch.setattr(ProcessPoolExecutor, method, full)
    with (
        pytest.raises(InputError, match=rf"^--workers: no process can be started here \({why}.*\); buy some$"),
        processes(2),
    ):
        pass


def test_a_script_without_a_guard_is_told_so(tmp_path):
    """Its processes run the whole script again; what they say of it comes before, the sentence at the end."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import os, sys\n"
        "from smile_fast.data.processes import worker_processes\n"
        "from smile_runtime.errors import InputError\n"
        "try:\n"
        "    with worker_processes(1, advice='', preload='smile_fast.data.processes') as pool:\n"
        "        pool.submit(os.getpid).result()\n"
        "except InputError as error:\n"
        "    sys.exit(str(error))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert "the script that starts them lacks if __name__ == '__main__'" in ended.stderr.splitlines()[-1]


def test_an_error_does_not_wait_for_the_work_of_others():
    def give_up():
        with processes(2) as pool:
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
        "import os, signal, sys, time\n"
        "from smile_fast.data.processes import worker_processes\n"
        "def job(seconds):\n"
        "    time.sleep(seconds)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background takes away
        "    try:\n"
        "        with worker_processes(2, advice='', preload='os') as pool:\n"
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


@pytest.mark.parametrize("error", [InputError("model.safetensors: damaged"), None])
def test_sigterm_is_not_taken_for_an_error_of_the_code_that_it_falls_into(error):
    """As of a library that reads a file, and turns all exceptions into its own."""

    def read():
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            if error is not None:
                raise error from None

    with pytest.raises(SystemExit) as ended, processes(1):
        read()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert multiprocessing.active_children() == []


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # FileNotFoundError, or ProcessLookupError where it ended meanwhile
        return False
