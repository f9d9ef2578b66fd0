"""How a training is asked to stop, and how it says that it did."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM or Ctrl-C) and has saved where it was.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class Stop(threading.Event):
    """The wish to stop, and the number of the signal that brought it."""

    number = int(signal.SIGTERM)

    def receive(self, number: int, _: object = None) -> None:
        """Handle a signal; of several the first one counts."""
        if not self.is_set():
            self.number = number
        self.set()

    @property
    def received(self) -> int:
        """The signal that has come, 0 for none."""
        return self.number if self.is_set() else 0

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.is_set():
            raise Interrupted(self.number)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """An event that SIGTERM or Ctrl-C sets, so that the step in progress can end and be saved."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
