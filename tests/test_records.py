"""Sealed JSON: every changed byte is noticed or harmless, and every value has the declared type."""

import json
from dataclasses import dataclass

import pytest

from smile_fast.records import read_record, write_record, write_sealed
from smile_runtime.errors import InputError


@dataclass
class Kind:
    schema: int
    name: str
    shape: tuple[int, int, int]
    shares: dict[str, float]
    nothing: str | None = None

    def __post_init__(self):
        if self.name == "..":
            raise ValueError("a name that leads elsewhere")


GOOD = {"schema": 2, "name": "Größe", "shape": [1, 2, 3], "shares": {"liver": 0.5}}


def read(path):
    return read_record(path, Kind, 2, "make it again")


@pytest.fixture
def path(tmp_path):
    write_record(tmp_path / "record.json", GOOD)
    return tmp_path / "record.json"


def test_what_was_written_is_read(path):
    assert read(path) == Kind(2, "Größe", (1, 2, 3), {"liver": 0.5})
    plain = json.loads(path.read_text(encoding="utf-8"))  # it is JSON for everybody else
    assert len(plain.pop("sha256")) == 64
    assert plain == GOOD


def test_a_text_of_ones_own(tmp_path):
    write_sealed(tmp_path / "lines.json", '{"schema": 2, "name": "a",\n"shape": [1, 1, 1], "shares": {\n}}')
    assert read(tmp_path / "lines.json").shape == (1, 1, 1)


def read_if_it_can_be(path):
    try:
        return read(path)
    except InputError:
        return None


def test_every_flipped_bit_is_noticed_or_harmless(path):
    raw, good = path.read_bytes(), read(path)
    for position in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert read_if_it_can_be(path) in (None, good)


def test_a_cut_file_is_noticed(path):
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError):
            read(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [1, 2]}, "$.shape"),
        ({"shape": [1, 2, 3.5]}, "$.shape[2]"),
        ({"shape": None}, "$.shape"),
        ({"name": 3}, "$.name"),
        ({"name": ".."}, "a name that leads elsewhere"),
        ({"shares": {"liver": "x"}}, "$.shares"),
        ({"shares": [1]}, "$.shares"),
        ({"nothing": []}, "$.nothing"),
        ({"schema": 3}, "is of schema 3, this version reads 2"),
        ({"schema": "2"}, "$.schema"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(path, change, words):
    write_record(path, GOOD | change)
    if "schema 3" in words:
        path.write_text('{"schema": 3}')  # unsealed, as an older version wrote it
    with pytest.raises(InputError) as caught:
        read(path)
    assert words in str(caught.value)
    assert str(caught.value).endswith("; make it again")


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema": NaN}', b'{"schema": 1e999}']
)
def test_what_is_no_record_is_refused(tmp_path, raw):
    (tmp_path / "record.json").write_bytes(raw)
    with pytest.raises(InputError, match="make it again"):
        read(tmp_path / "record.json")


def test_no_file_and_no_permission(tmp_path):
    with pytest.raises(InputError, match="there is no such file; make it again"):
        read(tmp_path / "record.json")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)
