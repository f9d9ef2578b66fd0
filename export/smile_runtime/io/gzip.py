"""Gzip files, read and written block by block, by ISA-L where it is installed and by zlib where it is not.

ISA-L (the package ``isal``) inflates twice as fast and packs label maps fifteen times as fast. Both release the GIL.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Protocol

from smile_runtime.errors import InputError

try:
    from isal import igzip as _igzip
    from isal import isal_zlib as _isal_zlib
except ImportError:  # no wheel for this platform: everything works, and takes longer
    igzip: Any = None
    isal_zlib: Any = None
else:
    igzip, isal_zlib = _igzip, _isal_zlib

MAGIC = b"\x1f\x8b"  # what every gzip file begins with
MAX_RATIO = 1032  # deflate's own limit: a match of 258 bytes costs at least 2 bits
_READ_BYTES = 32 * 1024
_FLAGS_END = 4  # bytes of a member's header up to its flags: all that `_may_be_header` looks at
_BLOCK_BYTES = 2**18  # a bomb of 32 KiB would inflate to 33 MB at once; and what is copied on lies in the cache

inflater: Any = isal_zlib or zlib
_ERRORS: Final = (zlib.error,) if isal_zlib is None else (zlib.error, isal_zlib.error)
_IMAGE_LEVEL = 1
_LABELS_LEVEL = 1  # a label map of 512x512x60: ISA-L 3 ms and 107 kB, zlib 55 ms and 166 kB


class Readable(Protocol):
    """What is read from its start to its end, once."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end."""


def inflate(
    file: Readable,
    path: Path,
) -> Iterator[bytes]:
    """Yield the decompressed blocks of a gzip file; lengths and checksums of all members are verified.

    Args:
        file: The compressed file, at its start.
        path: Its name, for messages.

    Yields:
        Non-empty blocks of at most 256 KiB.

    Raises:
        InputError: The stream is not gzip, is cut short, or is damaged.
    """
    member, begun = inflater.decompressobj(wbits=31), False
    while compressed := file.read(_READ_BYTES):
        block = b""
        while compressed or len(block) == _BLOCK_BYTES:  # a full block: there may be more, even without more input
            if member.eof:
                compressed = compressed.lstrip(b"\0")  # padding after a member, as on tapes
                if not compressed:
                    break
                member, begun = inflater.decompressobj(wbits=31), False
            while not begun and len(compressed) < _FLAGS_END and (more := file.read(_READ_BYTES)):
                compressed += more
            try:
                if not (begun or _may_be_header(compressed)):
                    raise zlib.error("no header")
                begun, block = True, member.decompress(compressed, _BLOCK_BYTES)
            except _ERRORS as error:
                raise InputError(f"{path}: damaged, its gzip stream cannot be read; copy it again") from error
            if block:
                yield block
            compressed = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise InputError(f"{path}: cut short, its gzip stream ends early; copy it again")


def _may_be_header(start: bytes) -> bool:
    """Whether zlib would go on from here; ISA-L waits for a whole header and takes flags that do not exist."""
    return MAGIC.startswith(start[: len(MAGIC)]) and start[3:_FLAGS_END] <= b"\x1f"


def pack_labels(file: IO[bytes]) -> gzip.GzipFile:
    """A gzip stream for a label map: without a name and a time inside, so same input, same bytes.

    The bytes are those of ISA-L on this kind of processor, or those of zlib; every program reads both.
    """
    packer: type[gzip.GzipFile] = gzip.GzipFile if igzip is None else igzip.IGzipFile
    return packer("", "wb", _LABELS_LEVEL, file, mtime=0)


def pack_image(file: IO[bytes]) -> gzip.GzipFile:
    """A gzip stream for a scan: zlib's bytes on every machine, for a scan is known by its SHA-256."""
    return gzip.GzipFile("", "wb", _IMAGE_LEVEL, file, mtime=0)
