"""Ends or disturbs this process at the N-th change that it makes to files below a folder.

A change is: a file opened for writing, a write, an fsync, a rename, a link, a removed or truncated file, a folder made
or removed. Before each of them the state of the disk is one that a kill can leave; after the last one it is the result.
"""

import builtins
import errno
import io
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

KILL, TORN, ENOSPC, EIO, SHORT = "kill", "torn", "ENOSPC", "EIO", "short"
KILLS = (KILL, TORN)
"""SIGKILL before the change, or after the first half of it where it is a write."""
ERRORS = (ENOSPC, EIO, SHORT)
"""The change fails; `short`: half of it is written, and for all that follows there is no space."""

WRITE, FSYNC = "write", "fsync"
_CHANGES = {
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
}
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_VARIABLE = "SMILE_FAST_FAULT"  # kind:number:folder


@dataclass
class Fault:
    """What happens, and when.

    Attributes:
        kind: of `KILLS` or `ERRORS`. number: of the change, from 1; 0 for none. folder: where changes count.
        seen: names of the changes so far.
    """

    kind: str
    number: int
    folder: str

    def __post_init__(self) -> None:
        self.seen: list[str] = []
        self.full = False

    def at(self, name: str) -> bool:
        """Count a change before it is made; whether half of it is to be written."""
        self.seen.append(name)
        now = len(self.seen) == self.number
        if self.full or (now and self.kind in (ENOSPC, EIO)):
            code = errno.EIO if self.kind == EIO else errno.ENOSPC
            if name not in ("os.remove", "os.rmdir", "shutil.rmtree"):  # they need no space
                raise OSError(code, os.strerror(code))
        if now and (self.kind == KILL or (self.kind == TORN and name != WRITE)):
            self.die()
        if now and self.kind == SHORT:
            self.full = True
        return now and name == WRITE

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def within(self, path: Any) -> bool:
        """Whether a file lies below the folder."""
        return not isinstance(path, int) and os.path.realpath(os.fsdecode(path)).startswith(self.folder)

    def install(self) -> None:
        """Watch this process from now on; there is no way back."""
        fault, real_open, real_write = self, io.open, os.write

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                path, _, flags = arguments
                if flags & _FOR_WRITING and path is not None and fault.within(path):
                    fault.at("open")
            elif event in _CHANGES and fault.within(arguments[0]):
                fault.at(event)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not fault.within(file):
                return real_open(file, mode, buffering, *more, **options)
            raw = _Counted(file, mode.replace("b", "").replace("t", ""), fault)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *more, **options)

        def fsync(descriptor: int) -> None:
            fault.at(FSYNC)  # and nothing else: what a killed process has written stays without it

        def write(descriptor: int, data: Any) -> int:
            if fault.within(os.readlink(f"/proc/self/fd/{descriptor}")) and fault.at(WRITE):
                return fault.half(lambda part: real_write(descriptor, part), data)
            return real_write(descriptor, data)

        sys.addaudithook(audit)
        builtins.open = io.open = opened  # type: ignore[assignment]
        os.fsync, os.write = fsync, write

    def half(self, write: Any, data: Any) -> int:
        """Write the first half; a torn write is the last thing that this process does."""
        view = memoryview(data).cast("B")
        written = write(view[: max(1, len(view) // 2)])
        if self.kind == TORN:
            self.die()
        return int(written)


class _Counted(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, file: Any, mode: str, fault: Fault) -> None:
        super().__init__(file, mode)
        self.fault = fault

    def write(self, data: Any) -> int:  # type: ignore[override]
        if self.fault.at(WRITE):
            return self.fault.half(super().write, data)
        return super().write(data)


def in_workers(fault: Fault) -> dict[str, str]:
    """Environment of a process whose workers are disturbed, too; see `sitecustomize.py`."""
    hook = os.path.join(os.path.dirname(__file__), "hook")
    paths = os.pathsep.join([hook, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {_VARIABLE: f"{fault.kind}:{fault.number}:{fault.folder}", "PYTHONPATH": paths}


def install_from_environment() -> None:
    """Disturb this process if its environment says so."""
    if _VARIABLE in os.environ:
        kind, number, folder = os.environ[_VARIABLE].split(":", 2)
        Fault(kind, int(number), folder).install()
