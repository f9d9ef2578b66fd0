import json
import re
from dataclasses import replace

import numpy as np
import pytest

from smile_fast.data.store import (
    CASES,
    INDEX,
    CaseInfo,
    Store,
    open_array,
    read_planes,
    write_array,
    write_index,
)
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from tests.cohorts import damage_array

ORGANS = ("liver", "pancreas")
INFO = CaseInfo(
    name="case",
    split="train",
    shape=(4, 6, 5),
    spacing=(3.0, 1.5, 1.5),
    affine=((1.5, 0.0, 0.0, 0.0), (0.0, 1.5, 0.0, 0.0), (0.0, 0.0, 3.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    states={"liver": State.ANNOTATED, "pancreas": State.HIDDEN},
    runs={"liver": (1, (7, 0, 9))},
    sources={"image": "0" * 64, "label": "1" * 64},
)


@pytest.fixture
def path(tmp_path):
    for case in ("case", "other"):
        (tmp_path / CASES / case).mkdir(parents=True)
        write_array(tmp_path / CASES / case / "image.b2nd", np.full(INFO.shape, -1000, np.int16))
        write_array(tmp_path / CASES / case / "labels.b2nd", np.ones(INFO.shape, np.uint8))
    write_index(tmp_path, ORGANS, [INFO, replace(INFO, name="other", split="test")])
    return tmp_path


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_an_array_is_read_back_slice_by_slice(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 120, (7, 33, 21)).astype(dtype)
    write_array(tmp_path / "a.b2nd", array)
    stored = open_array(tmp_path / "a.b2nd")
    assert stored.shape == array.shape
    assert stored.dtype == dtype
    assert stored.chunks == (1, 33, 21)
    np.testing.assert_array_equal(stored[:], array)
    np.testing.assert_array_equal(stored[3], array[3])


def test_the_same_array_gives_the_same_bytes_whatever_its_memory_order(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1000, (7, 33, 21)).astype(np.int16)
    write_array(tmp_path / "a.b2nd", array)
    write_array(tmp_path / "b.b2nd", np.asfortranarray(array))
    assert (tmp_path / "a.b2nd").read_bytes() == (tmp_path / "b.b2nd").read_bytes()


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.uint8), np.zeros((2, 0, 3), np.uint8), np.zeros((2, 3, 4), np.float32)]
)
def test_other_arrays_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match="array must be int16 or uint8"):
        write_array(tmp_path / "a.b2nd", array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "header"])
def test_a_damaged_array_is_one_sentence(path, damage):
    file = path / CASES / "case" / "image.b2nd"
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        damaged = {
            "empty": b"",
            "text": b"hello" * 20,
            "truncated": content[:-30],
            "header": content[:40] + b"\xff" * 20 + content[60:],
        }[damage]
        file.write_bytes(damaged)
    with pytest.raises(InputError, match=re.escape(str(file))):
        Store.open(path).image("case")


@pytest.mark.parametrize("planes", [slice(None), slice(1, 3), [3, 0, 0], np.array([2]), range(4)], ids=str)
def test_planes_are_read_in_the_order_asked_for(path, planes):
    image = np.random.default_rng(0).integers(-1000, 1000, INFO.shape).astype(np.int16)
    labels = np.random.default_rng(1).integers(0, 3, INFO.shape).astype(np.uint8)
    write_array(path / CASES / "case" / "image.b2nd", image)
    write_array(path / CASES / "case" / "labels.b2nd", labels)
    store = Store.open(path)
    for read, expected in (
        (read_planes(store.image("case"), path, planes), image[planes]),
        (store.read_image("case", planes), image[planes]),
        (store.read_labels("case", planes), labels[planes]),
    ):
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("planes", [slice(None), range(4)], ids=str)
@pytest.mark.parametrize(("file", "read"), [("image.b2nd", Store.read_image), ("labels.b2nd", Store.read_labels)])
def test_an_array_that_opens_but_does_not_decompress_is_one_sentence(path, planes, file, read):
    damaged = path / CASES / "case" / file
    damage_array(damaged)
    open_array(damaged)  # nothing is seen yet
    with pytest.raises(InputError, match=re.escape(f"{damaged}: damaged") + ".*'smile-fast prepare'"):
        read(Store.open(path), "case", planes)


def test_opening_reads_the_index_only(path):
    for file in (path / CASES / "case").iterdir():
        file.unlink()
    store = Store.open(path)
    assert store.organs == ORGANS
    assert list(store.cases) == ["case", "other"]
    assert store.cases["case"] == INFO
    assert store.declarations()["other"] == INFO.states
    with pytest.raises(InputError, match="run 'smile-fast prepare' again"):
        store.image("case")


def test_counts_are_per_slice_and_organ(path):
    assert Store.open(path).cases["case"].counts == [[0, 0], [7, 0], [0, 0], [9, 0]]


def test_arrays_are_opened_with_the_right_type(path):
    store = Store.open(path)
    assert store.image("case")[0].min() == -1000
    assert store.human_labels("case")[3].dtype == np.uint8
    with pytest.raises(InputError, match="no case 'nobody'"):
        store.image("nobody")
    write_array(path / CASES / "case" / "image.b2nd", np.zeros((4, 6, 4), np.int16))
    with pytest.raises(InputError, match="does not fit the index"):
        store.image("case")
    write_array(path / CASES / "case" / "labels.b2nd", np.zeros(INFO.shape, np.int16))
    with pytest.raises(InputError, match="does not fit the index"):
        store.human_labels("case")


def test_no_store_and_an_unfinished_one(path, tmp_path_factory):
    with pytest.raises(InputError, match=r"index\.json: there is no such file; make a store"):
        Store.open(tmp_path_factory.mktemp("empty"))
    (path / INDEX).unlink()
    with pytest.raises(InputError, match=r"index\.json: there is no such file; finish the store"):
        Store.open(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[" * 100_000, b'"x"', b"{}", b'{"format": "coco"}'])
def test_a_foreign_or_broken_index(path, content):
    (path / INDEX).write_bytes(content)
    with pytest.raises(InputError, match=r"index\.json: not (valid JSON|a text file in UTF-8|the index of a store)"):
        Store.open(path)


def test_another_schema_version(path):
    index = json.loads((path / INDEX).read_text())
    index["schema"] = 99
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"schema version 99, this version reads 1; .*prepare --force"):
        Store.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc"},
        {"name": ""},
        {"name": ".."},
        {"name": 3},
        {"split": "validation"},
        {"shape": [4, 6]},
        {"shape": [0, 6, 5]},
        {"shape": "abc"},
        {"spacing": [1.0, float("nan"), 1.0]},
        {"spacing": [1.0, -1.0, 1.0]},
        {"affine": [[1.0]]},
        {"states": {"liver": "annotated"}},
        {"states": {"liver": "annotated", "pancreas": "drawn"}},
        {"states": {"liver": "annotated", "pancreas": "absent", "spleen": "absent"}},
        {"counts": {"liver": [3, [1, 2]]}},
        {"counts": {"liver": [-1, [1, 2]]}},
        {"counts": {"liver": [0, [-1]]}},
        {"counts": {"liver": [0, [1.5]]}},
        {"counts": {"spleen": [0, [1]]}},
        {"counts": {"pancreas": [0, [1]]}},
        {"counts": [[1]]},
        {"sources": 5},
    ],
    ids=str,
)
def test_a_damaged_entry(path, change):
    index = json.loads((path / INDEX).read_text())
    index["cases"][0].update(change)
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: (damaged|not valid JSON) .*make the store again"):
        Store.open(path)


@pytest.mark.parametrize("change", [{"organs": []}, {"organs": ["a", "a"]}, {"cases": []}, {"cases": None}], ids=str)
def test_a_damaged_index(path, change):
    index = json.loads((path / INDEX).read_text()) | change
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: damaged"):
        Store.open(path)


def test_two_entries_of_one_case(path):
    write_index(path, ORGANS, [INFO, INFO])
    with pytest.raises(InputError, match=r"index\.json: damaged"):
        Store.open(path)


def test_reads_other_declarations(path, tmp_path):
    store = Store.open(path)
    file = tmp_path / "other.csv"
    rows = ["case,organ,state", "case,liver,hidden", "case,pancreas,annotated", "other,liver,missing"]
    file.write_text("\n".join([*rows, "other,pancreas,absent", "quarantined,liver,annotated"]))
    assert store.read_declarations(file) == {
        "case": {"liver": State.HIDDEN, "pancreas": State.ANNOTATED},
        "other": {"liver": State.MISSING, "pancreas": State.ABSENT},
    }
    file.write_text(file.read_text().replace("liver,missing", "liver,absent"))
    with pytest.raises(InputError, match="case other, organ liver is declared absent, but the store has voxels of it"):
        store.read_declarations(file)
    file.write_text("\n".join(rows))
    with pytest.raises(InputError, match="no row for 1 of the 4"):
        store.read_declarations(file)


def test_a_hidden_organ_that_is_drawn_may_not_be_called_absent(path, tmp_path):
    labels = np.ones(INFO.shape, np.uint8)
    labels[2, 3, 4] = 2
    write_array(path / CASES / "case" / "labels.b2nd", labels)
    file = tmp_path / "other.csv"
    rows = ["case,organ,state", "case,liver,annotated", "case,pancreas,hidden", "other,liver,annotated"]
    file.write_text("\n".join([*rows, "other,pancreas,absent"]))
    assert Store.open(path).read_declarations(file)["other"]["pancreas"] is State.ABSENT  # nobody drew it there
    file.write_text(file.read_text().replace("pancreas,hidden", "pancreas,absent"))
    with pytest.raises(InputError, match="case case, organ pancreas is declared absent, but the store has voxels of"):
        Store.open(path).read_declarations(file)
