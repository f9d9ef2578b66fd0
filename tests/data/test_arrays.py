"""Array files: what is written is read, by this package and by blosc2, and nothing else is."""

import os
import re
import tracemalloc

import blosc2
import numpy as np
import pytest

from smile_fast.data import arrays as module
from smile_fast.data import chunks
from smile_fast.data.arrays import array_name, pack_array, read_slices, unpack_array, verify_array, write_array
from smile_runtime.errors import InputError

SHAPE = (6, 96, 80)


def ct():
    """Noise as of CT, a slice of zeros, one of air, and one of a few large values."""
    image = np.random.default_rng(0).normal(40, 30, SHAPE).astype(np.int16)
    image[1], image[2], image[3] = 0, -1000, np.arange(SHAPE[2]) * 37
    return image


def labels():
    found = np.zeros(SHAPE, np.uint8)
    found[2:4, 10:30, 20:70] = 3
    return found


ARRAYS = [ct(), labels(), np.zeros(SHAPE, np.int16), ct()[:1, :1, :1], ct()[:, :31, :17]]


def written(folder, array, name="image"):
    digest = write_array(folder, name, array)
    return folder / array_name(name, digest), digest


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}{array.any()}")
def test_an_array_is_read_back(tmp_path, array):
    path, digest = written(tmp_path, array)
    verify_array(path, digest, layout=(array.dtype, array.shape))
    for read in (read_slices(path, digest), blosc2.open(str(path), mode="r")[:], unpack_array(pack_array(array))):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)
    assert blosc2.open(str(path), mode="r").chunks == (1, *array.shape[1:])


@pytest.mark.parametrize("slices", [slice(None), slice(1, 5, 2), slice(-2, None), [5, 0, 0, -1], np.array([2]), []])
def test_slices_are_read_in_the_order_asked_for(tmp_path, slices):
    path, digest = written(tmp_path, ct())
    expected = ct()[slices] if len(ct()[slices]) else np.empty((0, *SHAPE[1:]), np.int16)
    np.testing.assert_array_equal(read_slices(path, digest, slices), expected)


@pytest.mark.parametrize("z", [6, -7])
def test_a_slice_that_is_not_there_is_an_index_error(tmp_path, z):
    path, digest = written(tmp_path, ct())
    with pytest.raises(IndexError, match=f"slice {z} of an array of 6"):
        read_slices(path, digest, [z])


def test_the_same_array_has_the_same_file_whatever_its_memory_order(tmp_path):
    first, digest = written(tmp_path, ct())
    content = first.read_bytes()
    assert written(tmp_path, np.asfortranarray(ct())) == (first, digest)
    assert first.read_bytes() == content
    other, _ = written(tmp_path, ct() + np.int16(1))
    assert other != first
    assert sorted(tmp_path.iterdir()) == sorted([first, other])


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.uint8), np.zeros((2, 0, 3), np.uint8), np.zeros((2, 3, 4), np.float32)]
)
def test_other_arrays_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match="array must be int16 or uint8"):
        write_array(tmp_path, "image", array)
    assert list(tmp_path.iterdir()) == []


def test_noise_is_stored_as_it_is_and_the_file_hardly_grows(tmp_path):
    """The low bytes of the first slice lie in the file; of a slice that compresses well they do not."""
    path, _ = written(tmp_path, ct())
    low = [plane.astype("<i2").view(np.uint8)[:, ::2].tobytes() for plane in ct()]
    assert [plane in path.read_bytes() for plane in low] == [True, False, False, False, True, True]
    plain = blosc2.asarray(ct(), chunks=(1, *SHAPE[1:]), cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, nthreads=1))
    assert len(pack_array(ct())) <= 1.1 * plain.schunk.cbytes + 1000


def test_a_slice_that_blosc2_does_not_read_back_is_packed_by_blosc2_alone(monkeypatch):
    plane = ct()[0]
    fast = chunks.pack_slice(plane)
    with monkeypatch.context() as patch:  # as another version might have it
        patch.setattr(blosc2, "decompress2", lambda chunk, dst, nthreads: dst.fill(0))
        plain = chunks.pack_slice(plane)
    assert plain != fast
    read = np.empty_like(plane)
    blosc2.decompress2(plain, dst=read, nthreads=1)
    np.testing.assert_array_equal(read, plane)


@pytest.mark.parametrize("kind", ["missing", "empty", "short", "text", "folder", "pipe", "plain frame", "grown"])
def test_what_is_no_array_file_is_one_sentence(tmp_path, kind):
    path, digest = written(tmp_path, ct())
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        plain = {"empty": b"", "short": content[-20:], "text": b"hello" * 50, "plain frame": pack_array(ct())}
        path.write_bytes(plain.get(kind, content + b"\0"))
    for read in (read_slices, verify_array):
        with pytest.raises(InputError, match=re.escape(f"{path}: ") + ".*; run 'smile-fast prepare --rehash' again$"):
            read(path, digest)


def test_another_array_under_its_name_is_found_by_any_slice(tmp_path):
    path, digest = written(tmp_path, ct())
    other, _ = written(tmp_path, ct() + np.int16(1))
    os.replace(other, path)
    with pytest.raises(InputError, match="damaged or replaced, it is not the array that belongs here"):
        read_slices(path, digest, [1])


@pytest.mark.parametrize("keep", [0, 100, 3000, 12_000])
def test_a_file_that_is_changed_while_it_is_read_is_found(tmp_path, keep):
    """Its table is known by then. A mapped file that is cut would end the process."""
    path, digest = written(tmp_path, ct())
    read_slices(path, digest, [0])
    os.truncate(path, keep)
    with pytest.raises(InputError, match="slice 4 has not the checksum"):
        read_slices(path, digest, [1, 4])


def test_a_slice_takes_the_memory_of_a_slice(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1000, (100, 256, 256)).astype(np.int16)
    path, digest = written(tmp_path, array)
    tracemalloc.start()
    try:
        read = read_slices(path, digest, [70])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, array[70:71])
    assert peak < 3 * array[0].nbytes


def test_the_tables_that_are_kept_are_few(tmp_path):
    assert module.table_of.cache_info().maxsize <= 2**13
