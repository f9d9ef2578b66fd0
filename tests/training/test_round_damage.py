"""Rounds on a disk that rots: a flipped bit is an error that names the file, or changes nothing; never other labels."""

import json
import shutil

import numpy as np
import pytest

from smile_fast.records import write_record
from smile_fast.training.rounds import Round, open_round
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BIT
from tests.runs import ORGANS, SHAPE, writing_round

FLIPS = 400
VALUES = (None, True, -1, 2.5, 2**70, "text", [], {}, [None], {"a": None})


@pytest.fixture
def rounds(tmp_path):
    """A round of two cases with noisy overlays, one slice of which is empty."""
    rng = np.random.default_rng(0)
    with writing_round(tmp_path / "rounds", Round(1, 0.5, "volume"), ORGANS) as written:
        for case in "ab":
            overlay = (rng.integers(0, 3, SHAPE) * (rng.random(SHAPE) < 0.3)).astype(np.uint8)
            overlay = np.where(overlay > 0, overlay | PSEUDO_BIT, 0).astype(np.uint8)
            overlay[2] = 0
            numbers = {organ: int((overlay == PSEUDO_BIT | (k + 1)).sum()) for k, organ in enumerate(ORGANS)}
            counts = {organ: {"candidates": 9999, "selected": n, "kept": n} for organ, n in numbers.items()}
            written.add(case, overlay, counts)
    return tmp_path / "rounds"


def all_of(rounds):
    """Everything that a training reads of a round."""
    found = open_round(rounds, 1)
    labels = [found.pseudo_labels(case) for case in "ab"]
    counts = [found.counts(case, SHAPE[0], ORGANS) for case in "ab"]
    return found.round, found.totals(), np.stack(labels).tobytes(), np.stack(counts).tobytes()


def flip(path, rng):
    """Flip one bit anywhere in a file, every byte as likely as any other."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["overlay", "round.json"])
def test_a_flipped_bit_is_an_error_that_names_the_file_or_changes_nothing(rounds, tmp_path, which):
    expected, rng = all_of(rounds), np.random.default_rng(1)
    detected = 0
    for number in range(FLIPS):
        copy = tmp_path / f"copy {number}"  # a table that was read is remembered by its path
        shutil.copytree(rounds, copy)
        path = copy / "1" / "round.json" if which == "round.json" else next((copy / "1").glob("b-*"))
        flip(path, rng)
        try:
            found = all_of(copy)
        except InputError as error:
            assert str(path) in str(error), error  # noqa: PT017
            detected += 1
        else:
            assert found == expected
        shutil.rmtree(copy)
    # Of an overlay's file blosc2's own header and index are not read; of round.json every bit counts.
    assert detected == FLIPS if which == "round.json" else detected > FLIPS // 2


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_an_overlay_that_was_cut_is_an_error_that_names_it(rounds, size):
    path = next((rounds / "1").glob("b-*"))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=rf"{path.name}: damaged or replaced, .*; restore it from a copy"):
        open_round(rounds, 1).pseudo_labels("b", [3])


def test_the_overlay_of_another_case_or_round_is_no_overlay_of_this_one(rounds):
    """Under the right name, with the right shape and a table of its own."""
    one, other = (next((rounds / "1").glob(f"{case}-*")) for case in "ab")
    shutil.copy(one, other)
    with pytest.raises(InputError, match=rf"{other.name}: damaged or replaced, it is not the array that belongs here"):
        open_round(rounds, 1).pseudo_labels("b", [3])


def test_a_case_that_the_round_does_not_name_has_no_pseudo_labels_to_read(rounds):
    with pytest.raises(InputError, match=r"round\.json: has no pseudo-labels of case c; name a case of the round"):
        open_round(rounds, 1).pseudo_labels("c")


def places(value, path=()):
    """The keys and positions that lead to every value in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def with_value(record, path, value):
    if not path:
        return value
    copy = list(record) if isinstance(record, list) else dict(record)
    copy[path[0]] = with_value(record[path[0]], path[1:], value)
    return copy


def test_a_description_of_another_structure_is_one_sentence(rounds):
    """Every value of it replaced by others, under a seal that fits."""
    path = rounds / "1" / "round.json"
    record = json.loads(path.read_text())
    record.pop("sha256")
    refused, read = 0, 0
    for place in places(record):
        for value in VALUES:
            spoiled = with_value(record, place, value)
            if not isinstance(spoiled, dict) or not spoiled:
                continue
            write_record(path, spoiled)
            try:
                all_of(rounds)
            except InputError as error:
                assert str(rounds / "1") in str(error), error  # noqa: PT017
                refused += 1
            else:
                read += 1
    assert refused > 200
    assert read > 2  # gamma, for example, may be another number


def test_a_description_without_a_part_is_one_sentence(rounds):
    path = rounds / "1" / "round.json"
    record = json.loads(path.read_text())
    record.pop("sha256")
    for place in list(places(record)):
        if len(place) == 1 or (len(place) == 2 and place[0] in ("cases", "slices", "digests")):
            spoiled = json.loads(json.dumps(record))
            parent = spoiled if len(place) == 1 else spoiled[place[0]]
            parent.pop(place[-1])
            write_record(path, spoiled)
            with pytest.raises(InputError, match=r"round\.json: "):
                open_round(rounds, 1)
