"""The brakes of a round against slow and plain ones, on logits that are made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from smile_fast.ops import pseudo_labels_upsampled
from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.agreement import PERTURBATIONS, agreeing_logits
from smile_fast.training.curriculum.conduct import judge_of, round_of
from smile_fast.training.curriculum.growth import growth_warnings, mean_candidates
from smile_fast.training.curriculum.limits import Limits, limited
from smile_fast.training.curriculum.ranges import OrganRange, annotated_ranges
from smile_fast.training.curriculum.selection import braked_pseudo_labels
from smile_fast.training.curriculum.settings import Brakes
from smile_fast.training.relabel import relabel, relabel_share, weights_digest
from smile_fast.training.rounds import open_round
from smile_fast.training.unfinished_round import finish_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT
from tests.runs import SHAPE, make_store
from tests.tolerances import SPREAD_OF_SQUARES
from tests.training.relabelling import A, H, M, answering, distinct, one_case

FREE = Limits()
SIZE = (4, 6, 5)


def scored(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, 6, 5, generator=generator)
    labels = (torch.rand(SIZE, generator=generator) < 0.2).byte()
    return logits, labels


def braked(logits, labels, *, limits=(FREE, FREE), gamma=0.5, scope="volume", **brakes):
    return braked_pseudo_labels(
        logits, labels, [0, 2], gamma, 1, scope, limits=limits, positions=np.arange(4), **brakes
    )


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_without_limits_the_selection_is_that_of_the_fused_operator(scope):
    logits, labels = scored()
    found, wanted = braked(logits, labels, scope=scope), pseudo_labels_upsampled(logits, labels, [0, 2], 0.5, 1, scope)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_surest_negatives_of_all_missing_organs_become_background(share):
    logits, labels = scored()
    overlay = braked(logits, labels, negatives=share)[0].numpy()
    sure = {
        place: max(float(logits[place[0], organ, place[1], place[2]]) for organ in (0, 2))
        for place in np.ndindex(SIZE)
        if labels[place] == 0
    }
    negative = sorted((place for place in sure if sure[place] < 0), key=lambda place: sure[place])
    wanted = set(negative[: math.ceil(share * len(negative))])
    assert {place for place in np.ndindex(SIZE) if overlay[place] == PSEUDO_BACKGROUND} == wanted
    rest = np.where(overlay == PSEUDO_BACKGROUND, 0, overlay)
    np.testing.assert_array_equal(rest, braked(logits, labels)[0].numpy())


def test_the_margin_adds_background_to_what_a_round_selects_without_it(tmp_path):
    """On both ways to select: the fused operator with the margin alone, and organ by organ beside other brakes."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2, 10:20, 10:20] = 2
    hidden = {("a", "pancreas"): H}
    store = make_store(tmp_path / "store", {"a": drawn, "b": drawn}, hidden)
    view = TrainingView(store, store.declarations(), ["a"])
    both = TrainingView(store, store.declarations(), ["a", "b"])
    scores = np.linspace(-2.0, 3.0, math.prod(SHAPE)).reshape(SHAPE)
    for other in ({}, {"one_component": True}):
        found = []
        for margin in (0.0, 1.0):
            rounds = tmp_path / f"{margin}-{len(other)}"
            this = round_of(config(margin=margin, **other), both, rounds, 1)
            relabel(answering(-1.0, scores), view, rounds, this)
            found.append(open_round(rounds, 1).pseudo_labels("a"))
        plain, braked = found
        np.testing.assert_array_equal(np.where(braked == PSEUDO_BACKGROUND, 0, braked), plain)
        assert not (braked == PSEUDO_BACKGROUND)[scores > 2.9].any()
        assert (braked == PSEUDO_BACKGROUND)[scores < 2.0].sum() > 0.3 * (scores < 2.0).sum()
    found = [open_round(tmp_path / f"1.0-{number}", 1).pseudo_labels("a") == PSEUDO_BACKGROUND for number in (0, 1)]
    np.testing.assert_array_equal(*found)


def test_a_room_is_the_ball_of_the_mean_volume_with_a_larger_radius():
    ball = 4 / 3 * math.pi * 30**3 / 1000  # ml, of a radius of 30 mm
    assert OrganRange(2, 0, ball, ball, ball).room_ml(15) == pytest.approx(4 / 3 * math.pi * 45**3 / 1000)


def test_an_organ_that_is_barred_gets_nothing_and_is_still_counted():
    logits, labels = scored()
    overlay, counts = braked(logits, labels, limits=(None, FREE))
    assert not (overlay == (PSEUDO_BIT | 1)).any()
    assert counts[0, 0] == ((logits[:, 0] > 0) & (labels == 0)).sum()
    assert counts[0, 1:].tolist() == [0, 0]
    assert counts[1, 2] == counts[1, 1] > 0


def component_of(candidates, start):
    found, todo = {start}, [start]
    while todo:
        at = todo.pop()
        for step in np.ndindex(3, 3, 3):
            near = tuple(a + s - 1 for a, s in zip(at, step, strict=True))
            if near not in found and all(0 <= n < s for n, s in zip(near, SIZE, strict=True)) and candidates[near]:
                found.add(near)
                todo.append(near)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_component_with_the_most_evidence_is_kept(seed):
    scores = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) - 1.2
    candidates = scores > 0
    kept = limited(candidates, scores, np.arange(4), Limits(one_component=True))
    components = {frozenset(component_of(candidates, tuple(place))) for place in candidates.nonzero().tolist()}
    assert len(components) > 1
    wanted = max(components, key=lambda places: sum(float(scores[place]) for place in places))
    assert {tuple(place) for place in kept.nonzero().tolist()} == wanted


def test_slices_that_were_left_out_separate_components():
    scores = torch.ones(SIZE)
    kept = limited(scores > 0, scores, np.array([0, 2, 3, 4]), Limits(one_component=True))
    assert kept.flatten(1).all(dim=1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [1, 3, 4, 8]])
@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_the_slices_with_the_most_evidence_are_kept(positions, most):
    scores = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    candidates = scores > 0
    kept = limited(candidates, scores, np.array(positions), Limits(slices=most))
    evidence = (scores * candidates).double().sum(dim=(1, 2)).tolist()
    starts = range(min(positions), max(positions) + 1)
    windows = [[p for p in positions if first <= p < first + most] for first in starts]
    best = max(windows, key=lambda window: sum(evidence[positions.index(p)] for p in window))
    wanted = candidates & torch.tensor([p in best for p in positions])[:, None, None]
    assert torch.equal(kept, wanted)


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_the_most_confident_voxels_up_to_the_volume_are_kept(most):
    scores = torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    kept = limited(scores > 0, scores, np.arange(4), Limits(voxels=most))
    wanted = sorted((score for score in scores.flatten().tolist() if score > 0), reverse=True)[:most]
    assert sorted(scores[kept].tolist(), reverse=True) == wanted


def test_limits_are_in_whole_slices_and_voxels_and_never_nothing():
    assert Limits.of(True, 15.0, 0.3, 5.0, 0.1) == Limits(True, 3, 3)
    assert Limits.of(False, 1.0, 0.01, 5.0, 0.1) == Limits(False, 1, 1)
    assert Limits.of(False, None, None, 5.0, 0.1) == FREE


def test_ranges_come_from_what_is_annotated_and_seen(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 0, 0], labels[0, 1, 1] = 1, 2
    view = one_case(tmp_path, (A, H), labels)
    sides = view.spacing("a")
    found = annotated_ranges(view)
    assert found["liver"].cases == 1
    assert found["liver"].most_ml == pytest.approx(2 * math.prod(sides) / 1000)
    assert found["liver"].mm == pytest.approx(2 * sides[0])
    assert found["pancreas"] == OrganRange(0, 0)  # hidden


def test_candidates_that_grow_or_are_too_large_are_said():
    def candidates(voxels):
        return {"a": {"liver": {"candidates": voxels, "selected": 0, "kept": 0}}}

    ranges, sizes = {"liver": OrganRange(1, 0, 1.2, 3.0, 2.0, 0.0, 1.0)}, {"a": 0.1}
    rounds = {number: mean_candidates(candidates(n), sizes) for number, n in ((1, 10), (2, 14), (3, 40))}
    assert growth_warnings(rounds, ranges, 1.5) == [
        "round 3: liver: its candidates grew from 1.4 to 4 ml a case and are 4 ml a case, annotated cases at most 3 ml"
    ]
    assert growth_warnings(rounds, {}, 3.0) == []
    assert growth_warnings({1: {"liver": 0.5}, 2: {"liver": 2.5}}, ranges, 1.5) == []  # into the range
    assert len(growth_warnings({1: {"liver": 0.5}, 2: {"liver": 2.5}}, {}, 1.5)) == 1  # of which nothing is known


def config(**brakes):
    return TrainConfig(method="smiler", brakes=Brakes(**brakes))


def test_without_brakes_a_round_says_nothing_of_them(tmp_path):
    assert round_of(config(margin=0.0), one_case(tmp_path, (A, M)), tmp_path, 1).braking is None


def test_an_organ_that_runs_away_is_stopped_in_its_round_and_in_later_ones(tmp_path):
    view, rounds = one_case(tmp_path, (A, M)), tmp_path / "rounds"
    few, many = np.full(SHAPE, -1.0), distinct()
    few[0, 0, :2] = 1.0
    brakes = config(stop=True)
    stopped = []
    for number, scores in enumerate([few, many, few], start=1):
        this = round_of(replace(brakes, rounds=3), view, rounds, number)
        relabel(answering(-1.0, scores), view, rounds, this)
        written = open_round(rounds, number)
        stopped.append(written.stopped)
        assert written.round == this
        assert bool(written.pseudo_labels("a").any()) is bool(written.confidences) is (number == 1)
        assert written.cases["a"]["pancreas"]["candidates"] > 0
    assert stopped == [(), ("pancreas",), ("pancreas",)]


def test_shares_and_a_finish_that_was_cut_short_give_the_same_round(tmp_path):
    view = one_case(tmp_path, (A, M))
    brakes = config(negatives=0.2, one_component=True, limit_slices=True, limit_volume=True, stop=True)
    few = np.full(SHAPE, -1.0)
    few[0, 0, 0] = 1.0
    files = {}
    for name in ("alone", "shares"):
        rounds = tmp_path / name
        relabel(answering(-1.0, few), view, rounds, round_of(brakes, view, rounds, 1))
        this, model = round_of(brakes, view, rounds, 2), answering(-1.0, distinct())
        if name == "alone":
            relabel(model, view, rounds, this)
        else:
            assert relabel_share(model, view, rounds, this) == 1
            assert relabel_share(model, view, rounds, this) == 0
            with pytest.raises(KeyboardInterrupt):
                finish_round(rounds, this, view.cases, weights_digest(model), interrupted)
            finish_round(rounds, this, view.cases, weights_digest(model), judge_of(view, rounds, this))
        files[name] = {path.name: path.read_bytes() for path in (rounds / "2").iterdir()}
    assert files["alone"] == files["shares"]
    assert (open_round(tmp_path / "alone", 2).pseudo_labels("a") == PSEUDO_BACKGROUND).any()


def interrupted(found):
    raise KeyboardInterrupt


def test_a_round_of_other_brakes_is_not_gone_on_with(tmp_path):
    view, model = one_case(tmp_path, (A, M)), answering(-1.0, distinct())
    relabel_share(model, view, tmp_path / "rounds", round_of(config(negatives=0.2), view, tmp_path / "rounds", 1))
    with pytest.raises(InputError, match="has other brakes"):
        relabel_share(model, view, tmp_path / "rounds", round_of(config(negatives=0.3), view, tmp_path / "rounds", 1))


@pytest.mark.parametrize(("name", "value"), [("negatives", 1.1), ("negatives", -0.1), ("growth", 1.0), ("stop", 1)])
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(InputError, match=f"^--{name}: "):
        Brakes(**{name: value})


def test_settings_are_flat_options_and_a_run_without_them_is_read():
    given = TrainConfig.from_options({"negatives": 0.1, "one_component": True})
    assert given.brakes == Brakes(negatives=0.1, one_component=True)
    assert TrainConfig.from_json(given.to_json()) == given
    record = given.to_json()
    del record["brakes"]
    assert TrainConfig.from_json(record).brakes == Brakes()


def test_agreement_is_the_mean_less_the_spread_of_perturbed_images():
    image = np.random.default_rng(0).integers(-100, 100, (2, 8, 6)).astype(np.int16)

    def predict(changed):  # sees the place, too: no shift leaves it alone
        low = torch.from_numpy(changed[:, ::2, ::2].astype(np.float32))
        return (low + 10 * torch.arange(12).view(4, 3))[:, None]

    found = agreeing_logits(predict, image, 2)
    for d, h, w in np.ndindex(2, 4, 3):
        seen = []
        for rows, columns, hu in PERTURBATIONS:
            place = ((h + rows) % 4) * 3 + (w + columns) % 3
            seen.append(float(image[d, 2 * h, 2 * w]) + hu + 10 * place)
        expected = np.mean(seen) - np.std(seen), np.mean(seen) + np.std(seen)
        assert [each[d, 0, h, w].item() for each in found] == pytest.approx(expected, **SPREAD_OF_SQUARES)


def test_doubt_makes_no_negative():
    logits, labels = scored()
    overlay = braked(logits, labels, negatives=1.0)[0]
    doubted = braked_pseudo_labels(
        logits, labels, [0, 2], 0.5, 1, "volume", limits=(FREE, FREE), positions=np.arange(4), negatives=1.0,
        upper=logits + 0.5,
    )[0]  # fmt: skip
    largest = logits[:, [0, 2]].amax(dim=1)
    assert torch.equal(doubted == PSEUDO_BACKGROUND, (overlay == PSEUDO_BACKGROUND) & (largest < -0.5))
