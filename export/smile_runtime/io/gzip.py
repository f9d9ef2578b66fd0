"""Inflate a gzip file block by block; no block is larger than 1 MiB, whatever the file claims."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smile_runtime.errors import InputError

MAGIC = b"\x1f\x8b"  # what every gzip file begins with
MAX_RATIO = 1032  # deflate's own limit: a match of 258 bytes costs at least 2 bits
_READ_BYTES = 32 * 1024
_BLOCK_BYTES = 2**20  # a bomb of 32 KiB would inflate to 33 MB at once


def inflate(
    file: BinaryIO,
    path: Path,
) -> Iterator[bytes]:
    """Yield the decompressed blocks of a gzip file; lengths and checksums of all members are verified.

    Args:
        file: The compressed file, at its start.
        path: Its name, for messages.

    Yields:
        Non-empty blocks of at most 1 MiB.

    Raises:
        InputError: The stream is not gzip, is cut short, or is damaged.
    """
    member = zlib.decompressobj(wbits=31)
    while compressed := file.read(_READ_BYTES):
        block = b""
        while compressed or len(block) == _BLOCK_BYTES:  # a full block: there may be more, even without more input
            if member.eof:
                compressed = compressed.lstrip(b"\0")  # padding after a member, as on tapes
                if not compressed:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                block = member.decompress(compressed, _BLOCK_BYTES)
            except zlib.error as error:
                raise InputError(f"{path}: damaged, its gzip stream cannot be read; copy it again") from error
            if block:
                yield block
            compressed = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise InputError(f"{path}: cut short, its gzip stream ends early; copy it again")
