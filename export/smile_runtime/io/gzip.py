"""Inflate a gzip file piece by piece, with a bound on every piece."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smile_runtime.errors import InputError

MAX_RATIO = 1032  # deflate's own limit: a match of 258 bytes costs at least 2 bits
_READ_BYTES = 32 * 1024
_PIECE_BYTES = 2**20  # a bomb of 32 KiB would inflate to 33 MB at once


def inflate(
    file: BinaryIO,
    path: Path,
) -> Iterator[bytes]:
    """Yield the decompressed pieces of a gzip file; lengths and checksums of all members are verified.

    Args:
        file: The compressed file, at its start.
        path: Its name, for messages.

    Yields:
        Non-empty pieces of at most 1 MiB.

    Raises:
        InputError: The stream is not gzip, is cut short, or is damaged.
    """
    member = zlib.decompressobj(wbits=31)
    while compressed := file.read(_READ_BYTES):
        piece = b""
        while compressed or len(piece) == _PIECE_BYTES:  # a full piece: there may be more, even without more input
            if member.eof:
                compressed = compressed.lstrip(b"\0")  # padding after a member, as on tapes
                if not compressed:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                piece = member.decompress(compressed, _PIECE_BYTES)
            except zlib.error as error:
                raise InputError(f"{path} is damaged, its gzip stream cannot be read: copy it again") from error
            if piece:
                yield piece
            compressed = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise InputError(f"{path} is cut short, its gzip stream ends early: copy it again")
