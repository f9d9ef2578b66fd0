"""The same work on many cases, in several processes that cannot outlive their parent."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

from smile_fast.pipeline import Here
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.threads import default_threads, set_threads, usable_cpus

J = TypeVar("J")
R = TypeVar("R")

# What the libraries that start threads when they are imported go by: OpenMP and OpenBLAS, numexpr (under blosc2).
_THREADS = ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")


def worker_number(workers: int | None) -> int:
    """How many processes are meant; None is one a CPU.

    Raises:
        InputError: it is no number of processes.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a number of processes; give 1 or more")
    return workers or usable_cpus()


def run_jobs(function: Callable[[J], R], jobs: Sequence[J], workers: int, *, advice: str) -> Iterator[R]:
    """Call a function on every job, in this process or in several.

    Args:
        function: of a module, so that another process finds it.
        jobs: its arguments; they travel to the processes.
        workers: how many processes at most; 1 stays in this one.
        advice: what to do when the memory does not suffice, the end of a sentence.

    Yields:
        The results, in any order.

    Raises:
        InputError: out of memory, or a worker was killed. What `function` raises passes unchanged; either way the jobs
            that have not begun are given up.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        with this_process(advice=advice):
            yield from map(function, jobs)
        return
    # spawn: a fork of a process with torch's threads may deadlock.
    context, share = multiprocessing.get_context("spawn"), max(1, default_threads() // workers)
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(share,))
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except (BrokenProcessPool, MemoryError) as error:
        raise _shortage(error, advice) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def this_process(*, advice: str) -> Iterator[Executor]:
    """Work that is too little for `worker_processes`: done at once, by whoever asks for it.

    Args:
        advice: what to do when the memory does not suffice, the end of a sentence.

    Raises:
        InputError: out of memory.
    """
    try:
        yield Here()
    except MemoryError:
        raise InputError(f"memory: there is too little; {advice}") from None


@contextmanager
def worker_processes(
    workers: int,
    *,
    advice: str,
    preload: str,
    begin: Callable[..., object] = os.getpid,
    given: tuple[Any, ...] = (),
) -> Iterator[Executor]:
    """Processes of one thread each, for work that leaves nothing behind and may be cut short at any time.

    They begin when the block does, as forks of a server that has imported what they need, and has one thread. Whatever
    ends the block early, Ctrl-C and SIGTERM too, ends them at once; they end with this process, however it ends.

    Args:
        workers: how many.
        advice: what to do when the memory does not suffice, the end of a sentence.
        preload: the module that the server imports; the first pool of this process decides.
        begin: called in every process before its first work.
        given: its arguments. Shared memory travels here and nowhere else.

    Raises:
        InputError: out of memory, a worker was killed, or none can be started.
        SystemExit: SIGTERM, with the status that a shell shows of it.
    """
    others = set(multiprocessing.active_children())
    # A fork of this process, with CUDA or with torch's threads, may deadlock; a fork of a server that has only
    # imported starts at once, which a new process with torch does not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with _starting(advice):
        pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(begin, given))
    try:
        with _sigterm_ends():
            with _starting(advice):
                _start(pool, workers)
            yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool | MemoryError):
            raise _shortage(error, advice) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _shortage(error: BrokenProcessPool | MemoryError, advice: str) -> InputError:
    if isinstance(error, MemoryError):
        return InputError(f"memory: a worker process had too little; {advice}")
    return InputError(
        "memory: a worker process was killed, perhaps for want of it, or the script that starts them lacks "
        f"if __name__ == '__main__'; {advice}"
    )


@contextmanager
def _starting(advice: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:  # EOFError: the server is gone
        why = reason(error) if isinstance(error, OSError) else "the first one ended"
        raise InputError(f"--workers: no process can be started here ({why}); {advice}") from None


def _start(pool: Executor, workers: int) -> None:
    """Start server and processes now, of one thread, and deaf to Ctrl-C from their first instruction on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _environment(dict.fromkeys(_THREADS, "1")):
            for _ in range(workers):
                pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Change the environment for processes that begin meanwhile; the libraries of this one have read it already."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """Let SIGTERM end the process through its blocks, unless somebody else handles it.

    Code of others may take the exception for an error of its own, of a file that it reads: what then comes out of the
    block is none to be told.
    """
    main = threading.current_thread() is threading.main_thread()  # Python delivers signals to no other
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    received = False

    def end(number: int, _: object) -> None:
        nonlocal received
        received = True
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if received:
            raise SystemExit(128 + signal.SIGTERM) from None


def _begin(begin: Callable[..., object], given: tuple[Any, ...]) -> None:
    start_worker(1)
    begin(*given)


def start_worker(threads: int) -> None:
    """Take a share of the threads; leave Ctrl-C to the parent, and end with it even when it was killed."""
    set_threads(threads)  # numpy is not loaded before the first job arrives
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow(sentinel: int) -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()
