"""One round of SMILEr: which voxels become pseudo-labels."""

import itertools
import math
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from smile_fast.data.store import Store
from smile_fast.pipeline import Here
from smile_fast.training import relabel as module
from smile_fast.training import unfinished_round
from smile_fast.training.inference import predict_logits
from smile_fast.training.mean_confidence import mean_confidences
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round, existing_rounds, open_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BIT, VOID
from tests.cohorts import tree
from tests.runs import ORGANS, SHAPE, balance, ct, truth
from tests.tolerances import upsampled_logit_error
from tests.training.relabelling import VOXELS, A, H, M, X, answering, distinct, one_case, run_round


@pytest.mark.parametrize("gamma", [0.0, 0.33, 0.66, 1.0])
@pytest.mark.parametrize("state", [M, H])
def test_the_highest_scores_of_the_exact_number_of_candidates(tmp_path, state, gamma):
    scores = distinct()
    overlays, record = run_round(answering(-1.0, scores), one_case(tmp_path, (A, state)), tmp_path, gamma)
    candidates = int((scores > 0).sum())
    selected = math.ceil(gamma * candidates)
    expected = np.zeros(SHAPE, np.uint8)
    expected.flat[np.argsort(-scores, axis=None)[:selected]] = PSEUDO_BIT | 2
    np.testing.assert_array_equal(overlays["a"], expected)
    counts = {"candidates": candidates, "selected": selected, "kept": selected}
    assert record == {"round": 1, "gamma": gamma, "scope": "volume", "cases": {"a": {"pancreas": counts}}}


def test_a_round_says_how_sure_the_network_is_of_its_pseudo_labels(tmp_path):
    scores = distinct() / 1000
    stored = relabel(answering(-1.0, scores), one_case(tmp_path, (M, M)), tmp_path / "rounds", Round(1, 0.3, "volume"))
    chosen = scores[stored.pseudo_labels("a") == PSEUDO_BIT | 2]
    mean = torch.as_tensor(chosen).float().sigmoid().mean().item()
    assert open_round(tmp_path / "rounds", 1).confidences == {"a": {"pancreas": pytest.approx(mean)}}


def test_the_mean_probability_is_that_of_the_low_pixels_under_the_pseudo_labels():
    stride, depth, height, width = 4, 5, 30, 26  # low pixels that are cut at the border
    logits = 3 * torch.randn(depth, 3, 8, 7, generator=torch.Generator().manual_seed(0))
    overlay = torch.zeros((depth, height, width), dtype=torch.uint8)
    overlay[1:4, 5:20, 1:9] = PSEUDO_BIT | 2
    overlay[2, :, 20:] = PSEUDO_BIT | 3
    wide = logits.double().sigmoid().repeat_interleave(stride, 2).repeat_interleave(stride, 3)[:, :, :height, :width]
    expected = {organ: wide[:, organ][overlay == PSEUDO_BIT | organ + 1].mean().item() for organ in (1, 2)}
    assert mean_confidences(logits, overlay, [0, 1, 2], stride) == pytest.approx(expected)


def test_one_half_is_no_positive(tmp_path):
    _, record = run_round(answering(-1.0, 0.0), one_case(tmp_path, (A, M)), tmp_path)
    assert record["cases"]["a"]["pancreas"] == {"candidates": 0, "selected": 0, "kept": 0}


def test_ties_go_to_the_first_voxels(tmp_path):
    overlays, _ = run_round(answering(-1.0, 3.0), one_case(tmp_path, (A, M)), tmp_path, gamma=0.3)
    flat = overlays["a"].ravel()
    selected = math.ceil(0.3 * VOXELS)
    assert (flat[:selected] == PSEUDO_BIT | 2).all()
    assert (flat[selected:] == 0).all()


def test_scores_that_sigmoid_rounds_to_one_are_still_ordered(tmp_path):
    scores = distinct() / 10 + 40
    assert torch.sigmoid(torch.tensor(scores).float()).unique().tolist() == [1.0]
    overlays, _ = run_round(answering(-1.0, scores), one_case(tmp_path, (A, M)), tmp_path, gamma=0.25)
    assert scores[overlays["a"] > 0].min() > scores[overlays["a"] == 0].max()


@pytest.mark.parametrize(("scope", "per_segment"), [("volume", VOXELS), ("slice", VOXELS // SHAPE[0])])
def test_each_segment_gives_its_own_share(tmp_path, scope, per_segment):
    """Scores rise from slice to slice: over the volume only the last slices are chosen, by slice all of them."""
    scores = distinct() / 1000 + np.arange(1, 7).reshape(6, 1, 1)
    overlays, record = run_round(answering(-1.0, scores), one_case(tmp_path, (A, M)), tmp_path, gamma=0.5, scope=scope)
    by_slice = (overlays["a"] > 0).sum(axis=(1, 2))
    half, whole = math.ceil(0.5 * per_segment), VOXELS // SHAPE[0]
    assert by_slice.tolist() == ([0, 0, 0, whole, whole, whole] if scope == "volume" else [half] * 6)
    assert record["scope"] == scope
    assert record["cases"]["a"]["pancreas"]["selected"] == by_slice.sum()


def test_a_slice_rounds_up_on_its_own(tmp_path):
    scores = np.full(SHAPE, -1.0)
    scores[0, 0, :1], scores[1, 0, :2], scores[3, 0, :10] = 1.0, 1.0, 1.0
    overlays, _ = run_round(answering(-1.0, scores), one_case(tmp_path, (A, M)), tmp_path, gamma=0.33, scope="slice")
    assert (overlays["a"] > 0).sum(axis=(1, 2)).tolist() == [1, 1, 0, 4, 0, 0]


def test_two_organs_that_want_a_voxel(tmp_path):
    """The higher score has it; at equal scores the lower organ; what was lost is not replaced."""
    liver, pancreas = np.full(SHAPE, -1.0), np.full(SHAPE, -1.0)
    liver[0, 0, :6] = [5, 4, 3, 2, 1, 1]
    pancreas[0, 0, :6] = [4, 5, 3, -1, 1, 2]
    overlays, record = run_round(answering(liver, pancreas), one_case(tmp_path, (M, M)), tmp_path, gamma=1.0)
    assert overlays["a"][0, 0, :6].tolist() == [PSEUDO_BIT | organ for organ in (1, 2, 1, 1, 1, 2)]
    assert record["cases"]["a"] == {
        "liver": {"candidates": 6, "selected": 6, "kept": 4},
        "pancreas": {"candidates": 5, "selected": 5, "kept": 2},
    }


def test_what_an_organ_did_not_select_it_does_not_block(tmp_path):
    liver, pancreas = np.full(SHAPE, -1.0), np.full(SHAPE, -1.0)
    liver[0, 0, :4] = [9, 8, 7, 6]
    pancreas[0, 0, :4] = [1, 2, 3, 4]
    overlays, _ = run_round(answering(liver, pancreas), one_case(tmp_path, (M, M)), tmp_path, gamma=0.5)
    assert overlays["a"][0, 0, :4].tolist() == [PSEUDO_BIT | organ for organ in (1, 1, 2, 2)]


@pytest.mark.parametrize("state", [A, X])
def test_what_is_annotated_or_absent_gets_none(tmp_path, state):
    overlays, record = run_round(answering(50.0, 1.0), one_case(tmp_path, (state, M)), tmp_path, gamma=1.0)
    assert (overlays["a"] == PSEUDO_BIT | 2).all()
    assert list(record["cases"]["a"]) == ["pancreas"]


def test_a_case_without_missing_organs_has_no_overlay(tmp_path):
    overlays, record = run_round(answering(5.0, 5.0), one_case(tmp_path, (A, X)), tmp_path)
    assert overlays == {}
    assert record["cases"] == {}


def test_human_labels_and_void_are_no_candidates(tmp_path):
    """The liver was drawn, a part of the missing pancreas too, and a region is void."""
    labels = truth()
    labels[5] = VOID
    view = one_case(tmp_path, (A, M), labels)
    overlays, record = run_round(answering(-1.0, 5.0), view, tmp_path, gamma=1.0)
    np.testing.assert_array_equal(overlays["a"], np.where(labels == 0, PSEUDO_BIT | 2, 0))
    assert record["cases"]["a"]["pancreas"]["candidates"] == (labels == 0).sum()
    seen = TrainingView(view.store, view.store.declarations(), ["a"], open_round(tmp_path / "rounds", 1)).labels("a")
    np.testing.assert_array_equal(seen[labels > 0], labels[labels > 0])


def test_hidden_human_labels_are_candidates_like_any_other_voxel(tmp_path):
    overlays, _ = run_round(answering(-1.0, 5.0), one_case(tmp_path, (A, H), truth()), tmp_path, gamma=1.0)
    assert (overlays["a"][truth() == 2] == PSEUDO_BIT | 2).all()
    assert (overlays["a"][truth() == 1] == 0).all()


def test_no_file_of_the_store_changes(tmp_path):
    view = one_case(tmp_path, (M, H), truth())
    before = tree(tmp_path / "store")
    run_round(answering(distinct(1), distinct(2)), view, tmp_path)
    assert tree(tmp_path / "store") == before


def test_a_round_starts_from_human_labels(tmp_path):
    view = one_case(tmp_path, (A, M))
    first, _ = run_round(answering(-1.0, distinct(1)), view, tmp_path)
    second, _ = run_round(answering(-1.0, -distinct(1)), view, tmp_path, number=2)
    assert not ((first["a"] > 0) & (second["a"] > 0)).any()  # nothing of the first round is carried over
    with_overlay = TrainingView(view.store, view.store.declarations(), ["a"], open_round(tmp_path / "rounds", 1))
    with pytest.raises(ValueError, match="rounds do not accumulate"):
        relabel(answering(-1.0, 1.0), with_overlay, tmp_path / "rounds", Round(3, 0.5, "volume"))
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


def three_cases(store, smiler):
    return smiler.load_model(), TrainingView(store, store.declarations(), smiler.cases("train"))


def test_a_case_is_read_while_one_is_computed_and_one_is_written(store, smiler, tmp_path, monkeypatch):
    """Writing the first case waits until the third is being read: one after the other, neither would happen."""
    third_is_read = threading.Event()
    read_image, write = Store.read_image, unfinished_round.write_array
    read, wrote = [], []

    def read_slowly(self, case, slices=slice(None)):
        read.append(case)
        if len(read) == 3:
            third_is_read.set()
        return read_image(self, case, slices)

    def write_slowly(folder, case, overlay):
        assert third_is_read.wait(60)  # only a defect takes that long
        wrote.append(case)
        return write(folder, case, overlay)

    monkeypatch.setattr(Store, "read_image", read_slowly)
    monkeypatch.setattr(unfinished_round, "write_array", write_slowly)
    model, view = three_cases(store, smiler)
    relabel(model, view, tmp_path / "rounds", Round(1, 0.5, "volume"))
    assert read == wrote == list(view.cases)


def test_overlap_changes_no_byte(store, smiler, tmp_path, monkeypatch):
    model, view = three_cases(store, smiler)
    relabel(model, view, tmp_path / "overlapping", Round(1, 0.5, "volume"))
    monkeypatch.setattr(module, "worker_thread", lambda name: nullcontext(Here()))
    monkeypatch.setattr(module, "in_order", lambda function, items, executor, ahead: map(function, items))
    relabel(model, view, tmp_path / "in turn", Round(1, 0.5, "volume"))
    assert tree(tmp_path / "overlapping") == tree(tmp_path / "in turn") != {}


@pytest.mark.parametrize("stage", ["read", "infer", "write"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_error_in_any_stage_leaves_nothing(store, smiler, tmp_path, monkeypatch, stage, at):
    where = {
        "read": (Store, "read_image"),
        "infer": (module, "predict_logits"),
        "write": (unfinished_round, "write_array"),
    }
    original, number = getattr(*where[stage]), itertools.count(1)

    def fails(*arguments, **named):
        if next(number) == at:
            raise InputError(f"{stage}: broken")
        return original(*arguments, **named)

    monkeypatch.setattr(*where[stage], fails)
    model, view = three_cases(store, smiler)
    with pytest.raises(InputError, match=f"{stage}: broken"):
        relabel(model, view, tmp_path / "rounds", Round(1, 0.5, "volume"))
    assert list((tmp_path / "rounds").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "write"))]
