"""How a source file looked when it was hashed: one that looks the same need not be read again."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_RACY_NS = 2_000_000_000
"""The coarsest step of a file system's clock (FAT): what is changed within it may keep its time."""


@dataclass(frozen=True)
class Fingerprint:
    """What the file system says of a file, and when it was asked.

    Attributes:
        size: bytes.
        modified_ns: time of the last change of its content.
        changed_ns: time of the last change of its entry, which no program can set back.
        inode: number of the file.
        looked_ns: this machine's time, before the file was read.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    looked_ns: int

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """Look at a file.

        Raises:
            OSError: it cannot be looked at.
        """
        looked = time.time_ns()
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, looked)

    def looks_like(self, other: "Fingerprint") -> bool:
        """Whether the file system says the same at both times."""
        return (self.size, self.modified_ns, self.changed_ns, self.inode) == (
            other.size,
            other.modified_ns,
            other.changed_ns,
            other.inode,
        )

    def vouches_for(self, now: "Fingerprint") -> bool:
        """Whether the file is the one that was hashed after this look, by how it looks now.

        A file that had changed just before the look may have changed once more right after it, at the same time by the
        clock of its file system: it has to be hashed again (git calls it racy).
        """
        return self.looks_like(now) and max(self.modified_ns, self.changed_ns) + _RACY_NS <= self.looked_ns
