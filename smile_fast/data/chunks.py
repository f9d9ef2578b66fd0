"""Packing one slice as a chunk of blosc2 that decodes fast: what hardly compresses is stored as it is.

The low bytes of Hounsfield units are mostly noise. LZ4 saves a tenth of them, in short matches that take longer to
find and to decode than all the rest of a slice. A blosc2 chunk of one block, its voxels split into streams of their
low and high bytes, is

    header, 32 bytes | start of the block, i32 | length, i32, and stream of the low bytes | the same of the high bytes

and a stream that is as long as what it decodes to is copied. So low bytes can be stored in a chunk that any blosc2
reads. The high bytes are packed by LZ4-HC, which finds fewer and longer matches.
"""

import struct
from functools import lru_cache
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 32
_CHUNK_BYTES_AT = 12  # in the header
_INT = struct.Struct("<i")
_FLAGS_AT = 2
_COPIED, _NOT_SPLIT = 0x02, 0x10
_SPECIAL_AT = 31  # is not 0 in a chunk of one value
_GROWTH = 1.1  # of a chunk, at most, for the faster decoding
_SAMPLE = 8  # a row of so many says whether low bytes compress


def pack_slice(plane: NDArray[Any]) -> bytes:
    """Compress a slice [H, W], int16 or uint8, to a chunk; the same voxels give the same bytes."""
    if plane.dtype == np.int16 and (header := _header_of_split(plane.nbytes)) is not None:
        chunk = _with_low_bytes(header, np.ascontiguousarray(plane))
        if chunk is not None and _decodes_to(chunk, plane):
            return chunk
    return _pack(plane, blosc2.Codec.LZ4, blosc2.Filter.SHUFFLE)


def _with_low_bytes(header: bytes, plane: NDArray[np.int16]) -> bytes | None:
    """A chunk that holds the low bytes as they are; None where they are worth compressing."""
    low, high = (np.ascontiguousarray(part) for part in plane.astype("<i2", copy=False).view(np.uint8).reshape(-1, 2).T)
    rows = low.reshape(plane.shape)
    sample = np.ascontiguousarray(rows[_SAMPLE // 2 % len(rows) :: _SAMPLE])
    packed_low = low.size * len(_pack(sample, blosc2.Codec.LZ4)) / sample.size  # about
    stream = _only_stream(_pack(high, blosc2.Codec.LZ4HC, level=1))  # 5 decodes faster, but takes five times as long
    if not stream or low.size + len(stream) > _GROWTH * (packed_low + len(stream)):
        return None
    start, lengths = _INT.pack(_HEADER_BYTES + _INT.size), (_INT.pack(low.size), _INT.pack(len(stream)))
    chunk = bytearray(b"".join([header, start, lengths[0], low.tobytes(), lengths[1], stream]))
    _INT.pack_into(chunk, _CHUNK_BYTES_AT, len(chunk))
    return bytes(chunk)


def _pack(
    voxels: NDArray[Any], codec: blosc2.Codec, filtered: blosc2.Filter = blosc2.Filter.NOFILTER, *, level: int = 5
) -> bytes:
    """Compress an array to a chunk of one block."""
    chunk: bytes = blosc2.compress2(
        np.ascontiguousarray(voxels),
        codec=codec,
        clevel=level,
        filters=[filtered],
        typesize=voxels.itemsize,
        blocksize=voxels.nbytes,
        splitmode=blosc2.SplitMode.ALWAYS_SPLIT if voxels.itemsize > 1 else blosc2.SplitMode.NEVER_SPLIT,
        nthreads=1,
    )
    return chunk


def _only_stream(chunk: bytes) -> bytes:
    """The stream of a chunk of bytes; nothing where it has none."""
    if len(chunk) <= _HEADER_BYTES or chunk[_FLAGS_AT] & _COPIED or chunk[_SPECIAL_AT]:
        return b""
    (start,) = _INT.unpack_from(chunk, _HEADER_BYTES)
    (length,) = _INT.unpack_from(chunk, start)
    return chunk[start + _INT.size : start + _INT.size + max(0, length)]


@lru_cache(64)
def _header_of_split(size: int) -> bytes | None:
    """The header of a chunk of so many bytes that holds two streams; None if blosc2 makes none of that size."""
    ramp = np.arange(size // 2, dtype=np.int16) >> 4  # compresses, and is not one value
    chunk = _pack(ramp, blosc2.Codec.LZ4, blosc2.Filter.SHUFFLE)
    one_block = len(chunk) > _HEADER_BYTES and _INT.unpack_from(chunk, 8) == (size,)
    return chunk[:_HEADER_BYTES] if one_block and not chunk[_FLAGS_AT] & (_COPIED | _NOT_SPLIT) else None


def _decodes_to(chunk: bytes, plane: NDArray[Any]) -> bool:
    decoded = np.empty(plane.shape, plane.dtype)
    try:
        blosc2.decompress2(chunk, dst=decoded, nthreads=1)
    except (ValueError, RuntimeError):  # another version of blosc2 may have other chunks
        return False
    return np.array_equal(decoded, plane)
