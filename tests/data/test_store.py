import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smile_fast.data import store as module
from smile_fast.data.arrays import open_array, read_slices, write_array
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo, StoredBox
from smile_fast.data.store import CASES, INDEX, Store, write_index
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, body_box
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
    arrays={IMAGE: "2" * 64, LABELS: "3" * 64},
    body=StoredBox(BodyBox(4, (0, 2, 3), slice(1, 5), slice(0, 5)), BodyRule()),
)


def describe(path, case, **arrays):
    """Write arrays of a case and their checksums into the index."""
    digests = {
        f"{name}.b2nd": write_array(path / CASES / case / f"{name}.b2nd", array) for name, array in arrays.items()
    }
    cases = dict(Store.open(path).cases)
    cases[case] = replace(cases[case], arrays=cases[case].arrays | digests)
    write_index(path, ORGANS, list(cases.values()))


@pytest.fixture
def path(tmp_path):
    write_index(tmp_path, ORGANS, [INFO, replace(INFO, name="other", split="test")])
    for case in ("case", "other"):
        (tmp_path / CASES / case).mkdir(parents=True)
        describe(tmp_path, case, image=np.full(INFO.shape, -1000, np.int16), labels=np.ones(INFO.shape, np.uint8))
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


@pytest.mark.parametrize("slices", [slice(None), slice(1, 3), [3, 0, 0], np.array([2]), range(4)], ids=str)
def test_slices_are_read_in_the_order_asked_for(path, slices):
    image = np.random.default_rng(0).integers(-1000, 1000, INFO.shape).astype(np.int16)
    labels = np.random.default_rng(1).integers(0, 3, INFO.shape).astype(np.uint8)
    describe(path, "case", image=image, labels=labels)
    store = Store.open(path)
    for read, expected in (
        (read_slices(store.read_image("case"), path, slices), image[slices]),
        (store.read_image("case", slices), image[slices]),
        (store.read_labels("case", slices), labels[slices]),
    ):
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("slices", [slice(None), range(4)], ids=str)
@pytest.mark.parametrize(("file", "read"), [("image.b2nd", Store.read_image), ("labels.b2nd", Store.read_labels)])
def test_an_array_that_opens_but_does_not_decompress_is_one_sentence(path, slices, file, read):
    damaged = path / CASES / "case" / file
    damage_array(damaged)
    open_array(damaged)  # nothing is seen yet
    with pytest.raises(InputError, match=re.escape(f"{damaged}: damaged") + ".*'smile-fast prepare'"):
        read(Store.open(path), "case", slices)


@pytest.mark.parametrize(("file", "read"), [("image.b2nd", Store.read_image), ("labels.b2nd", Store.read_labels)])
def test_a_file_that_decompresses_to_something_else_is_found_when_it_is_read_whole(path, file, read):
    """A copy of another case, a restored backup: nothing but the checksum tells."""
    store, target = Store.open(path), path / CASES / "case" / file
    dtype = np.int16 if file == "image.b2nd" else np.uint8
    write_array(target, np.full(INFO.shape, 2, dtype))
    assert read(store, "case", [1]).max() == 2  # single slices are not checked
    with pytest.raises(InputError, match=re.escape(f"{target}: damaged or replaced") + ".*'smile-fast prepare'"):
        read(store, "case")


def test_a_file_is_hashed_once_a_process(path, monkeypatch):
    store, hashed = Store.open(path), []
    digest = module.sha256
    monkeypatch.setattr(module, "sha256", lambda file: hashed.append(file.name) or digest(file))
    for _ in range(2):
        store.read_image("case")
        store.read_labels("case")
        store.read_image("case", range(4))
    assert hashed == ["image.b2nd", "labels.b2nd"]


def test_the_box_of_the_rule_it_was_prepared_with_is_read_from_the_index(path):
    """The image would give another one: it is air."""
    for file in (path / CASES / "case").iterdir():
        file.unlink()
    box = Store.open(path).body_box("case", BodyRule())
    assert box == BodyBox(4, (0, 2, 3), slice(1, 5), slice(0, 5))
    assert Store.open(path).body_box("case", None).size == (6, 5)


@pytest.mark.parametrize(
    "stale", [{"version": BodyRule.VERSION + 1}, {"version": 0}, {"rule": BodyRule(-400.0)}], ids=str
)
def test_a_box_of_another_rule_or_version_is_not_believed(path, monkeypatch, stale):
    cases = [replace(info, body=replace(info.body, **stale)) for info in Store.open(path).cases.values()]
    write_index(path, ORGANS, cases)
    store, read = Store.open(path), []
    find = module.body_box
    monkeypatch.setattr(module, "body_box", lambda *arguments: read.append(1) or find(*arguments))
    for _ in range(2):
        assert store.body_box("case", BodyRule()).slices == ()
    assert len(read) == 1  # once a process


def test_the_version_of_the_rule_rises_with_its_boxes():
    """Boxes are stored: whoever changes what `body_box` finds must raise BodyRule.VERSION, and correct this test."""
    z, y, x = np.meshgrid(np.arange(20), np.arange(96), np.arange(120), indexing="ij")
    body = ((y - 50) / 33.0) ** 2 + ((x - 57) / 41.0) ** 2 + ((z - 9) / 7.0) ** 2 < 1
    lung = ((y - 48) / 12.0) ** 2 + ((x - 40) / 10.0) ** 2 < 1
    couch = (y > 88) & (y < 91)
    hu = np.where(body & ~lung | couch, 40, -1000).astype(np.int16)
    thick, thin = (body_box(hu, spacing, BodyRule()) for spacing in ((5.0, 2.0, 2.0), (1.25, 0.7, 0.9)))
    assert BodyRule.VERSION == 1
    assert thick == BodyBox(20, tuple(range(2, 17)), slice(13, 93), slice(13, 109))
    assert thin == BodyBox(20, tuple(range(19)), slice(8, 96), slice(12, 108))


@pytest.mark.parametrize("shown", [(), (0,), (3,), (0, 1, 2, 3), (0, 2, 3), (1, 3)], ids=str)
def test_a_box_is_read_back(shown):
    stored = StoredBox(BodyBox(4, shown, slice(0, 4), slice(2, 5)), BodyRule(-300.0, 0.0), 3)
    entry = json.loads(json.dumps(stored.to_json()))
    assert StoredBox.from_json(entry, INFO.shape) == stored


def test_opening_reads_the_index_only(path):
    for file in (path / CASES / "case").iterdir():
        file.unlink()
    store = Store.open(path)
    assert store.organs == ORGANS
    assert list(store.cases) == ["case", "other"]
    assert replace(store.cases["case"], arrays=INFO.arrays) == INFO
    assert store.declarations()["other"] == INFO.states
    with pytest.raises(InputError, match="run 'smile-fast prepare' again"):
        store.read_image("case")


def test_counts_are_per_slice_and_organ(path):
    assert Store.open(path).cases["case"].counts.tolist() == [[0, 0], [7, 0], [0, 0], [9, 0]]


def test_arrays_are_opened_with_the_right_type(path):
    store = Store.open(path)
    assert store.read_image("case")[0].min() == -1000
    assert store.read_labels("case")[3].dtype == np.uint8
    with pytest.raises(InputError, match="no case 'unknown'"):
        store.read_image("unknown")
    write_array(path / CASES / "case" / "image.b2nd", np.zeros((4, 6, 4), np.int16))
    with pytest.raises(InputError, match="does not fit the index"):
        store.read_image("case")
    write_array(path / CASES / "case" / "labels.b2nd", np.zeros(INFO.shape, np.int16))
    with pytest.raises(InputError, match="does not fit the index"):
        store.read_labels("case")


def test_no_store_and_an_unfinished_one(path, tmp_path_factory):
    with pytest.raises(InputError, match=r"no store, it has no index\.json; make one"):
        Store.open(tmp_path_factory.mktemp("empty"))
    (path / INDEX).unlink()
    with pytest.raises(InputError, match=r"an unfinished store, it has no index\.json; finish it"):
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
    with pytest.raises(InputError, match=r"schema version 99, this version reads 3; .*prepare --force"):
        Store.open(path)


def test_a_store_of_schema_1_is_refused_with_what_to_do(path):
    """An index as the version before wrote it: without boxes and checksums."""
    (path / INDEX).write_bytes((Path(__file__).parent / "schema_1" / INDEX).read_bytes())
    with pytest.raises(InputError) as caught:
        Store.open(path)
    assert str(caught.value) == (
        f"{path / INDEX}: schema version 1, this version reads 3; make the store again with 'smile-fast prepare' from "
        "the same dataset"
    )


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
        {"arrays": {"image.b2nd": "2"}},
        {"arrays": None},
        {"body": None},
        {"body": {"version": 1}},
        *(
            {"body": INFO.body.to_json() | change}
            for change in (
                {"slices": [[0, 5]]},
                {"slices": [[2, 2]]},
                {"slices": [[2, 3], [0, 1]]},
                {"slices": [[0, 2.5]]},
                {"slices": [0]},
                {"rows": [0, 7]},
                {"rows": [3, 2]},
                {"columns": [-1, 5]},
                {"columns": [0]},
                {"threshold_hu": None},
                {"margin_mm": -1.0},
                {"version": "1"},
            )
        ),
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
    describe(path, "case", labels=labels)
    file = tmp_path / "other.csv"
    rows = ["case,organ,state", "case,liver,annotated", "case,pancreas,hidden", "other,liver,annotated"]
    file.write_text("\n".join([*rows, "other,pancreas,absent"]))
    assert Store.open(path).read_declarations(file)["other"]["pancreas"] is State.ABSENT  # no voxel of it there
    file.write_text(file.read_text().replace("pancreas,hidden", "pancreas,absent"))
    with pytest.raises(InputError, match="case case, organ pancreas is declared absent, but the store has voxels of"):
        Store.open(path).read_declarations(file)
