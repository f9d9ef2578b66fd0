"""Rot in a store: a flipped bit, a cut or replaced file, JSON of the wrong kind. Each is found, or changes nothing.

SMILE_FAST_FLIPS sets how many bits are flipped (200 by default).
"""

import json
import mmap
import os
import shutil
from collections import Counter
from itertools import product

import blosc2
import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data import arrays
from smile_fast.data.arrays import pack_array
from smile_fast.data.case_info import IMAGE, LABELS
from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.store import CASE_FILE, CASES, INDEX, Store
from smile_fast.data.verify import verify_store
from smile_fast.records import write_record
from smile_runtime.errors import InputError
from smile_runtime.volume.preprocessing import BodyRule
from tests.cohorts import annotate, array_file, label_map, make_cohort, tree, write_nifti

FLIPS = int(os.environ.get("SMILE_FAST_FLIPS", "200"))
HEADER_BYTES = 184


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store of two cases, one with hidden labels; their images have slices of noise, of zeros and of air."""
    folder = tmp_path_factory.mktemp("sound")
    cohort = make_cohort(folder / "cohort", train=2)
    annotate(cohort, {("case_01", "spleen"): "hidden"})
    for number in range(2):
        image = np.random.default_rng(number).normal(40, 30, label_map().shape).astype(np.int16)
        image[..., 3], image[..., 4] = 0, -1000
        write_nifti(cohort / "imagesTr" / f"case_0{number}_0000.nii.gz", image)
    return prepare(RawDataset.open(cohort), folder / "store", workers=1).store


@pytest.fixture
def path(sound, tmp_path):
    shutil.copytree(sound.path, tmp_path / "store")
    return tmp_path / "store"


def everything(path):
    """All that anybody can learn of a store; nothing of it is remembered from before."""
    arrays.table_of.cache_clear()
    store = Store.open(path)
    rule = BodyRule(-300.0)
    return store.organs, [
        (info, info.counts().tolist(), info.directions.tolist(), store.body_box(name, rule), image, labels)
        for name, info in store.cases.items()
        for image, labels in [(store.read_image(name).tobytes(), store.read_labels(name).tobytes())]
    ]


def outcome(path, expected):
    """What reading makes of a store: it says which file is damaged, or all is as it was, or it is not."""
    try:
        return "harmless" if everything(path) == expected else "silent"
    except InputError as error:
        return f"{str(error).partition(': ')[0]} detected"


def outcome_of_verify(path):
    try:
        found = verify_store(path, workers=1)
    except InputError as error:
        return [str(error)]
    return found.faults


def parts(file):
    """The parts of a file of an array or a record: name -> range of its bytes."""
    size = file.stat().st_size
    if file.suffix == ".json":
        return {"text": range(size - 80), "seal": range(size - 80, size)}
    array = blosc2.open(str(file), mode="r")
    chunks_end = HEADER_BYTES + array.schunk.cbytes - sum(32 for plane in array[:] if not plane.any())
    table = size - 16 * array.shape[0] - 56
    return {
        "header": range(HEADER_BYTES),
        "chunks": range(HEADER_BYTES, chunks_end),
        "trailer": range(chunks_end, table),
        "table": range(table, size),
    }


def test_every_flipped_bit_is_found_or_harmless(path, capsys):
    expected, rng, seen = everything(path), np.random.default_rng(3), Counter()
    folder = path / CASES / "case_01"
    files = [path / INDEX, folder / CASE_FILE, array_file(folder, IMAGE), array_file(folder, LABELS)]
    places = [(file, part, places) for file in files for part, places in parts(file).items()]
    for number in range(FLIPS):
        file, part, bytes_of_part = places[number % len(places)]
        position, bit = int(rng.choice(bytes_of_part)), int(rng.integers(8))
        content = bytearray(file.read_bytes())
        content[position] ^= 1 << bit
        file.write_bytes(content)
        read, faults = outcome(path, expected), outcome_of_verify(path)
        kind = file.name.partition("-")[0]
        assert read in ("harmless", f"{file} detected"), (kind, part, position, bit)
        assert len(faults) == 1, (kind, part, position, bit, faults)
        assert faults[0].startswith(f"{file}: ")
        seen[kind, part, read == "harmless"] += 1
        content[position] ^= 1 << bit
        file.write_bytes(content)
    # Reading uses neither blosc2's header and trailer, nor case.json: damage there does no harm, and `verify` finds it.
    unused = {("case.json", "text"), ("case.json", "seal")}
    unused |= {(array, part) for array in (IMAGE, LABELS) for part in ("header", "trailer")}
    assert {(kind, part) for kind, part, harmless in seen if harmless} <= unused
    assert everything(path) == expected


@pytest.mark.parametrize("name", [INDEX, f"{CASES}/case_00/image-*", f"{CASES}/case_00/labels-*"])
def test_a_file_that_is_cut_anywhere_is_found(path, name):
    expected, (file,) = everything(path), path.glob(name)
    content = file.read_bytes()
    for length in sorted({*range(0, len(content), len(content) // 25), *range(len(content) - 20, len(content))}):
        file.write_bytes(content[:length])
        assert outcome(path, expected) == f"{file} detected", length
        assert outcome_of_verify(path)[0].startswith(f"{file}: ")


@pytest.mark.parametrize("array", [IMAGE, LABELS])
@pytest.mark.parametrize("other", ["another case", "the other array", "another version", "a frame", "nothing"])
def test_a_file_that_is_replaced_is_found(path, array, other):
    expected = everything(path)
    file, store = array_file(path / CASES / "case_00", array), Store.open(path)
    if other == "another case":
        shutil.copy(store.array_path("case_01", IMAGE), file)
    elif other == "the other array":
        shutil.copy(store.array_path("case_00", LABELS if array == IMAGE else IMAGE), file)
    elif other == "another version":
        changed = np.roll(arrays.read_slices(file, store.cases["case_00"].arrays[array]), 1, axis=0)
        arrays.write_array(file.parent, "version", changed)
        os.replace(array_file(file.parent, "version"), file)
    elif other == "a frame":
        file.write_bytes(pack_array(arrays.read_slices(file, store.cases["case_00"].arrays[array])))
    else:
        file.unlink()
    assert outcome(path, expected) == f"{file} detected"
    (fault,) = outcome_of_verify(path)
    assert fault.startswith(f"{file}: ")
    assert fault.endswith("; run 'smile-fast prepare --rehash' again")


WRONG = [None, True, -1, 0, 2**70, 1e300, "", "x", "..", [], [0], {}, {"x": [1]}]


def positions(entry, at=()):
    """The path to every value of a JSON document."""
    yield at
    members = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ()
    for key, value in members:
        yield from positions(value, (*at, key))


def replaced(entry, at, value):
    if not at:
        return value
    copy = entry.copy()
    copy[at[0]] = replaced(entry[at[0]], at[1:], value)
    return copy


@pytest.mark.parametrize("name", [INDEX, f"{CASES}/case_01/{CASE_FILE}"])
def test_values_of_the_wrong_kind_are_one_sentence(path, name):
    """At every position, well sealed: what is refused names the file, what is taken can be used."""
    file, expected, seen = path / name, everything(path), Counter()
    record = json.loads(file.read_text())
    del record["sha256"]
    places = list(positions(record))[1:]
    changes, rng = list(product(places, WRONG)), np.random.default_rng(4)
    for number in rng.choice(len(changes), min(len(changes), FLIPS), replace=False):
        at, wrong = changes[number]
        write_record(file, replaced(record, at, wrong))
        read, faults = outcome(path, expected), outcome_of_verify(path)
        assert not any("\n" in fault for fault in faults)
        if name != INDEX:
            assert read == "harmless"  # case.json is for `prepare` alone
        seen[any(fault.startswith(f"{file}: ") for fault in faults)] += 1
    assert seen[True] > 4 * seen[False]


def test_a_store_on_a_mount_that_maps_no_files(path, monkeypatch):
    expected = everything(path)

    def refuse(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    monkeypatch.setattr(blosc2, "open", refuse)  # maps files in C
    assert everything(path) == expected
    assert verify_store(path, workers=1).faults == []


def test_verify_reads_everything_and_changes_nothing(path, capsys):
    before = tree(path)
    assert main(["verify", str(path), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{path}: {len(before)} files, 0.00 GB: all as it was written\n"
    assert tree(path) == before


def test_verify_names_every_fault(path, capsys):
    damaged = [array_file(path / CASES / "case_00", IMAGE), array_file(path / CASES / "case_01", LABELS)]
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[-30] ^= 1
        file.write_bytes(content)
    (path / CASES / "case_01" / CASE_FILE).unlink()
    assert main(["verify", str(path), "--workers", "2"]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.partition(": ")[2].partition(": ")[0] for line in errors] == sorted(
        map(str, [*damaged, path / CASES / "case_01" / CASE_FILE])
    )
    assert "3 faults, see above" in out


def test_verify_lists_what_nothing_names(path, capsys):
    (path / "notes.txt").touch()
    (path / CASES / "case_00" / "image-0123456789abcdef.b2nd").touch()
    (path / CASES / "case_00" / ".tmp-0123.b2nd").touch()
    assert main(["verify", str(path), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 files that nothing names: notes.txt, cases/case_00/.tmp-0123.b2nd, cases/case_00/image-0123" in out


def test_verify_counts_the_voxels_again(path):
    """An index that is well sealed and says something else of the labels."""
    index = json.loads((path / INDEX).read_text())
    del index["sha256"]
    index["cases"][0]["runs"].pop("spleen")
    write_record(path / INDEX, index)
    faults = outcome_of_verify(path)
    assert len(faults) == 1
    assert "shows other numbers of voxels than the index says; run 'smile-fast prepare --force'" in faults[0]


@pytest.mark.parametrize("command", [["verify", "none"], ["verify", ".", "--workers", "0"], ["verify", "."]])
def test_verify_of_no_store_is_one_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert capsys.readouterr().err.count("error: ") == 1
