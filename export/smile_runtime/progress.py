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
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    interval = _TERMINAL_INTERVAL if terminal else _LOG_INTERVAL
    start = shown = time.monotonic()
    done = 0
    if terminal:
        _show(out, _bar(label, 0, total, 0.0))
    try:
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - shown >= interval and done < total:
                shown = now
                text = _bar(label, done, total, now - start) if terminal else None
                _show(out, text) if text else _print(out, _line(label, done, total, now - start))
    finally:  # also after a break or an error, so that what is printed next begins its own line
        elapsed = time.monotonic() - start
        if terminal:
            _show(out, _bar(label, done, total, elapsed))
            _print(out, "")
        else:
            _print(out, _line(label, done, total, elapsed))


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, 03:05, or with hours in front, 1:03:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _line(label: str, done: int, total: int, elapsed: float) -> str:
    if done >= total:
        return f"{label}: {done}/{total} in {clock(elapsed)}"
    return f"{label}: {done}/{total}, {clock(elapsed)} passed, {_left(done, total, elapsed)} left"


def _bar(label: str, done: int, total: int, elapsed: float) -> str:
    filled = _BAR_WIDTH * min(done, total) // max(total, 1)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    end = f"in {clock(elapsed)}" if done >= total else f"{_left(done, total, elapsed)} left"
    return f"{label} [{bar}] {done}/{total} {end}"


def _left(done: int, total: int, elapsed: float) -> str:
    return clock(elapsed / done * (total - done)) if done else "--:--"


def _show(out: TextIO, text: str) -> None:
    out.write("\r\x1b[K" + text)  # back to the line's start and clear it: a shorter text leaves no tail
    out.flush()


def _print(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()
