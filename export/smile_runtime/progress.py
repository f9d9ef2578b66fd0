"""How far a long job is: a bar on a terminal, a line now and then in a log."""

import shutil
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
        start: Steps that were done before; the time left follows from what is done since.
        unit: Of the steps, behind their number.

    Attributes:
        done: Steps that are done, with a fraction of the one at work.
        note: Shown behind the time left, first where a terminal is narrow to be cut off.
    """

    def __init__(
        self, total: float, label: str, stream: TextIO | None = None, *, start: float = 0, unit: str = ""
    ) -> None:
        self._out = sys.stderr if stream is None else stream
        self._total, self._label, self._first, self._unit = total, label, start, unit
        self._terminal = self._out.isatty()
        self._interval = _TERMINAL_INTERVAL if self._terminal else _LOG_INTERVAL
        self._start = self._shown = time.monotonic()
        self.done, self.note = start, ""
        if self._terminal:
            _show(self._out, self._bar())

    def advance(self, done: float, note: str = "") -> None:
        """Say how many steps are done now; the first note is shown at once."""
        news = bool(note) and not self.note
        self.done, self.note = done, note
        if done < self._total and (news or time.monotonic() - self._shown >= self._interval):
            self._draw()

    def _draw(self) -> None:
        self._shown = time.monotonic()
        if self._terminal:
            _show(self._out, self._bar())
        else:
            _print(self._out, self._line())

    def message(self, text: str) -> None:
        """Print a line that stays, whatever is being shown."""
        if self._terminal:
            _show(self._out, "")
        _print(self._out, text)

    def close(self) -> None:
        """Show the end."""
        self._draw()
        if self._terminal:
            _print(self._out, "")

    def _line(self) -> str:
        passed = clock(time.monotonic() - self._start)
        middle = f" in {passed}" if self.done >= self._total else f", {passed} passed, {self._left()} left"
        return f"{self._label}: {self._count()}{middle}{self._noted()}"

    def _bar(self) -> str:
        filled = int(_BAR_WIDTH * min(self.done, self._total) / max(self._total, 1))
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        ended = self.done >= self._total
        end = f"in {clock(time.monotonic() - self._start)}" if ended else f"{self._left()} left"
        return f"{self._label} [{bar}] {self._count()} {end}{self._noted()}"

    def _count(self) -> str:
        return f"{int(self.done)}/{int(self._total)}{self._unit}"

    def _left(self) -> str:
        since = self.done - self._first
        elapsed = time.monotonic() - self._start
        return clock(elapsed / since * (self._total - self.done)) if since > 0 else "--:--"

    def _noted(self) -> str:
        return f", {self.note}" if self.note else ""


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, 03:05, or with hours in front, 1:03:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _show(out: TextIO, text: str) -> None:
    text = text[: shutil.get_terminal_size().columns - 1]  # of a text that wraps, only the last line could be cleared
    out.write("\r\x1b[K" + text)  # back to the line's start and clear it: a shorter text leaves no tail
    out.flush()


def _print(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()
