"""How far a long job is: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")

_BAR_WIDTH = 24
_TERMINAL_INTERVAL = 0.1  # seconds: smooth to the eye, negligible to the work
_LOG_INTERVAL = 10.0  # seconds: a log of an hour stays readable


def progress(
    iterable: Iterable[Item],
    *,
    total: int,
    label: str,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Pass the items of ``iterable`` on and show how many have been worked off.

    An item counts as done when the next one is asked for.

    Args:
        iterable: The items.
        total: How many there will be.
        label: What is being done, e.g. ``"predict"``.
        stream: Where to show it; standard error if None. A terminal gets a bar with the time left, anything
            else plain lines: one every 10 s at most, and a last one.

    Yields:
        The items, unchanged.
    """
    bar = Progress(total, label, stream)
    try:
        for item in iterable:
            yield item
            bar.advance(bar.done + 1)
    finally:  # also after a break or an error, so that what is printed next begins its own line
        bar.close()


class Progress:
    """How far a job of ``total`` steps is, shown as `progress` does; a step may be done in part.

    Args:
        total: Number of steps.
        label: What is being done.
        stream: Where to show it; standard error if None.

    Attributes:
        done: Steps that are done, with a fraction of the one at work.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self._out = sys.stderr if stream is None else stream
        self._total, self._label = total, label
        self._terminal = self._out.isatty()
        self._interval = _TERMINAL_INTERVAL if self._terminal else _LOG_INTERVAL
        self._start = self._shown = time.monotonic()
        self.done: float = 0
        if self._terminal:
            _show(self._out, _bar(label, 0, total, 0.0))

    def advance(self, done: float) -> None:
        """Say how many steps are done now."""
        self.done = done
        now = time.monotonic()
        if now - self._shown >= self._interval and done < self._total:
            self._shown = now
            if self._terminal:
                _show(self._out, _bar(self._label, done, self._total, now - self._start))
            else:
                _print(self._out, _line(self._label, done, self._total, now - self._start))

    def message(self, text: str) -> None:
        """Print a line that stays, whatever is being shown."""
        if self._terminal:
            _show(self._out, "")
        _print(self._out, text)

    def close(self) -> None:
        """Show the end."""
        elapsed = time.monotonic() - self._start
        if self._terminal:
            _show(self._out, _bar(self._label, self.done, self._total, elapsed))
            _print(self._out, "")
        else:
            _print(self._out, _line(self._label, self.done, self._total, elapsed))


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, 03:05, or with hours in front, 1:03:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _line(label: str, done: float, total: int, elapsed: float) -> str:
    if done >= total:
        return f"{label}: {int(done)}/{total} in {clock(elapsed)}"
    return f"{label}: {int(done)}/{total}, {clock(elapsed)} passed, {_left(done, total, elapsed)} left"


def _bar(label: str, done: float, total: int, elapsed: float) -> str:
    filled = int(_BAR_WIDTH * min(done, total) / max(total, 1))
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    end = f"in {clock(elapsed)}" if done >= total else f"{_left(done, total, elapsed)} left"
    return f"{label} [{bar}] {int(done)}/{total} {end}"


def _left(done: float, total: int, elapsed: float) -> str:
    return clock(elapsed / done * (total - done)) if done else "--:--"


def _show(out: TextIO, text: str) -> None:
    out.write("\r\x1b[K" + text)  # back to the line's start and clear it: a shorter text leaves no tail
    out.flush()


def _print(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()
