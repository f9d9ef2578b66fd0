"""Rounds on disk: written whole or not at all, read again, refused when damaged, dropped from the last."""

import base64
import errno
import json
import math
import re
import shutil

import numpy as np
import pytest

from smile_fast.data.arrays import write_array
from smile_fast.records import write_record
from smile_fast.training import rounds as module
from smile_fast.training import unfinished_round
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round, existing_rounds, open_round, undo_rounds, unfinished_rounds
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BIT
from tests.cohorts import tree
from tests.runs import ORGANS, SHAPE, make_store, truth, writing_round
from tests.training.relabelling import VOXELS, A, Answers, H, M, answering, one_case, run_round


def three_cases(tmp_path):
    store = make_store(tmp_path / "store", {name: truth() for name in "abc"}, {(name, "pancreas"): H for name in "abc"})
    return TrainingView(store, store.declarations(), list("abc"))


@pytest.mark.parametrize("error", [InputError("disk: full; make room"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_a_round_that_is_given_up_keeps_the_old_one_and_after_ctrl_c_what_is_finished(tmp_path, monkeypatch, error):
    view, rounds = three_cases(tmp_path), tmp_path / "rounds"
    model = Answers(np.ones((18, 2, *SHAPE[1:])))
    relabel(model, view, rounds, Round(1, 0.5, "volume"))
    before, written = tree(rounds), []

    def fails(folder, case, overlay):
        if len(written) == 2:
            raise error
        written.append(case)
        return write_array(folder, case, overlay)

    monkeypatch.setattr(unfinished_round, "write_array", fails)
    model.asked = 0
    for number in (1, 2):
        written.clear()
        model.asked = 0
        with pytest.raises(type(error)):
            relabel(model, view, rounds, Round(number, 0.9, "volume"))
        assert len(written) == 2
        kept = isinstance(error, KeyboardInterrupt)
        assert unfinished_rounds(rounds) == ([number] if kept else [])
        shutil.rmtree(rounds / f".{number}.unfinished", ignore_errors=True)
        assert tree(rounds) == before
        assert [folder.name for folder in rounds.iterdir()] == ["1"]


def test_what_a_kill_left_behind_is_no_round_and_does_not_disturb(tmp_path):
    rounds = tmp_path / "rounds"
    for folder in (".1.unfinished", "2"):
        (rounds / folder).mkdir(parents=True)
        (rounds / folder / "old.b2nd").touch()
    assert existing_rounds(rounds) == []
    view = one_case(tmp_path, (A, M))
    run_round(answering(-1.0, 1.0), view, tmp_path, number=2)
    run_round(answering(-1.0, 1.0), view, tmp_path, number=1)
    overlay = overlay_of(rounds, "a").name
    assert sorted(tree(rounds)) == [f"1/{overlay}", "1/round.json", f"2/{overlay}", "2/round.json"]
    assert existing_rounds(rounds) == [1, 2]


def test_a_round_can_be_repeated(tmp_path):
    view = one_case(tmp_path, (A, M))
    run_round(answering(-1.0, 1.0), view, tmp_path, gamma=0.9)
    overlays, record = run_round(answering(-1.0, 1.0), view, tmp_path, gamma=0.1)
    assert record["gamma"] == 0.1
    assert (overlays["a"] > 0).sum() == math.ceil(0.1 * VOXELS)


def test_a_record_can_be_read_again(tmp_path):
    _, record = run_round(answering(-1.0, 1.0), one_case(tmp_path, (A, M)), tmp_path, gamma=0.25, scope="slice")
    found = open_round(tmp_path / "rounds", 1)
    assert (found.round, found.cases) == (Round(1, 0.25, "slice"), record["cases"])


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"round": 1, "gamma": 0.5, "scope": "volume"}', '{"round": 1, "gamma": "x", "cases": {}}',
     '{"round": 1, "gamma": 0.5, "scope": "volume", "cases": {"a": {"liver": {"selected": 3}}}}', "\xff"],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "round.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"round\.json: .*; restore it from a copy"):
        open_round(tmp_path, 1)


@pytest.fixture
def stored(tmp_path):
    """A round with two organs in one case, and nothing in another."""
    overlay = np.zeros(SHAPE, np.uint8)
    overlay[2, :3, 0] = overlay[4, 0, :5] = PSEUDO_BIT | 1
    overlay[0, 7, 7] = PSEUDO_BIT | 2
    nothing = dict.fromkeys(("candidates", "selected", "kept"), 0)
    with writing_round(tmp_path, Round(1, 0.5, "volume"), ORGANS) as written:
        written.add("a", overlay, {organ: nothing for organ in ORGANS})
        written.add("b", np.zeros(SHAPE, np.uint8), {"liver": nothing})
    return tmp_path


COUNTS = [[0, 1], [0, 0], [3, 0], [0, 0], [5, 0], [0, 0]]


def counted(first, *voxels):
    """What a description says of an organ: in slices from the first one so many voxels."""
    return [first, base64.b64encode(np.array(voxels, "<u4").tobytes()).decode()]


def overlay_of(rounds, case):
    """The file of a case's overlay in round 1."""
    (file,) = (rounds / "1").glob(f"{case}-*.b2nd")
    return file


def edit_record(rounds, change):
    """Write another description, with the seal of an unharmed one."""
    file = rounds / "1" / "round.json"
    record = json.loads(file.read_text())
    record.pop("sha256")
    change(record)
    write_record(file, record)


def test_pseudo_labels_are_counted_by_slice(stored):
    overlay_of(stored, "a").unlink()  # it is not read
    found = open_round(stored, 1)
    assert found.counts("a", SHAPE[0], ORGANS).tolist() == COUNTS
    for case in ("b", "unknown"):
        assert not found.counts(case, SHAPE[0], ORGANS).any()
        assert found.counts(case, SHAPE[0], ORGANS).shape == (SHAPE[0], len(ORGANS))


@pytest.mark.parametrize(
    "slices",
    [None, [], {}, {"a": {}}, {"a": {}, "b": 3}, {"a": {"liver": [0.5, "AQAAAA=="]}, "b": {}},
     {"a": {"liver": [0, [1]]}, "b": {}}, {"a": {"liver": [0, "not base64"]}, "b": {}}, {"a": {"liver": [0]}, "b": {}}],
    ids=str,
)  # fmt: skip
def test_damaged_counts_of_slices_are_named(stored, slices):
    edit_record(stored, lambda record: record.update(slices=slices))
    with pytest.raises(InputError, match=r"round\.json: damaged \(.*; restore it from a copy"):
        open_round(stored, 1)


@pytest.mark.parametrize("counts", [{"spleen": counted(0, 1)}, {"liver": counted(5, 1, 1)}], ids=["organ", "depth"])
def test_counts_of_another_volume_are_refused(stored, counts):
    edit_record(stored, lambda record: record["slices"].update(a=counts))
    with pytest.raises(InputError, match=r"round\.json: the pseudo-labels of case a are not those of its volume"):
        open_round(stored, 1).counts("a", SHAPE[0], ORGANS)


@pytest.mark.parametrize("confidences", [{"c": {"liver": 0.9}}, {"a": {"liver": 1.1}}], ids=["case", "size"])
def test_damaged_mean_probabilities_are_named(stored, confidences):
    assert open_round(stored, 1).confidences == {}  # a round without them is whole
    edit_record(stored, lambda record: record.update(confidences=confidences))
    with pytest.raises(InputError, match=r"round\.json: damaged \(.*; restore it from a copy"):
        open_round(stored, 1)


def test_an_overlay_that_is_gone_is_one_sentence(stored):
    file = overlay_of(stored, "a")
    file.unlink()
    with pytest.raises(InputError, match=re.escape(f"{file}: there is no such file; restore it from a copy")):
        open_round(stored, 1).pseudo_labels("a", [2])


def test_a_round_that_is_not_there_is_one_sentence(stored):
    with pytest.raises(InputError, match=r"2/round\.json: there is no such file"):
        open_round(stored, 2)


def test_rounds_are_undone_from_the_last(tmp_path):
    view, rounds = one_case(tmp_path, (A, M)), tmp_path / "rounds"
    for number in (1, 2, 10):
        run_round(answering(-1.0, 1.0), view, tmp_path, number=number)
    (rounds / "notes").mkdir()
    assert existing_rounds(rounds) == [1, 2, 10]
    assert undo_rounds(rounds, keep=1) == [2, 10]
    assert existing_rounds(rounds) == [1]
    assert undo_rounds(rounds, keep=1) == []
    assert undo_rounds(rounds, keep=0) == [1]
    assert [folder.name for folder in rounds.iterdir()] == ["notes"]
    assert undo_rounds(tmp_path / "nowhere", keep=0) == []


def test_a_half_deleted_round_is_dropped_as_well(tmp_path):
    view, rounds = one_case(tmp_path, (A, M)), tmp_path / "rounds"
    run_round(answering(-1.0, 1.0), view, tmp_path)
    run_round(answering(-1.0, 1.0), view, tmp_path, number=2)
    (rounds / "2" / "round.json").unlink()
    (rounds / ".3.dropped").mkdir()
    (rounds / "4").touch()  # a file is no round
    assert undo_rounds(rounds, keep=1) == [2]
    assert sorted(path.name for path in rounds.iterdir()) == ["1", "4"]


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_a_round_that_cannot_be_removed_is_named_and_not_left_in_part(tmp_path, monkeypatch, step):
    rounds = tmp_path / "rounds"
    run_round(answering(-1.0, 1.0), one_case(tmp_path, (A, M)), tmp_path)
    before = tree(rounds)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(*((module.shutil, "rmtree") if step == "rmtree" else (module.Path, "rename")), refused)
        with pytest.raises(InputError, match=r"rounds/1: round 1 cannot be removed \(permission denied\)"):
            undo_rounds(rounds, keep=0)
    if step == "rename":
        assert tree(rounds) == before
    assert existing_rounds(rounds) == ([1] if step == "rename" else [])
    undo_rounds(rounds, keep=0)
    assert list(rounds.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="rounds/1: the round cannot be written"):
        relabel(answering(-1.0, 1.0), one_case(tmp_path, (A, M)), tmp_path / "file" / "rounds", Round(1, 0.5, "volume"))
