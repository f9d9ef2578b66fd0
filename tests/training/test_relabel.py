"""One round of SMILEr: which voxels become pseudo-labels, and what is written down about it."""

import errno
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from smile_fast.data.arrays import open_array, write_array
from smile_fast.supervision import State
from smile_fast.training import rounds as module
from smile_fast.training.inference import predict_logits
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round, existing_rounds, open_round, undo_rounds, write_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BIT, VOID
from tests.cohorts import tree
from tests.runs import ORGANS, SHAPE, balance, ct, make_store, truth
from tests.tolerances import upsampled_logit_error

A, M, H, X = State.ANNOTATED, State.MISSING, State.HIDDEN, State.ABSENT
VOXELS = int(np.prod(SHAPE))


class Told(nn.Module):
    """A network of stride 1 that answers what it is told: logits [D, K, H, W], slice by slice."""

    def __init__(self, logits):
        super().__init__()
        self.config = SimpleNamespace(channels=1, output_stride=1)
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))
        self.asked = 0

    def forward(self, hu):
        first, self.asked = self.asked, self.asked + len(hu)
        return self.logits[first : first + len(hu)]


def told(liver, pancreas):
    return Told(np.stack([np.broadcast_to(liver, SHAPE), np.broadcast_to(pancreas, SHAPE)], axis=1))


def one_case(path, states, labels=None):
    """A view of a single case with the given states of liver and pancreas."""
    labels = np.zeros(SHAPE, np.uint8) if labels is None else labels
    store = make_store(
        path / "store", {"a": labels}, {("a", organ): s for organ, s in zip(ORGANS, states, strict=True)}
    )
    return TrainingView(store, store.declarations(), ["a"])


def run_round(model, view, path, gamma=0.5, scope="volume", number=1):
    """Overlays by case, and round.json without the counts of slices, which are checked here."""
    folder = relabel(model, view, path / "rounds", Round(number, gamma, scope)).folder
    overlays = {file.stem: np.asarray(open_array(file)[:]) for file in folder.glob("*.b2nd")}
    record = json.loads((folder / "round.json").read_text())
    assert set(record.pop("slices")) == set(record["cases"])
    written = open_round(path / "rounds", number)
    for case, overlay in overlays.items():
        by_slice = [(overlay == (PSEUDO_BIT | value)).sum(axis=(1, 2)) for value in range(1, len(view.organs) + 1)]
        np.testing.assert_array_equal(written.counts(case, len(overlay), view.organs), np.stack(by_slice, axis=1))
    return overlays, record


def distinct(seed=0):
    """Scores without ties, half of them positive."""
    return (np.random.default_rng(seed).permutation(VOXELS).reshape(SHAPE) - VOXELS // 2 + 0.5) / 1000


@pytest.mark.parametrize("gamma", [0.0, 0.33, 0.66, 1.0])
@pytest.mark.parametrize("state", [M, H])
def test_the_highest_scores_of_the_exact_number_of_candidates(tmp_path, state, gamma):
    scores = distinct()
    overlays, record = run_round(told(-1.0, scores), one_case(tmp_path, (A, state)), tmp_path, gamma)
    candidates = int((scores > 0).sum())
    selected = math.ceil(gamma * candidates)
    expected = np.zeros(SHAPE, np.uint8)
    expected.flat[np.argsort(-scores, axis=None)[:selected]] = PSEUDO_BIT | 2
    np.testing.assert_array_equal(overlays["a"], expected)
    counts = {"candidates": candidates, "selected": selected, "kept": selected}
    assert record == {"round": 1, "gamma": gamma, "scope": "volume", "cases": {"a": {"pancreas": counts}}}


def test_one_half_is_no_positive(tmp_path):
    _, record = run_round(told(-1.0, 0.0), one_case(tmp_path, (A, M)), tmp_path)
    assert record["cases"]["a"]["pancreas"] == {"candidates": 0, "selected": 0, "kept": 0}


def test_ties_go_to_the_first_voxels(tmp_path):
    overlays, _ = run_round(told(-1.0, 3.0), one_case(tmp_path, (A, M)), tmp_path, gamma=0.3)
    flat = overlays["a"].ravel()
    selected = math.ceil(0.3 * VOXELS)
    assert (flat[:selected] == PSEUDO_BIT | 2).all()
    assert (flat[selected:] == 0).all()


def test_scores_that_sigmoid_rounds_to_one_are_told_apart(tmp_path):
    scores = distinct() / 10 + 40
    assert torch.sigmoid(torch.tensor(scores).float()).unique().tolist() == [1.0]
    overlays, _ = run_round(told(-1.0, scores), one_case(tmp_path, (A, M)), tmp_path, gamma=0.25)
    assert scores[overlays["a"] > 0].min() > scores[overlays["a"] == 0].max()


@pytest.mark.parametrize(("scope", "per_segment"), [("volume", VOXELS), ("slice", VOXELS // SHAPE[0])])
def test_each_segment_gives_its_own_share(tmp_path, scope, per_segment):
    """Scores rise from slice to slice: over the volume only the last slices are chosen, by slice all of them."""
    scores = distinct() / 1000 + np.arange(1, 7).reshape(6, 1, 1)
    overlays, record = run_round(told(-1.0, scores), one_case(tmp_path, (A, M)), tmp_path, gamma=0.5, scope=scope)
    by_slice = (overlays["a"] > 0).sum(axis=(1, 2))
    half, plane = math.ceil(0.5 * per_segment), VOXELS // SHAPE[0]
    assert by_slice.tolist() == ([0, 0, 0, plane, plane, plane] if scope == "volume" else [half] * 6)
    assert record["scope"] == scope
    assert record["cases"]["a"]["pancreas"]["selected"] == by_slice.sum()


def test_a_slice_rounds_up_on_its_own(tmp_path):
    scores = np.full(SHAPE, -1.0)
    scores[0, 0, :1], scores[1, 0, :2], scores[3, 0, :10] = 1.0, 1.0, 1.0
    overlays, _ = run_round(told(-1.0, scores), one_case(tmp_path, (A, M)), tmp_path, gamma=0.33, scope="slice")
    assert (overlays["a"] > 0).sum(axis=(1, 2)).tolist() == [1, 1, 0, 4, 0, 0]


def test_two_organs_that_want_a_voxel(tmp_path):
    """The higher score has it; at equal scores the lower organ; nobody gets a replacement for what was lost."""
    liver, pancreas = np.full(SHAPE, -1.0), np.full(SHAPE, -1.0)
    liver[0, 0, :6] = [5, 4, 3, 2, 1, 1]
    pancreas[0, 0, :6] = [4, 5, 3, -1, 1, 2]
    overlays, record = run_round(told(liver, pancreas), one_case(tmp_path, (M, M)), tmp_path, gamma=1.0)
    assert overlays["a"][0, 0, :6].tolist() == [PSEUDO_BIT | organ for organ in (1, 2, 1, 1, 1, 2)]
    assert record["cases"]["a"] == {
        "liver": {"candidates": 6, "selected": 6, "kept": 4},
        "pancreas": {"candidates": 5, "selected": 5, "kept": 2},
    }


def test_what_an_organ_did_not_select_it_does_not_block(tmp_path):
    liver, pancreas = np.full(SHAPE, -1.0), np.full(SHAPE, -1.0)
    liver[0, 0, :4] = [9, 8, 7, 6]
    pancreas[0, 0, :4] = [1, 2, 3, 4]
    overlays, _ = run_round(told(liver, pancreas), one_case(tmp_path, (M, M)), tmp_path, gamma=0.5)
    assert overlays["a"][0, 0, :4].tolist() == [PSEUDO_BIT | organ for organ in (1, 1, 2, 2)]


@pytest.mark.parametrize("state", [A, X])
def test_what_is_annotated_or_absent_gets_none(tmp_path, state):
    overlays, record = run_round(told(50.0, 1.0), one_case(tmp_path, (state, M)), tmp_path, gamma=1.0)
    assert (overlays["a"] == PSEUDO_BIT | 2).all()
    assert list(record["cases"]["a"]) == ["pancreas"]


def test_a_case_without_missing_organs_has_no_overlay(tmp_path):
    overlays, record = run_round(told(5.0, 5.0), one_case(tmp_path, (A, X)), tmp_path)
    assert overlays == {}
    assert record["cases"] == {}


def test_human_labels_and_void_are_no_candidates(tmp_path):
    """The liver was drawn, a part of the missing pancreas too, and a region is void."""
    labels = truth()
    labels[5] = VOID
    view = one_case(tmp_path, (A, M), labels)
    overlays, record = run_round(told(-1.0, 5.0), view, tmp_path, gamma=1.0)
    np.testing.assert_array_equal(overlays["a"], np.where(labels == 0, PSEUDO_BIT | 2, 0))
    assert record["cases"]["a"]["pancreas"]["candidates"] == (labels == 0).sum()
    seen = TrainingView(view.store, view.store.declarations(), ["a"], open_round(tmp_path / "rounds", 1)).labels("a")
    np.testing.assert_array_equal(seen[labels > 0], labels[labels > 0])


def test_hidden_human_labels_are_candidates_like_any_other_voxel(tmp_path):
    overlays, _ = run_round(told(-1.0, 5.0), one_case(tmp_path, (A, H), truth()), tmp_path, gamma=1.0)
    assert (overlays["a"][truth() == 2] == PSEUDO_BIT | 2).all()
    assert (overlays["a"][truth() == 1] == 0).all()


def test_no_file_of_the_store_changes(tmp_path):
    view = one_case(tmp_path, (M, H), truth())
    before = tree(tmp_path / "store")
    run_round(told(distinct(1), distinct(2)), view, tmp_path)
    assert tree(tmp_path / "store") == before


def test_a_round_starts_from_human_labels(tmp_path):
    view = one_case(tmp_path, (A, M))
    first, _ = run_round(told(-1.0, distinct(1)), view, tmp_path)
    second, _ = run_round(told(-1.0, -distinct(1)), view, tmp_path, number=2)
    assert not ((first["a"] > 0) & (second["a"] > 0)).any()  # nothing of the first round is carried over
    with_overlay = TrainingView(view.store, view.store.declarations(), ["a"], open_round(tmp_path / "rounds", 1))
    with pytest.raises(ValueError, match="rounds do not accumulate"):
        relabel(told(-1.0, 1.0), with_overlay, tmp_path / "rounds", Round(3, 0.5, "volume"))
    assert existing_rounds(tmp_path / "rounds") == [1, 2]


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_a_real_network_against_plain_numpy(store, smiler, tmp_path, scope):
    """But for the few voxels whose scores two ways of interpolating may order differently: rounding decides there."""
    model = smiler.load_model()
    balance(model, ct()[:, None])  # about half of the voxels are candidates
    view = TrainingView(store, store.declarations(), smiler.cases("train"))
    overlays, record = run_round(model, view, tmp_path, gamma=0.4, scope=scope)
    assert set(overlays) == {"train_0", "train_1", "train_2"}
    for case, overlay in overlays.items():
        scores = model.upsample(predict_logits(model, view.image(case)), SHAPE[1:]).numpy()
        free = view.visible_labels(case) == 0
        winner, best = np.zeros(SHAPE, np.uint8), np.full(SHAPE, -np.inf)
        within, close = upsampled_logit_error(np.abs(scores).max()), np.zeros(SHAPE, bool)
        for k, state in enumerate(view.states[case]):
            if state not in (M, H):
                continue
            candidates, selected = free & (scores[:, k] > 0), np.zeros(SHAPE, bool)
            unsure = free & (np.abs(scores[:, k]) <= within)
            for segment in [slice(None)] if scope == "volume" else [slice(z, z + 1) for z in range(SHAPE[0])]:
                places = np.flatnonzero(candidates[segment])
                order = places[np.argsort(-scores[:, k][segment].ravel()[places], kind="stable")]
                taken = math.ceil(0.4 * len(places))
                selected[segment].flat[order[:taken]] = True
                for last in order[max(0, taken - 1) : taken + 1]:  # on both sides of the cut
                    at_cut = np.abs(scores[:, k][segment] - scores[:, k][segment].flat[last]) <= within
                    close[segment] |= candidates[segment] & at_cut
            close |= unsure | (selected & (np.abs(scores[:, k] - best) <= within))
            wins = selected & (scores[:, k] > best)
            winner[wins], best[wins] = PSEUDO_BIT | (k + 1), scores[:, k][wins]
            counts = record["cases"][case][ORGANS[k]]
            assert abs(counts["candidates"] - candidates.sum()) <= unsure.sum()
            assert abs(counts["selected"] - selected.sum()) <= unsure.sum()
            assert counts["candidates"] > 100
        assert close.mean() < 0.01
        np.testing.assert_array_equal(np.where(close, 0, overlay), np.where(close, 0, winner))
        for organ, counts in record["cases"][case].items():
            assert counts["kept"] == (overlay == PSEUDO_BIT | (ORGANS.index(organ) + 1)).sum()


def three_cases(tmp_path):
    store = make_store(tmp_path / "store", {name: truth() for name in "abc"}, {(name, "pancreas"): H for name in "abc"})
    return TrainingView(store, store.declarations(), list("abc"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_an_unfinished_round_leaves_nothing_and_keeps_the_old_one(tmp_path, monkeypatch, error):
    view, rounds = three_cases(tmp_path), tmp_path / "rounds"
    model = Told(np.ones((18, 2, *SHAPE[1:])))
    relabel(model, view, rounds, Round(1, 0.5, "volume"))
    before, written = tree(rounds), []

    def fails(path, array):
        if len(written) == 2:
            raise error
        written.append(path)
        write_array(path, array)

    monkeypatch.setattr(module, "write_array", fails)
    model.asked = 0
    for number in (1, 2):
        written.clear()
        model.asked = 0
        expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            relabel(model, view, rounds, Round(number, 0.9, "volume"))
        assert len(written) == 2
        assert tree(rounds) == before
        assert [folder.name for folder in rounds.iterdir()] == ["1"]


def test_what_a_kill_left_behind_is_no_round_and_does_not_disturb(tmp_path):
    rounds = tmp_path / "rounds"
    for folder in (".1.unfinished", "2"):
        (rounds / folder).mkdir(parents=True)
        (rounds / folder / "old.b2nd").touch()
    assert existing_rounds(rounds) == []
    view = one_case(tmp_path, (A, M))
    run_round(told(-1.0, 1.0), view, tmp_path, number=2)
    run_round(told(-1.0, 1.0), view, tmp_path, number=1)
    assert sorted(tree(rounds)) == ["1/a.b2nd", "1/round.json", "2/a.b2nd", "2/round.json"]
    assert existing_rounds(rounds) == [1, 2]


def test_a_round_can_be_repeated(tmp_path):
    view = one_case(tmp_path, (A, M))
    run_round(told(-1.0, 1.0), view, tmp_path, gamma=0.9)
    overlays, record = run_round(told(-1.0, 1.0), view, tmp_path, gamma=0.1)
    assert record["gamma"] == 0.1
    assert (overlays["a"] > 0).sum() == math.ceil(0.1 * VOXELS)


def test_a_record_can_be_read_again(tmp_path):
    _, record = run_round(told(-1.0, 1.0), one_case(tmp_path, (A, M)), tmp_path, gamma=0.25, scope="slice")
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
    with pytest.raises(InputError, match=r"round\.json: .*; remove the folder"):
        open_round(tmp_path, 1)


@pytest.fixture
def stored(tmp_path):
    """A round with two organs in one case, and nothing in another."""
    overlay = np.zeros(SHAPE, np.uint8)
    overlay[2, :3, 0] = overlay[4, 0, :5] = PSEUDO_BIT | 1
    overlay[0, 7, 7] = PSEUDO_BIT | 2
    nothing = dict.fromkeys(("candidates", "selected", "kept"), 0)
    with write_round(tmp_path, Round(1, 0.5, "volume"), ORGANS) as written:
        written.add("a", overlay, {organ: nothing for organ in ORGANS})
        written.add("b", np.zeros(SHAPE, np.uint8), {"liver": nothing})
    return tmp_path


COUNTS = [[0, 1], [0, 0], [3, 0], [0, 0], [5, 0], [0, 0]]


def edit_record(rounds, change):
    file = rounds / "1" / "round.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def test_pseudo_labels_are_counted_by_slice(stored):
    (stored / "1" / "a.b2nd").unlink()  # nobody looks at it
    found = open_round(stored, 1)
    assert found.counts("a", SHAPE[0], ORGANS).tolist() == COUNTS
    for case in ("b", "nobody"):
        assert not found.counts(case, SHAPE[0], ORGANS).any()
        assert found.counts(case, SHAPE[0], ORGANS).shape == (SHAPE[0], len(ORGANS))


@pytest.mark.parametrize(
    "slices",
    [None, [], {}, {"a": {}}, {"a": {}, "b": 3}, {"a": {"liver": [0, [1.5]]}, "b": {}},
     {"a": {"liver": [-1, [1]]}, "b": {}}, {"a": {"liver": [0, [-1]]}, "b": {}}, {"a": {"liver": [0]}, "b": {}}],
    ids=str,
)  # fmt: skip
def test_damaged_counts_of_slices_are_named(stored, slices):
    edit_record(stored, lambda record: record.update(slices=slices))
    with pytest.raises(InputError, match=r"round\.json: cannot be read as a relabelling round"):
        open_round(stored, 1)


@pytest.mark.parametrize("counts", [{"spleen": [0, [1]]}, {"liver": [5, [1, 1]]}], ids=str)
def test_counts_of_another_volume_are_refused(stored, counts):
    edit_record(stored, lambda record: record["slices"].update(a=counts))
    with pytest.raises(InputError, match=r"round\.json: the pseudo-labels of case a are not those of its volume"):
        open_round(stored, 1).counts("a", SHAPE[0], ORGANS)


def test_an_overlay_that_is_gone_is_one_sentence(stored):
    file = stored / "1" / "a.b2nd"
    file.unlink()
    with pytest.raises(InputError, match=re.escape(f"{file}: there is no such file; run 'smile-fast relabel' again")):
        open_round(stored, 1).pseudo_labels("a", [2])


def test_a_round_that_is_not_there_is_one_sentence(stored):
    with pytest.raises(InputError, match=r"2/round\.json: there is no such file"):
        open_round(stored, 2)


def test_rounds_are_undone_from_the_last(tmp_path):
    view, rounds = one_case(tmp_path, (A, M)), tmp_path / "rounds"
    for number in (1, 2, 10):
        run_round(told(-1.0, 1.0), view, tmp_path, number=number)
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
    run_round(told(-1.0, 1.0), view, tmp_path)
    run_round(told(-1.0, 1.0), view, tmp_path, number=2)
    (rounds / "2" / "round.json").unlink()
    (rounds / ".3.dropped").mkdir()
    (rounds / "4").touch()  # a file is no round
    assert undo_rounds(rounds, keep=1) == [2]
    assert sorted(path.name for path in rounds.iterdir()) == ["1", "4"]


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_a_round_that_cannot_be_removed_is_named_and_not_left_in_part(tmp_path, monkeypatch, step):
    rounds = tmp_path / "rounds"
    run_round(told(-1.0, 1.0), one_case(tmp_path, (A, M)), tmp_path)
    before = tree(rounds)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(*((module.shutil, "rmtree") if step == "rmtree" else (module.Path, "rename")), refused)
        with pytest.raises(InputError, match=r"rounds/1: round 1 cannot be removed \(Permission denied\)"):
            undo_rounds(rounds, keep=0)
    if step == "rename":
        assert tree(rounds) == before
    assert existing_rounds(rounds) == ([1] if step == "rename" else [])
    undo_rounds(rounds, keep=0)
    assert list(rounds.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="rounds/1: round 1 cannot be written"):
        relabel(told(-1.0, 1.0), one_case(tmp_path, (A, M)), tmp_path / "file" / "rounds", Round(1, 0.5, "volume"))


def test_a_round_can_be_given_up_between_two_cases(store, smiler, tmp_path):
    class Enough(Exception):
        pass

    def check(seen=[]):  # noqa: B006 - remembers its calls
        seen.append(1)
        if len(seen) == 2:
            raise Enough

    view = TrainingView(store, store.declarations(), smiler.cases("train"))
    with pytest.raises(Enough):
        relabel(smiler.load_model(), view, tmp_path / "rounds", Round(1, 0.5, "volume"), check=check)
    assert list((tmp_path / "rounds").iterdir()) == []
