"""What a whole training does, and what it leaves in the run folder."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smile_fast.data.case_info import IMAGE
from smile_fast.models import Segmenter
from smile_fast.supervision import State
from smile_fast.training import loop, step
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.loop import Trainer, train
from smile_fast.training.metrics import read_metrics
from smile_fast.training.objectives import StepLoss
from smile_fast.training.rounds import open_round
from smile_fast.training.run import Run
from smile_fast.training.schedule import average_weight, learning_rate
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT
from tests.runs import ORGANS, SHAPE, make_store, truth
from tests.tolerances import CLIPPED_NORM_RELATIVE
from tests.trainings import (
    CPU,
    CURRICULUM,
    assert_same_bits,
    differs,
    metrics,
    new_run,
    overlays,
    steps_of,
    tiny_store,
    trained,
    weights,
)


def test_everything_that_a_run_folder_should_hold(smiler):
    assert {file.name for file in smiler.path.iterdir()} == {
        "annotations.csv",
        "checkpoint.previous.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
        "rounds",
    }
    assert steps_of(smiler) == 9 + 4 + 4
    assert set(weights(smiler)) == set(Segmenter(smiler.config.model).state_dict())
    assert all(torch.isfinite(tensor).all() for tensor in weights(smiler).values() if tensor.is_floating_point())


def test_metrics_tell_the_story(smiler):
    lines = read_metrics(smiler)
    assert [(line["iteration"], line["round"]) for line in lines] == [(9, 0), (13, 1), (17, 2)]
    for line in lines:
        assert list(line) == ["iteration", "round", "loss", "lr", "loss_per_organ", "seconds", "steps_per_second"]
        assert set(line["loss_per_organ"]) == set(ORGANS)
        assert 0 < line["loss"] < 2
        last = {0: 8 / 9, 1: 3 / 4, 2: 3 / 4}[line["round"]]
        assert line["lr"] == learning_rate(smiler.config, last)


def test_every_step_takes_the_learning_rate_of_its_place(store, tmp_path, monkeypatch):
    rates, plain = [], Trainer.step

    def recorded(self, inputs, run_step, lr):
        loss = plain(self, inputs, run_step, lr)
        rates.append({group["lr"] for group in self.learner.optimizer.param_groups})
        return loss

    monkeypatch.setattr(Trainer, "step", recorded)
    run = trained(tmp_path / "run", store, method="smiler", rounds=1, round_share=0.5)
    config = run.config
    expected = [learning_rate(config, s / 9) for s in range(9)] + [learning_rate(config, s / 4) for s in range(4)]
    assert rates == [{rate} for rate in expected]


def test_rounds_are_recorded(smiler):
    """Two rounds with a third and two thirds of the candidates, for missing and hidden organs only."""
    expected = {
        "train_0": ["pancreas"],
        "train_1": ["liver"],
        "train_2": ["liver", "pancreas"],
    }
    for number, gamma in ((1, 0.33), (2, 0.66)):
        folder = smiler.rounds_path / str(number)
        record = json.loads((folder / "round.json").read_text())
        head = ["schema", "round", "gamma", "scope", "braking", "stopped", "weights"]
        assert list(record) == [*head, "cases", "slices", "digests", "confidences", "sha256"]
        assert (record["round"], record["gamma"], record["scope"]) == (number, pytest.approx(gamma), "volume")
        assert {case: list(organs) for case, organs in record["cases"].items()} == expected
        for case, organs in record["cases"].items():
            overlay = open_round(smiler.rounds_path, number).pseudo_labels(case)
            assert (overlay.shape, overlay.dtype) == (SHAPE, np.uint8)
            for organ, counts in organs.items():
                assert list(counts) == ["candidates", "selected", "kept"]
                assert counts["kept"] == (overlay == PSEUDO_BIT | (ORGANS.index(organ) + 1)).sum()
                assert counts["kept"] <= counts["selected"] <= counts["candidates"]
                assert counts["selected"] == int(np.ceil(round(record["gamma"] * counts["candidates"], 9)))
            values = {PSEUDO_BIT | (ORGANS.index(organ) + 1) for organ in organs}
            assert set(np.unique(overlay)) <= {0, PSEUDO_BACKGROUND, *values}
        kept = {
            organ: sum(case[organ]["kept"] for case in record["cases"].values() if organ in case) for organ in ORGANS
        }
        assert max(kept.values()) > 100, "this training is to show what pseudo-labels do"


def test_the_same_seed_is_the_same_training(store, smiler, tmp_path):
    again = trained(tmp_path / "again", store, **CURRICULUM)
    assert_same_bits(weights(again), weights(smiler))
    assert metrics(again) == metrics(smiler)
    assert overlays(again) == overlays(smiler)
    other = trained(tmp_path / "other", store, **CURRICULUM, seed=1)
    assert differs(weights(other), weights(smiler))


@pytest.mark.parametrize("policy", ["naive", "channel-drop"])
def test_full_annotation_makes_smile_plain_multi_label_training(tmp_path, policy):
    """alpha = 0: bit for bit. With missing organs the same policies part."""
    labels = {name: truth() for name in ("train_0", "train_1", "train_2")}
    full = make_store(tmp_path / "full", labels)
    smile, other = (trained(tmp_path / name, full, policy=name, ema=0.9) for name in ("smile", policy))
    assert steps_of(smile) == 9
    assert_same_bits(weights(smile), weights(other))
    assert metrics(smile) == metrics(other)
    partial = tiny_store(tmp_path / "partial")
    smile, other = (trained(tmp_path / f"partial {name}", partial, policy=name) for name in ("smile", policy))
    assert differs(weights(smile), weights(other))


def test_smiler_begins_as_smile(store, tmp_path, monkeypatch):
    """Before its first round the curriculum is SMILE, bit for bit."""

    class FirstRound(BaseException):
        pass

    def stop(model, *arguments):
        at_first_round.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        raise FirstRound

    at_first_round = []
    smile = trained(tmp_path / "smile", store, **{**CURRICULUM, "method": "smile"})
    curriculum = new_run(tmp_path / "smiler", store, **CURRICULUM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "relabel_share", stop)
        with pytest.raises(FirstRound):
            train(curriculum, device=CPU)
    assert_same_bits(Checkpoint.load(curriculum.checkpoint_path).tensors["model"], trained_weights(smile))
    assert metrics(curriculum) == metrics(smile)
    # The round is computed with the weights that would be delivered.
    assert_same_bits({name: at_first_round[0][name] for name in weights(smile)}, weights(smile))


def trained_weights(run):
    """Not the averaged ones."""
    return Checkpoint.load(run.checkpoint_path).tensors["model"]


def test_a_round_trains_on_its_pseudo_labels(store, smiler, tmp_path, monkeypatch):
    """Each round sees its own overlay, and only that."""
    seen = []

    class Source(loop.BatchSource):
        def batch(self, step):
            seen.append((self.round_number, None if self.view.overlay is None else self.view.overlay.round.number))
            return super().batch(step)

    monkeypatch.setattr(loop, "BatchSource", Source)
    run = trained(tmp_path / "run", store, **CURRICULUM)
    assert set(seen) == {(0, None), (1, 1), (2, 2)}
    assert_same_bits(weights(run), weights(smiler))
    without = trained(tmp_path / "without", store, **{**CURRICULUM, "gamma_max": 0.001})
    assert differs(weights(without), weights(smiler))


def test_pseudo_negatives_are_a_choice(store, smiler, tmp_path):
    chosen = trained(tmp_path / "chosen", store, **CURRICULUM, pseudo_negative=True)
    one, other = (
        {name: content for name, content in overlays(run).items() if name.startswith("1/train_2-")}
        for run in (chosen, smiler)
    )
    assert one == other != {}  # the training before it is the same
    assert differs(weights(chosen), weights(smiler))


def test_averaged_weights_are_delivered(store, tmp_path):
    """And trained ones go on: the checkpoint of a run with average holds what a run without would have."""
    averaged, plain = trained(tmp_path / "averaged", store, ema=0.9), trained(tmp_path / "plain", store)
    checkpoint = Checkpoint.load(averaged.checkpoint_path)
    assert_same_bits(weights(averaged), checkpoint.tensors["average"])
    assert_same_bits(checkpoint.tensors["model"], weights(plain))
    assert differs(weights(averaged), weights(plain))
    assert "average" not in Checkpoint.load(plain.checkpoint_path).tensors


def test_the_average_is_updated_once_a_step(store, tmp_path, monkeypatch):
    weights_of_steps, update = [], step.update_average

    def counted(average, model, weight):
        weights_of_steps.append(weight)
        update(average, model, weight)

    monkeypatch.setattr(step, "update_average", counted)
    trained(tmp_path / "run", store, **CURRICULUM)
    assert weights_of_steps == [average_weight(0.9, t) for t in range(17)]


def gradient_norms(monkeypatch):
    """Norm of the whole gradient at each step, in the moment when the optimizer gets it."""
    norms, build = [], step.build_optimizer

    def norm_of(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack([p.grad.double().square().sum() for p in parameters]).sum().sqrt().item())

    def watched(model, config, **options):
        optimizer = build(model, config, **options)
        optimizer.register_step_pre_hook(norm_of)
        return optimizer

    monkeypatch.setattr(step, "build_optimizer", watched)
    return norms


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_a_gradient_is_clipped_before_the_optimizer_takes_it(store, tmp_path, monkeypatch, amp):
    norms = gradient_norms(monkeypatch)
    free = trained(tmp_path / "free", store, optimizer="sgd", amp=amp)
    limit = norms[0] / 2
    norms.clear()
    clipped = trained(tmp_path / "clipped", store, optimizer="sgd", amp=amp, clip_norm=limit)
    assert len(norms) == 9
    assert max(norms) <= limit * (1 + CLIPPED_NORM_RELATIVE)
    assert norms[0] > 0.99 * limit  # scaled down to the limit, not to nothing
    assert differs(weights(clipped), weights(free))


def test_a_limit_that_is_never_reached_and_none_are_the_same_training(store, tmp_path, monkeypatch):
    high = trained(tmp_path / "high", store, clip_norm=1e9)

    def never(*arguments):
        raise AssertionError("without a limit nothing is clipped")

    monkeypatch.setattr(step, "clip_grad_norm_", never)
    assert_same_bits(weights(trained(tmp_path / "off", store)), weights(high))


def test_validation_only_looks(store, tmp_path):
    """Watching the validation cases changes no weight, and happens as often as asked for."""
    settings = {"folds": 3, "fold": 1, "epochs": 1.5, "ema": 0.9}
    watched = trained(tmp_path / "watched", store, **settings, validate_every=0.5)
    alone = trained(tmp_path / "alone", store, **settings)
    assert_same_bits(weights(watched), weights(alone))
    lines = [line for line in metrics(watched) if "validation" in line]
    assert watched.cases("validation") == ["train_0"]
    assert [line["iteration"] for line in lines] == [3, 6, 9]
    for line in lines:
        assert set(line["validation"]) == {"liver"}  # its pancreas is hidden
        assert 0 <= line["validation"]["liver"] <= 1


def test_a_short_training_learns_a_bright_organ(tmp_path):
    """Sixty steps on a case with bright boxes: they are found in the other case, small ones too."""
    store = make_store(tmp_path / "store", {"train_0": truth(), "train_1": truth()})
    settings = {"batch_size": 6, "epochs": 60, "lr": 0.01, "ema": 0.9, "rotate": 0.0, "scale": 0.0}
    run = trained(tmp_path / "run", store, folds=2, validate_every=60, **settings)
    lines = read_metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    (validation,) = [line["validation"] for line in lines if "validation" in line]
    assert validation["liver"] > 0.7  # 0.88 when this was written
    assert validation["pancreas"] > 0.4  # 0.69


def test_the_first_probability_is_the_prior(tmp_path, monkeypatch):
    """SMILE counts an organ's voxels where it was drawn, the baseline everywhere."""
    priors = []

    class Stop(BaseException):
        pass

    def recorded(self, prior):
        priors.append(prior)
        raise Stop

    store = make_store(tmp_path / "store", {"a": truth(), "b": truth()}, {("b", "liver"): State.HIDDEN})
    monkeypatch.setattr(Segmenter, "set_prior", recorded)
    for method in ("smile", "smiler", "baseline"):
        with pytest.raises(Stop):
            trained(tmp_path / method, store, method=method)
    share = (truth() == 1).mean()
    assert [prior[0] for prior in priors] == [pytest.approx(share), pytest.approx(share), pytest.approx(share / 2)]


def test_a_budget_ends_with_the_step_that_uses_it_up(store, tmp_path, monkeypatch):
    """On a clock that only steps move on, 3/8 s each: of 9 s the training on human labels gets 6, the round 3."""
    plain, now = Trainer.step, [100.0]

    def timed(self, *arguments):
        now[0] += 0.375
        return plain(self, *arguments)

    monkeypatch.setattr(Trainer, "step", timed)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = new_run(tmp_path / "run", store, method="smiler", rounds=1, round_share=0.5, budget=9.0, epochs=1000.0)
    train(run, device=CPU)
    seconds = {line["round"]: line["seconds"] for line in read_metrics(run)}
    assert seconds == {0: 6.0, 1: 3.0}
    assert steps_of(run) == 16 + 8
    rates = [line["lr"] for line in read_metrics(run) if line["round"] == 0]
    assert rates[-1] < 0.5 * run.config.peak_lr  # the schedule follows the clock to its end


@pytest.mark.parametrize("at", [1, 9, 12])
def test_a_loss_that_is_lost_stops_the_training(store, tmp_path, monkeypatch, at):
    """In the first steps, in the last, and in a round."""
    run, plain, done = new_run(tmp_path / "run", store, **CURRICULUM), Trainer.step, []

    def poisoned(self, *arguments):
        loss = plain(self, *arguments)
        done.append(1)
        return StepLoss(loss.loss * float("nan"), loss.sums, loss.counts) if len(done) == at else loss

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(InputError, match=r"run: the loss became nan at step \d+; train again"):
        train(run, device=CPU)
    assert not run.model_path.exists()
    if run.checkpoint_path.exists():  # of a round that ended well
        assert all(torch.isfinite(t).all() for t in trained_weights(run).values() if t.is_floating_point())


def test_a_learning_rate_that_is_far_too_high_is_noticed(store, tmp_path):
    with pytest.raises(InputError, match=r"run: the loss became (nan|inf)"):
        trained(tmp_path / "run", store, lr=1e30, optimizer="sgd", epochs=3)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_large_seed_trains(store, tmp_path):
    run = trained(tmp_path / "run", store, seed=2**63 - 1, epochs=0.3)
    assert steps_of(run) == 3


def test_a_case_that_vanished_is_one_sentence(tmp_path):
    store = tiny_store(tmp_path / "store")
    run = new_run(tmp_path / "run", store)
    for case in ("train_0", "train_1", "train_2"):
        store.array_path(case, IMAGE).unlink()
    with pytest.raises(
        InputError, match=r"image-\w+\.b2nd: there is no such file; run 'smile-fast prepare --rehash' again"
    ):
        train(run, device=CPU)


def test_start_weights_are_used(store, tmp_path):
    source = trained(tmp_path / "source", store, epochs=0.3, seed=9)
    backbone = {name: t for name, t in weights(source).items() if name.startswith("backbone")}
    save_file(backbone, tmp_path / "w.safetensors")
    run = new_run(tmp_path / "run", store, tmp_path / "w.safetensors", epochs=0.3)
    train(run, resume=True, device=CPU)
    assert differs(weights(run), weights(trained(tmp_path / "without", store, epochs=0.3)))


def test_a_run_is_opened_with_what_it_was_made_with(smiler):
    assert Run.open(smiler.path).config == smiler.config


def test_the_narrowest_network_takes_large_patches(tmp_path):
    """In a process of its own: what convolutions do to memory that is not theirs ends it."""
    tiny_store(tmp_path / "store")
    command = (
        f"{sys.executable} -m smile_fast train {tmp_path / 'store'} {tmp_path / 'run'} --backbone resnet18 --width 8"
    )
    options = "--crop-size 256 --no-body-crop --batch-size 2 --epochs 0.3 --device cpu"
    done = subprocess.run([*command.split(), *options.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert steps_of(Run.open(tmp_path / "run")) == 3
