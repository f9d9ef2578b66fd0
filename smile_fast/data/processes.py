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
from typing import TypeVar

from smile_fast.pipeline import Here
from smile_runtime.errors import InputError
from smile_runtime.threads import default_threads, set_threads

J = TypeVar("J")
R = TypeVar("R")


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
        try:
            yield from map(function, jobs)
        except MemoryError:
            raise InputError(f"memory: there is too little; {advice}") from None
        return
    # spawn: a fork of a process with torch's threads may deadlock.
    context, share = multiprocessing.get_context("spawn"), max(1, default_threads() // workers)
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(share,))
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except (BrokenProcessPool, MemoryError):
        raise InputError(f"memory: a worker process was killed or had too little; {advice}") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def worker_processes(workers: int, *, advice: str) -> Iterator[Executor]:
    """Processes of one thread each, for work that leaves nothing behind and may be cut short at any time.

    They begin when the block does. Whatever ends it early, Ctrl-C and SIGTERM too, ends them at once.

    Args:
        workers: how many; 1 is this process.
        advice: what to do when the memory does not suffice, the end of a sentence.

    Raises:
        InputError: out of memory, or a worker was killed.
        SystemExit: SIGTERM, with the status that a shell shows of it.
    """
    shortage = f"memory: a worker process was killed or had too little; {advice}"
    if workers <= 1:
        try:
            yield Here()
        except MemoryError:
            raise InputError(f"memory: there is too little; {advice}") from None
        return
    others = set(multiprocessing.active_children())
    # spawn: a fork of a process with CUDA, or with torch's threads, may deadlock.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(1,))
    try:
        with _sigterm_raises():
            _start(pool, workers)
            yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool | MemoryError):
            raise InputError(shortage) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(pool: Executor, workers: int) -> None:
    """Start all processes now, while other things are loaded, deaf to Ctrl-C from their first instruction on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the process through its blocks, unless somebody else handles it."""
    main = threading.current_thread() is threading.main_thread()  # Python delivers signals to no other
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start_worker(threads: int) -> None:
    """Take a share of the threads; leave Ctrl-C to the parent, and end with it even when it was killed."""
    set_threads(threads)  # numpy is not loaded before the first job arrives
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow(sentinel: int) -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()
