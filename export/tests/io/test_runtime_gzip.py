"""Gzip by ISA-L and by zlib: the same voxels, the same refusals, and label maps that everybody reads."""

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from malformed_scans import SCANS
from nifti_files import content, random_hu

from smile_runtime.errors import InputError
from smile_runtime.io import gzip as runtime_gzip
from smile_runtime.io.gzip import MAGIC, inflate, pack_image, pack_labels
from smile_runtime.io.nifti import read_image

INFLATERS = [zlib, *filter(None, [runtime_gzip.isal_zlib])]
PACKERS = [None, *filter(None, [runtime_gzip.igzip])]


def outcome(build, folder, inflater, monkeypatch):
    """What becomes of a scan: its voxels, or the sentence."""
    monkeypatch.setattr(runtime_gzip, "inflater", inflater)
    path = build(folder).get("scan", folder / "missing")
    try:
        return read_image(path).data.tobytes()
    except InputError as error:
        return str(error)


@pytest.mark.skipif(len(INFLATERS) < 2, reason="isal is not installed")
@pytest.mark.parametrize("case", SCANS)
def test_both_refuse_the_same_in_the_same_words(tmp_path, monkeypatch, case):
    build, _ = SCANS[case]
    found = []
    for number, inflater in enumerate(INFLATERS):
        (tmp_path / str(number)).mkdir()
        text = outcome(build, tmp_path / str(number), inflater, monkeypatch)
        found.append(text.replace(str(tmp_path / str(number)), "") if isinstance(text, str) else text)
    assert found[0] == found[1]


class Slow(io.BytesIO):
    """A file that gives at most so many bytes a read."""

    def __init__(self, data, most):
        super().__init__(data)
        self._most = most

    def read(self, size):
        return super().read(min(size, self._most))


def result(data, inflater, monkeypatch, most=2**20):
    monkeypatch.setattr(runtime_gzip, "inflater", inflater)
    try:
        return b"".join(inflate(Slow(data, most), Path("scan.nii.gz")))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("inflater", INFLATERS)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda packed: packed + b"\0" * 1000, None),
        (lambda packed: packed + gzip.compress(b"") + b"\0", None),
        (lambda packed: packed + b"r", "damaged"),
        (lambda packed: packed + b"\0\0rubbish", "damaged"),
        (lambda packed: packed + MAGIC, "cut short"),
        (lambda packed: packed[:3] + b"\x20" + packed[4:], "damaged"),  # a flag that does not exist
        (lambda packed: packed[:-1], "cut short"),
        (lambda packed: packed[:-8] + b"\1\2\3\4" + packed[-4:], "damaged"),
        (lambda packed: packed[:2] + b"\7" + packed[3:], "damaged"),  # not deflate
        (lambda packed: b"no gzip", "damaged"),
        (lambda packed: b"", "cut short"),
    ],
)
def test_what_a_stream_is_refused_for(monkeypatch, inflater, change, why):
    body = np.random.default_rng(0).integers(0, 9, 700_000, np.uint8).tobytes()
    found = result(change(gzip.compress(body, 1)), inflater, monkeypatch)
    assert found == body if why is None else why in found


@pytest.mark.parametrize("inflater", INFLATERS)
@pytest.mark.parametrize(("flags", "why"), [(0, None), (0x20, "damaged")])
@pytest.mark.parametrize("most", [1, 2, 3, 5])  # so the second member's header is split in every way
def test_a_header_is_judged_however_it_is_read(monkeypatch, inflater, flags, why, most):
    first, second = gzip.compress(b"first"), gzip.compress(b"second")
    found = result(first + second[:3] + bytes([flags]) + second[4:], inflater, monkeypatch, most)
    assert found == b"firstsecond" if why is None else why in found


@pytest.mark.parametrize("inflater", INFLATERS)
def test_no_block_is_large(monkeypatch, inflater):
    monkeypatch.setattr(runtime_gzip, "inflater", inflater)
    blocks = [len(block) for block in inflate(io.BytesIO(gzip.compress(bytes(10**7), 9)), Path("a"))]
    assert sum(blocks) == 10**7
    assert max(blocks) <= 2**18


@pytest.mark.parametrize("packer", PACKERS)
def test_a_packed_label_map_is_read_by_all_and_has_no_time_inside(monkeypatch, packer):
    monkeypatch.setattr(runtime_gzip, "igzip", packer)
    body = content(random_hu((30, 20, 5)))
    found = []
    for moment in (1.0, 1e9):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        file = io.BytesIO()
        with pack_labels(file) as packed:
            for first in range(0, len(body), 1000):
                packed.write(memoryview(body)[first : first + 1000])
        found.append(file.getvalue())
    assert found[0] == found[1]
    assert gzip.decompress(found[0]) == body
    assert len(found[0]) < len(body)


def test_a_scan_is_packed_by_zlib_on_every_machine():
    body, file, by_zlib = content(random_hu((30, 20, 5))), io.BytesIO(), io.BytesIO()
    with pack_image(file) as packed:
        packed.write(body)
    with gzip.GzipFile("", "wb", 1, by_zlib, mtime=0) as packed:
        packed.write(body)
    assert file.getvalue() == by_zlib.getvalue()
