"""Locks around what takes others a moment only: who comes meanwhile waits for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from smile_runtime.errors import InputError

PATIENCE = 10.0  # seconds
_PAUSE = 0.05


@contextmanager
def patiently(lock: Callable[[], AbstractContextManager[bool]]) -> Iterator[bool]:
    """Hold a lock until the block ends; wait for it if others have it.

    Args:
        lock: makes a `locked` or a `shared`; called until one of them can be had.

    Yields:
        Whether there is a lock, see `locked`.

    Raises:
        InputError: others have it for longer than a moment.
    """
    until = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                there = held.enter_context(lock())
                break
            except InputError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_PAUSE)
        yield there
