"""Confidence heads and temperatures: what they learn, from whom, and that all who relabel a round learn the same."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from smile_fast.cli.main import main
from smile_fast.supervision import State
from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.calibration import RANGE, fit_temperature, temperature_of
from smile_fast.training.curriculum.conduct import judge_of, round_of
from smile_fast.training.curriculum.fit import Fit, fit_round, fits
from smile_fast.training.curriculum.samples import BUDGET, CONTEXT, KINDS, OrganSample, at_voxels, draw_samples
from smile_fast.training.curriculum.scores import scored_logits
from smile_fast.training.relabel import relabel, relabel_share, weights_digest
from smile_fast.training.rounds import open_round
from smile_fast.training.unfinished_round import finish_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT, VOID
from smile_runtime.sharding import Shard
from tests.runs import SHAPE, make_store
from tests.tolerances import INTERPOLATED_LOGITS, ROUNDED_TEMPERATURE
from tests.trainings import CURRICULUM, overlays, scramble_hidden, trained

A, M, H = State.ANNOTATED, State.MISSING, State.HIDDEN
TRAIN = ["train_0", "train_1", "train_2"]
SURE, DOUBTFUL = 1.0, -1.0
LIVER, FALSE_ALARM, OVERLOOKED = slice(0, 10), slice(10, 20), slice(20, 24)  # rows


class Featured(nn.Module):
    """A network of stride 1: its features are the image, as a logit of the liver, and one that knows better."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(channels=1, output_stride=1, scan_stride=lambda spacing: 1)
        self.classifier = nn.Sequential(nn.Conv2d(2, 2, 1))
        with torch.no_grad():
            self.classifier[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]])[..., None, None])
            self.classifier[0].bias.copy_(torch.tensor([0.0, -9.0]))  # never a pancreas

    def forward(self, hu):  # even HU are told apart from odd ones
        hu = hu.float()
        knows = torch.where(hu.remainder(2) == 0, SURE, DOUBTFUL)
        return self.classifier(torch.cat([hu / 100, knows], dim=1))


def cohort(path, states=((A, M), (M, M)), *, liver=(LIVER, OVERLOOKED)):
    """Cases in which the network is surest where it is wrong: of its false alarms, and of what it overlooks."""
    rng = np.random.default_rng(0)
    image = np.full(SHAPE, -300)
    image[:, LIVER] = 100
    image[:, FALSE_ALARM] = 400
    image[:, OVERLOOKED] = -500
    image += 2 * rng.integers(-20, 20, SHAPE)
    image[:, FALSE_ALARM] += 1
    image[:, OVERLOOKED] += 1
    labels = np.zeros(SHAPE, np.uint8)
    for rows in liver:
        labels[:, rows] = 1
    names = [f"train_{number}" for number in range(len(states))]
    shown = {
        case: labels if own[0] is not M else np.zeros_like(labels) for case, own in zip(names, states, strict=True)
    }
    declared = {
        (case, organ): state
        for case, own in zip(names, states, strict=True)
        for organ, state in zip(("liver", "pancreas"), own, strict=True)
    }
    store = make_store(path, shown, declared, images=dict.fromkeys(names, image.astype(np.int16)))
    return TrainingView(store, store.declarations(), names)


def config(**brakes):
    return TrainConfig.from_options({"method": "smiler", "gamma_max": 1.0, **brakes})


def relabelled(path, view, settings, model=None):
    model = model or Featured()
    fit = fit_round(settings, model, view, view, 1) if fits(settings) else Fit.empty(model, len(view.organs))
    this = fit.of(round_of(settings, view, path, 1), view.organs)
    return relabel(model, view, path, this, heads=fit.heads)


def test_the_head_takes_right_candidates_and_negatives_before_wrong_ones(tmp_path):
    view = cohort(tmp_path / "store")
    plain, judged = (
        relabelled(tmp_path / score, view, config(score=score, negatives=0.5)).pseudo_labels("train_1")
        for score in ("probability", "confidence")
    )
    for found, rows, negatives in ((plain, FALSE_ALARM, True), (judged, LIVER, False)):
        taken = (found == (PSEUDO_BIT | 1)).any(axis=(0, 2))
        np.testing.assert_array_equal(np.flatnonzero(taken), np.arange(SHAPE[1])[rows])
        assert bool((found[:, OVERLOOKED] == PSEUDO_BACKGROUND).any()) is negatives
    assert (judged == PSEUDO_BACKGROUND).any()


def test_an_organ_that_nobody_annotated_is_ranked_by_probability_and_said(tmp_path, capsys):
    view, model = cohort(tmp_path / "store"), Featured()
    fit = fit_round(config(score="confidence"), model, view, view, 1)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warning.startswith("warning: --score: pancreas: ")
    this = fit.of(round_of(config(score="confidence"), view, tmp_path, 1), view.organs)
    assert this.braking.judged == ("liver",)
    shown = view.image("train_1"), this.braking, view.organs, fit.heads
    logits, ranks, doubts = scored_logits(model, *shown, box=view.box("train_1"), spacing=view.spacing("train_1"))
    for found in (ranks, doubts):
        assert torch.equal(found[:, 1], logits[:, 1])
        assert not torch.equal(found[:, 0], logits[:, 0])


def test_samples_are_of_annotated_organs_and_know_how_many_there_are(tmp_path):
    view = cohort(tmp_path / "store", ((A, M), (H, M)))
    liver, pancreas = draw_samples(Featured(), view, view.cases, (0, 1), lambda: None)
    assert pancreas.empty_handed
    n = len(view.box("train_0").slices) * SHAPE[2]
    assert liver.population == [4 * n, (SHAPE[1] - 24) * n, 10 * n, 10 * n]  # of the first case alone
    for kind in KINDS:
        assert len(liver.keys[kind]) == min(BUDGET, liver.population[kind])
        assert liver.seen[kind].shape[1] == 2 + CONTEXT
        torch.testing.assert_close(liver.seen[kind][:, 0], liver.logits(kind), **INTERPOLATED_LOGITS)
        assert bool((liver.logits(kind) > 0).all()) is (kind >= 2)


def test_void_is_in_no_sample(tmp_path):
    view = cohort(tmp_path / "store", ((A, M),))
    labels = view.store.read_labels("train_0").copy()
    labels[0] = VOID
    spoiled = make_store(tmp_path / "void", {"train_0": labels}, {("train_0", "pancreas"): M})
    images = TrainingView(spoiled, spoiled.declarations(), ["train_0"])
    one, other = (draw_samples(Featured(), each, each.cases, (0, 1), lambda: None)[0] for each in (view, images))
    assert sum(other.population) == sum(one.population) * (SHAPE[0] - 1) / SHAPE[0]


def test_features_lie_where_logits_do():
    low = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    full = nn.functional.interpolate(low, scale_factor=8.0, mode="bilinear", align_corners=False)
    places = torch.tensor([[n, y, x] for n in range(2) for y in (0, 3, 4, 17, 31) for x in (0, 5, 20, 39)])
    expected = full[places[:, 0], :, places[:, 1], places[:, 2]]
    torch.testing.assert_close(at_voxels(low, places, 8), expected, **INTERPOLATED_LOGITS)


def test_hidden_truth_changes_no_bit_of_what_is_learned(store, smiler, tmp_path):
    settings, model = config(score="confidence", calibrate=True), smiler.load_model()
    found = []
    for each in (store, scramble_hidden(tmp_path / "scrambled", store)):
        view = TrainingView(each, each.declarations(), TRAIN)
        fit = fit_round(settings, model, view, view, 1)
        found.append((fit, fit.of(round_of(settings, view, tmp_path, 1), view.organs)))
    (one, this), (other, that) = found
    for own, others in zip(one.tensors, other.tensors, strict=True):
        assert torch.equal(own.view(torch.uint8), others.view(torch.uint8))
    assert this == that
    assert this.braking.judged == ("liver", "pancreas")


def test_shares_that_learn_by_themselves_give_the_round_of_one(store, smiler, tmp_path):
    view, model = TrainingView(store, store.declarations(), TRAIN), smiler.load_model()
    settings = config(score="confidence", calibrate=True, negatives=0.2)
    expected = relabelled(tmp_path / "alone", view, settings, model)
    for number in (1, 2):
        fit = fit_round(settings, model, view, view, 1)
        this = fit.of(round_of(settings, view, tmp_path / "shares", 1), view.organs)
        relabel_share(model, view, tmp_path / "shares", this, shard=Shard(number, 2), heads=fit.heads)
    judge = judge_of(view, tmp_path / "shares", this)
    written = finish_round(tmp_path / "shares", this, view.cases, weights_digest(model), judge)
    one, other = ({f.name: f.read_bytes() for f in each.folder.iterdir()} for each in (expected, written))
    assert one == other
    assert open_round(tmp_path / "shares", 1).round.braking.fitted_to


def test_relabel_by_shares_writes_the_round_of_one_command(store, tmp_path):
    settings = {**CURRICULUM, "rounds": 1, "epochs": 0.5, "score": "confidence", "calibrate": True}
    run, found = trained(tmp_path / "run", store, **settings), []
    command = ["relabel", str(run.path), "--round", "2", "--device", "cpu"]
    for parts in ([["--gamma", "0.5"]], [["--gamma", "0.5", "--shard", f"{n}/2"] for n in (2, 1)] + [["--finish"]]):
        for part in parts:
            assert main([*command, *part]) == 0
        found.append({name: content for name, content in overlays(run).items() if name.startswith("2/")})
        if len(parts) > 1:  # of a round that is there nothing is left to do
            assert main([*command, *parts[0]]) == 0
        assert main(["relabel", str(run.path), "--undo", "1"]) == 0
    assert found[0] == found[1] != {}


def test_a_share_with_heads_of_another_seed_is_refused(tmp_path):
    view, model = cohort(tmp_path / "store"), Featured()
    for number, message in enumerate([None, "has other brakes"]):
        settings = config(score="confidence", seed=number)
        fit = fit_round(settings, model, view, view, 1)
        this = fit.of(round_of(settings, view, tmp_path, 1), view.organs)
        if message is None:
            relabel_share(model, view, tmp_path / "rounds", this, shard=Shard(1, 2), heads=fit.heads)
        else:
            with pytest.raises(InputError, match=message):
                relabel_share(model, view, tmp_path / "rounds", this, shard=Shard(2, 2), heads=fit.heads)


def test_a_round_by_confidence_wants_heads(tmp_path):
    view = cohort(tmp_path / "store")
    this = round_of(config(score="confidence"), view, tmp_path, 1)
    with pytest.raises(ValueError, match="heads must be given"):
        relabel(Featured(), view, tmp_path / "rounds", this)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_temperature_is_the_scale_by_which_logits_are_too_large(scale):
    right = torch.linspace(-4, 4, 41, dtype=torch.float64)  # log-odds of the truth: each voxel is both, in part
    truth, share = torch.cat([torch.ones(41), torch.zeros(41)]).double(), torch.cat([right, -right]).sigmoid()
    found = fit_temperature(scale * torch.cat([right, right]), truth, share)
    assert found == pytest.approx(scale, **ROUNDED_TEMPERATURE)


def test_a_temperature_counts_each_voxel_of_the_population():
    """Of logits of 2 and -2, one in five is wrong: log 4 is right for them, however few of each kind were drawn."""
    sample = OrganSample.empty(CONTEXT, torch.device("cpu"))
    for kind, (logit, voxels) in enumerate([(-2.0, 20), (-2.0, 80), (2.0, 20), (2.0, 80)]):
        sample.population[kind] = voxels
        sample.add(kind, torch.rand(5 + kind), torch.full((5 + kind, CONTEXT), logit))
    assert temperature_of(sample) == pytest.approx(2 / math.log(4), **ROUNDED_TEMPERATURE)
    sample.population[0] = sample.population[2] = 0  # never wrong
    assert temperature_of(sample) == pytest.approx(RANGE[0], **ROUNDED_TEMPERATURE)


def test_temperatures_divide_logits_and_decide_conflicts(tmp_path):
    view, model = cohort(tmp_path / "store"), Featured()
    this = round_of(config(calibrate=True), view, tmp_path, 1)
    warm = Fit(Fit.empty(model, 2).heads, torch.tensor([4.0, 0.0])).of(this, view.organs)
    assert warm.braking.temperatures == {"liver": 4.0}
    shown, where = view.image("train_1"), {"box": view.box("train_1"), "spacing": view.spacing("train_1")}
    plain, scaled = (scored_logits(model, shown, each.braking, view.organs, None, **where)[0] for each in (this, warm))
    assert torch.equal(scaled[:, 0], plain[:, 0] / 4)
    assert torch.equal(scaled[:, 1], plain[:, 1])


def test_temperatures_are_of_held_out_cases_where_they_show_the_organ(tmp_path, capsys):
    view = cohort(tmp_path / "store")
    right = cohort(tmp_path / "right", liver=(LIVER, FALSE_ALARM))  # what the network says
    nobody = TrainingView(view.store, view.declarations, [])
    by_training, by_held_out = (
        fit_round(config(calibrate=True), Featured(), view, held_out, 1).temperatures.tolist()
        for held_out in (nobody, right)
    )
    assert by_training[0] > 1
    assert by_held_out[0] == pytest.approx(RANGE[0], **ROUNDED_TEMPERATURE)
    assert by_training[1] == by_held_out[1] == 0  # of the pancreas, which nobody annotated
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("round 1, temperatures: liver ")
        assert line.endswith(", pancreas none")
