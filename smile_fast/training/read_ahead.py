"""Batches made ahead of the step that needs them, by a thread or by processes, in the order of the steps."""

import ctypes
import math
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smile_fast.data.processes import worker_processes
from smile_fast.training.batches import Batch, BatchSource
from smile_runtime.errors import InputError, first_line
from smile_runtime.io.files import reason

_AHEAD = 3  # batches, at least
_AHEAD_OF_A_WORKER = 2
_HELD = 2  # the batch that was handed out last, and the one before, which may be on its way to the device
_ALIGNMENT = 64  # bytes

Submit = Callable[[int, int], Callable[[], Batch]]
"""Has the batch of a step made, in a slot where memory is reused; what it returns waits for that batch."""


def read_ahead(
    source: BatchSource,
    first: int,
    workers: int = 0,
    *,
    device: torch.device | None = None,
    or_a_thread: bool = False,
) -> Generator[Batch]:
    """Batches from step `first` on, without end: the same ones whoever makes them.

    Args:
        source: makes any batch, on its own.
        first: the first step.
        workers: processes; 0 for a thread of this one. They are forked from a server that has imported torch, write
            into memory that they share with this process, and end with it, however it ends.
        device: where the batches go; for CUDA they lie in pinned memory.
        or_a_thread: where processes cannot be had, or memory cannot be shared with them, say so and take a thread.

    Yields:
        Batches; each is valid until the second one after it is asked for.

    Raises:
        InputError: what the source raises; or a worker was killed, or the memory does not suffice.
    """
    ahead = max(_AHEAD, _AHEAD_OF_A_WORKER * workers)
    pinned = device is not None and device.type == "cuda"
    slots = ahead + _HELD
    with _makers(source, slots, pinned, workers, or_a_thread) as submit:
        free, step = deque(range(slots)), first
        pending: deque[tuple[int, Callable[[], Batch]]] = deque()
        held: deque[int] = deque()
        while True:
            while len(pending) < ahead:
                slot = free.popleft()
                pending.append((slot, submit(step, slot)))
                step += 1
            slot, batch = pending.popleft()
            held.append(slot)
            yield batch()
            if len(held) == _HELD:
                free.append(held.popleft())


@contextmanager
def _makers(source: BatchSource, slots: int, pinned: bool, workers: int, or_a_thread: bool) -> Iterator[Submit]:
    with ExitStack() as stack:
        if workers:
            try:
                submit = stack.enter_context(_by_processes(source, slots, pinned, workers))
            except InputError as error:
                if not or_a_thread:
                    raise
                print(f"warning: {error}: a thread makes the batches now", file=sys.stderr)
                workers = 0
        if not workers:
            submit = stack.enter_context(_by_a_thread(source, slots, pinned))
        yield submit


@contextmanager
def _by_a_thread(source: BatchSource, slots: int, pinned: bool) -> Iterator[Submit]:
    batches = None
    if pinned:
        memory = torch.empty(slots * slot_bytes(source), dtype=torch.uint8, pin_memory=True)
        batches = batches_in(memory.numpy(), slots, source)

    def make(step: int, slot: int) -> Batch:
        batch = source.batch(step)
        return batch if batches is None else _copy(batch, batches[slot])

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        yield lambda step, slot: pool.submit(make, step, slot).result


@contextmanager
def _by_processes(source: BatchSource, slots: int, pinned: bool, workers: int) -> Iterator[Submit]:
    try:
        shared = multiprocessing.RawArray(ctypes.c_uint8, slots * slot_bytes(source))  # in /dev/shm, or else in a file
    except OSError as error:
        raise InputError(f"--workers: memory cannot be shared with processes here ({reason(error)}); give 0") from None
    memory = np.frombuffer(memoryview(shared), np.uint8)
    batches = batches_in(memory, slots, source)
    advice, given = "give fewer --workers, or 0", (source, shared, slots)
    with (
        _pinned(memory) if pinned else nullcontext(),
        worker_processes(workers, advice=advice, preload=__name__, begin=_start, given=given) as pool,
    ):

        def submit(step: int, slot: int) -> Callable[[], Batch]:
            future = pool.submit(_make, step, slot)

            def wait() -> Batch:
                future.result()
                return batches[slot]

            return wait

        yield submit


@contextmanager
def _pinned(memory: NDArray[np.uint8]) -> Iterator[None]:
    """Pin memory for CUDA where it is, so that copies from it need no wait and no copy before them."""
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    try:
        torch.cuda.check_error(cudart.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    except RuntimeError as error:
        raise InputError(
            f"--workers: shared memory cannot be pinned for CUDA here ({first_line(error)}); give 0"
        ) from None
    try:
        yield
    finally:
        torch.cuda.synchronize()  # a copy from it may be on its way
        cudart.cudaHostUnregister(memory.ctypes.data)


_OF_THIS_WORKER: dict[str, Any] = {}


def _start(source: BatchSource, shared: Any, slots: int) -> None:
    torch.set_num_threads(1)  # the server has imported torch, which no longer looks at the environment
    batches = batches_in(np.frombuffer(memoryview(shared), np.uint8), slots, source)
    _OF_THIS_WORKER.update(source=source, batches=batches)


def _make(step: int, slot: int) -> None:
    _copy(_OF_THIS_WORKER["source"].batch(step), _OF_THIS_WORKER["batches"][slot])


def _copy(batch: Batch, slot: Batch) -> Batch:
    for name, array in vars(batch).items():
        np.copyto(getattr(slot, name), array)
    return slot


def _layout(source: BatchSource) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    images, patch = len(source.images), source.patch
    return {
        "hu": (np.dtype(np.int16), (images, source.channels, *patch)),
        "labels": (np.dtype(np.uint8), (images, *patch)),
        "cases": (np.dtype(np.int64), (images,)),
    }


def _aligned_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return -(-dtype.itemsize * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT


def slot_bytes(source: BatchSource) -> int:
    """How much memory a batch takes, each of its arrays aligned."""
    return sum(_aligned_bytes(*array) for array in _layout(source).values())


def batches_in(memory: NDArray[np.uint8], slots: int, source: BatchSource) -> list[Batch]:
    """As many batches as there are slots, one behind the other in memory."""
    batches, first = [], 0
    for _ in range(slots):
        arrays = {}
        for name, (dtype, shape) in _layout(source).items():
            size = dtype.itemsize * math.prod(shape)
            arrays[name] = memory[first : first + size].view(dtype).reshape(shape)
            first += _aligned_bytes(dtype, shape)
        batches.append(Batch(**arrays))
    return batches
