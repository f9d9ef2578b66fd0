"""A round that several processes make: the bytes of one that a single process made, and nothing in between."""

import errno
import itertools
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smile_fast.training import relabel as module
from smile_fast.training import round_plan, unfinished_round
from smile_fast.training.relabel import relabel, relabel_share, weights_digest
from smile_fast.training.rounds import Round, existing_rounds, open_round, undo_rounds, unfinished_rounds
from smile_fast.training.unfinished_round import begun_round, finish_round, share_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.sharding import WHOLE, Shard
from tests.cohorts import tree
from tests.runs import make_store, truth
from tests.training.relabelling import M, answering

THIS = Round(1, 0.5, "volume")
CASES = ["a", "b", "c", "d", "e"]
THIRDS = [Shard(number, 3) for number in (1, 2, 3)]


@pytest.fixture
def view(tmp_path):
    """Five cases: in the last one nothing is missing."""
    states = {(case, "pancreas"): M for case in CASES[:-1]}
    store = make_store(tmp_path / "store", dict.fromkeys(CASES, truth()), states)
    return TrainingView(store, store.declarations(), CASES)


@pytest.fixture
def model(monkeypatch):
    """A network whose scores depend on the image alone, and a list of the cases that it has seen."""
    network, seen = answering(-1.0, 1.0), []

    def predict(model, image, *, box, spacing):
        seen.append(len(seen))
        scores = box.crop(image)[list(box.slices)].astype(np.float32)[:, None] / 100
        return torch.from_numpy(np.concatenate([-scores, scores], axis=1))

    monkeypatch.setattr(module, "predict_logits", predict)
    network.seen = seen
    return network


@pytest.fixture
def expected(model, view, tmp_path):
    """The files of a round that one process made."""
    relabel(model, view, tmp_path / "expected", THIS)
    assert len(model.seen) == 4
    model.seen.clear()
    return tree(tmp_path / "expected")


@pytest.fixture
def rounds(tmp_path):
    return tmp_path / "rounds"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 2, 0, 2)])
def test_shares_make_the_bytes_of_one_process(model, view, rounds, expected, order):
    for number in order:
        relabel_share(model, view, rounds, THIS, shard=THIRDS[number])
        assert existing_rounds(rounds) == []
        assert unfinished_rounds(rounds) == [1]
    written = finish_round(rounds, THIS, CASES)
    assert len(model.seen) == 4  # none is computed twice
    assert tree(rounds) == expected
    assert written == open_round(rounds, 1)
    assert unfinished_rounds(rounds) == []


def test_what_a_killed_process_left_among_the_overlays_is_no_part_of_the_round(model, view, rounds, expected):
    relabel_share(model, view, rounds, THIS)
    for name in (".tmp-0123456789abcdef.b2nd", "a-0123456789abcdef.b2nd"):
        (rounds / ".1.unfinished" / "round" / name).touch()
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected


def test_what_is_missing_is_said_and_nothing_appears(model, view, rounds, expected):
    with pytest.raises(InputError, match=r"rounds/1: 5 of 5 cases of the round are missing \(a, b, c, \.\.\. \(2 more"):
        finish_round(rounds, THIS, CASES)
    assert relabel_share(model, view, rounds, THIS, shard=THIRDS[0]) == 2
    assert relabel_share(model, view, rounds, THIS, shard=THIRDS[2]) == 1
    for _ in range(2):
        with pytest.raises(InputError, match=r"rounds/1: 2 of 5 cases of the round are missing \(b, e\); run"):
            finish_round(rounds, THIS, CASES)
        assert existing_rounds(rounds) == []
    assert relabel_share(model, view, rounds, THIS, shard=WHOLE) == 2
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected


def test_a_share_that_is_given_up_keeps_what_it_has(model, view, rounds, expected, capsys):
    class Enough(Exception):
        pass

    def check(calls=[]):  # noqa: B006 - remembers its calls
        calls.append(1)
        if len(calls) == 3:
            raise Enough

    with pytest.raises(Enough):
        relabel_share(model, view, rounds, THIS, check)
    assert len(model.seen) == 2
    relabel(model, view, rounds, THIS)
    assert "round 1: 2 of 5 cases had been finished before" in capsys.readouterr().err
    assert len(model.seen) == 4
    assert tree(rounds) == expected


def test_a_whole_round_that_is_given_up_keeps_what_others_had(model, view, rounds, monkeypatch):
    relabel_share(model, view, rounds, THIS, shard=THIRDS[0])
    monkeypatch.setattr(module, "predict_logits", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        relabel(model, view, rounds, THIS)
    assert unfinished_rounds(rounds) == [1]
    assert relabel_share(model, view, rounds, THIS, shard=THIRDS[0]) == 0


@pytest.mark.parametrize("what", ["record", "overlay", "bit", "plan"])
def test_what_is_damaged_or_gone_is_made_again(model, view, rounds, expected, what):
    relabel_share(model, view, rounds, THIS)
    folder = rounds / ".1.unfinished"
    if what == "record":
        file = folder / "cases" / "b.json"
        file.write_bytes(file.read_bytes().replace(b'"kept": ', b'"kept": 1'))
    elif what == "overlay":
        next((folder / "round").glob("b-*")).unlink()
    elif what == "bit":
        file = next((folder / "round").glob("b-*"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        (folder / "plan.json").write_text("{}")
    if what != "plan":
        with pytest.raises(InputError, match=r"1 of 5 cases of the round are missing \(b\)"):
            finish_round(rounds, THIS, CASES)
    assert relabel_share(model, view, rounds, THIS) == (5 if what == "plan" else 1)
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected


@contextmanager
def others(what, monkeypatch):
    """Another round than `THIS`, or the same one by another network or program."""
    with monkeypatch.context() as patch:
        if what == "weights":
            patch.setattr(module, "weights_digest", lambda model: "of others")
        if what == "version":
            patch.setattr(round_plan, "__version__", "0.0")
        yield {"gamma": Round(1, 0.25, "volume"), "scope": Round(1, 0.5, "slice")}.get(what, THIS)


@pytest.mark.parametrize("what", ["weights", "version"])
def test_other_weights_begin_a_round_anew(model, view, rounds, expected, what, monkeypatch, capsys):
    """Cases of another network would make a round of mixed cases; what is dropped is said."""
    dropped = "rounds/1: 2 finished cases are dropped: they are of other weights or another version"
    with others(what, monkeypatch) as other:
        relabel_share(model, view, rounds, other, shard=THIRDS[0])
    assert relabel_share(model, view, rounds, THIS) == 5
    assert dropped in capsys.readouterr().err
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected
    with others(what, monkeypatch) as other:
        relabel_share(model, view, rounds, other, shard=THIRDS[0])
    relabel(model, view, rounds, THIS)
    assert dropped in capsys.readouterr().err
    assert tree(rounds) == expected


@pytest.mark.parametrize("what", ["gamma", "scope"])
def test_another_gamma_or_scope_throws_nothing_away(model, view, rounds, expected, what, monkeypatch):
    """It may be a slip of the hand, and what is finished may have taken hours."""
    relabel_share(model, view, rounds, THIS, shard=THIRDS[0])
    before = tree(rounds)
    with others(what, monkeypatch) as other:
        for work in (relabel, relabel_share):
            with pytest.raises(InputError, match=r"1\.unfinished: has gamma 0\.5 and scope volume, not .*; finish it"):
                work(model, view, rounds, other)
    assert tree(rounds) | {".1.lock": b""} == before | {".1.lock": b""}
    assert relabel_share(model, view, rounds, THIS) == 3
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected


def test_a_disk_that_fails_throws_nothing_away(model, view, rounds, expected, monkeypatch):
    """The plan cannot be read now: that is no damage of it."""
    relabel_share(model, view, rounds, THIS, shard=THIRDS[0])
    plain = Path.read_bytes

    def failing(path):
        if path.name == round_plan.PLAN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(InputError, match=r"plan.json: cannot be read"):
            relabel_share(model, view, rounds, THIS, shard=THIRDS[1])
    assert relabel_share(model, view, rounds, THIS) == 3
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected


def test_shares_of_weights_that_have_changed_since_are_not_finished(model, view, rounds, expected):
    relabel_share(model, view, rounds, THIS)
    with pytest.raises(InputError, match=r"1\.unfinished: was begun with other weights than those of the run now; run"):
        finish_round(rounds, THIS, CASES, "of others")
    finish_round(rounds, THIS, CASES, weights_digest(model))
    assert tree(rounds) == expected


@pytest.mark.parametrize("what", ["version", "weights"])
def test_other_weights_while_somebody_is_at_work_are_refused(model, view, rounds, what, monkeypatch):
    monkeypatch.setattr(unfinished_round, "PATIENCE", 0.0)
    with share_round(rounds, THIS, view.organs, weights_digest(model)) as working:
        working.add("e", None, {})
        before = tree(rounds)
        with others(what, monkeypatch) as other, pytest.raises(InputError, match=r"rounds/1: another process .*; wait"):
            relabel_share(model, view, rounds, other)
        for alone in (relabel, lambda *_: finish_round(rounds, THIS, CASES)):
            with pytest.raises(InputError, match="another smile-fast process is at work there now"):
                alone(model, view, rounds, THIS)
        assert tree(rounds) == before
        assert relabel_share(model, view, rounds, THIS, shard=THIRDS[1]) == 1  # beside the other


def test_a_round_is_finished_once_and_whoever_comes_later_finds_it(model, view, rounds, expected):
    relabel_share(model, view, rounds, THIS)
    first = finish_round(rounds, THIS, CASES)
    assert finish_round(rounds, THIS, CASES) == first
    with pytest.raises(InputError, match=r"rounds/1: has gamma 0\.5 and scope volume, not 0\.9 and volume; finish"):
        finish_round(rounds, Round(1, 0.9, "volume"), CASES)
    assert tree(rounds) == expected


def test_what_is_unfinished_is_finished_as_what_it_is(model, view, rounds):
    assert begun_round(rounds, 1) is None
    relabel_share(model, view, rounds, THIS)
    with pytest.raises(InputError, match=r"1\.unfinished: has gamma 0\.5 and scope volume, not 0\.5 and slice"):
        finish_round(rounds, Round(1, 0.5, "slice"), CASES)
    assert begun_round(rounds, 1) == THIS
    finish_round(rounds, THIS, CASES)
    assert begun_round(rounds, 1) == THIS


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_while_the_round_appears(model, view, rounds, expected, monkeypatch, renames):
    """An older round of the number has gone by then, or not; the new one is not lost."""
    relabel(model, view, rounds, Round(1, 0.9, "volume"))
    relabel_share(model, view, rounds, THIS)
    rename, calls = Path.rename, itertools.count(1)

    def killed(path, target):
        if next(calls) > renames:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            finish_round(rounds, THIS, CASES)
    assert existing_rounds(rounds) == ([] if renames else [1])
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected


def test_what_a_finished_round_left_over_is_no_round_in_the_making(model, view, rounds, expected):
    relabel_share(model, view, rounds, THIS)
    shutil.copytree(rounds / ".1.unfinished", rounds / "copy")
    finish_round(rounds, THIS, CASES)
    shutil.rmtree(rounds / "copy" / "round")
    (rounds / "copy").rename(rounds / ".1.unfinished")  # as if the process had been killed before it was removed
    finish_round(rounds, THIS, CASES)
    assert tree(rounds) == expected
    assert undo_rounds(rounds, 0) == [1]


def test_undo_drops_what_is_unfinished(model, view, rounds):
    relabel_share(model, view, rounds, THIS, shard=THIRDS[0])
    relabel_share(model, view, rounds, Round(2, 0.5, "volume"), shard=THIRDS[0])
    (rounds / ".tmp-0123").mkdir()
    assert undo_rounds(rounds, 1) == [2]
    assert unfinished_rounds(rounds) == [1]
    assert undo_rounds(rounds, 0) == [1]
    assert tree(rounds).keys() <= {".1.lock", ".2.lock"}


def test_weights_are_told_apart():
    """By their names, shapes and every bit."""
    one = nn.BatchNorm1d(4)
    same, changed = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    with torch.no_grad():
        changed.weight.view(torch.int32)[2] ^= 1
    assert weights_digest(one) == weights_digest(same) != weights_digest(changed)
    assert weights_digest(nn.BatchNorm1d(4, affine=False)) != weights_digest(one)
