"""A round that makes the network worse on held-out annotated organs is undone, whoever is killed on the way."""

import signal
from itertools import count

import pytest

from smile_fast.cli.main import main
from smile_fast.supervision import State
from smile_fast.training import loop
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.curriculum.held_out import fell, goes_back, without_held_out
from smile_fast.training.loop import train
from smile_fast.training.metrics import MetricsLog, undone_rounds
from smile_fast.training.rounds import existing_rounds
from smile_fast.training.run import Run
from tests.training.rank_processes import successful
from tests.training.test_ranks_training import assert_same_outcome, options, spoiled
from tests.training.test_ranks_training import train as train_ranks
from tests.trainings import (
    CPU,
    CURRICULUM,
    TINY,
    assert_same_bits,
    differs,
    interrupted,
    metrics,
    new_run,
    overlays,
    tiny_store,
    trained,
    weights,
)

# Three cases for training and validation: 12 slices, 6 steps, and 2 in each of three rounds.
SETTINGS = {**CURRICULUM, "rounds": 3, "folds": 3, "fold": 1, "stop": True, "growth": 1000.0}


def scored(monkeypatch, dice_of):
    """Score a network by the number of steps that it has made."""

    def validate(model, view, ranks):
        return {"liver": 0.9, "pancreas": dice_of(int(model.backbone.state_dict()["bn1.num_batches_tracked"]))}

    monkeypatch.setattr(loop, "validate", validate)


def worse_in_round_2(steps):
    return {6: 0.5, 8: 0.6, 10: 0.57, 12: 0.9}[steps]


@pytest.fixture(scope="module")
def undone(store, tmp_path_factory):
    """A training whose second round is undone."""
    with pytest.MonkeyPatch.context() as patch:
        scored(patch, worse_in_round_2)
        return trained(tmp_path_factory.mktemp("undone") / "run", store, **SETTINGS)


def test_a_round_that_makes_it_worse_is_undone_and_the_last(store, undone, tmp_path, monkeypatch):
    scored(monkeypatch, worse_in_round_2)
    without = trained(tmp_path / "one round", store, **{**SETTINGS, "rounds": 3, "stop_tolerance": 0.1})
    assert existing_rounds(undone.rounds_path) == [1, 2]
    assert existing_rounds(without.rounds_path) == [1, 2, 3]
    assert differs(weights(undone), weights(without))
    # The final weights are those at the end of round 1.
    assert int(weights(undone)["backbone.bn1.num_batches_tracked"]) == 8
    lines = [line for line in metrics(undone) if "validation" in line]
    assert [(line["iteration"], line["round"], line["validation"]["pancreas"]) for line in lines] == [
        (6, 0, 0.5),
        (8, 1, 0.6),
        (10, 2, 0.57),
        (10, 2, 0.6),
    ]
    assert [line.get("undone", False) for line in lines] == [False, False, False, True]


def test_the_report_says_it(undone, tmp_path):
    assert undone_rounds(undone) == [2]
    assert main(["report", str(undone.path), "--output", str(tmp_path / "page.html")]) == 0
    assert "Round 2 was undone" in (tmp_path / "page.html").read_text()


def test_it_is_said_in_one_sentence(store, tmp_path, monkeypatch, capsys):
    scored(monkeypatch, worse_in_round_2)
    trained(tmp_path / "run", store, **SETTINGS)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "undone" in line]
    assert line == (
        "round 2: undone: the held-out Dice fell from 0.750 to 0.735 (liver 0.900 to 0.900, pancreas 0.600 to 0.570), "
        "by more than --stop-tolerance 0.01; the curriculum ends, with the weights from before this round"
    )


# In round 1, in the round that is undone, and after its last step.
@pytest.mark.parametrize("step", [7, 9, 10])
def test_it_resumes_with_the_same_bits(store, undone, tmp_path, monkeypatch, step):
    scored(monkeypatch, worse_in_round_2)
    run = new_run(tmp_path / "run", store, **SETTINGS)
    interrupted(run, step)
    train(run, resume=True, device=CPU)
    assert_same_run(run, undone)


def test_who_is_killed_while_it_is_undone_goes_on_alike(store, undone, tmp_path, monkeypatch):
    scored(monkeypatch, worse_in_round_2)
    run, write = new_run(tmp_path / "run", store, **SETTINGS), MetricsLog.write_undone

    def dies(*arguments):
        write(*arguments)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write_undone", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(run, device=CPU)
    train(run, resume=True, device=CPU)
    assert_same_run(run, undone)


def test_who_is_killed_after_it_was_undone_has_the_better_weights(store, undone, tmp_path, monkeypatch):
    scored(monkeypatch, worse_in_round_2)
    run, saves, save = new_run(tmp_path / "run", store, **SETTINGS), count(1), Checkpoint.save

    def dies(checkpoint, path, **arguments):
        if path == run.model_path:
            raise RuntimeError("killed")
        next(saves)
        save(checkpoint, path, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(run, device=CPU)
    assert next(saves) == 4  # of rounds 0, 1 and 2
    train(run, resume=True, device=CPU)
    assert_same_run(run, undone)


def assert_same_run(run, expected):
    assert_same_bits(weights(run), weights(expected))
    assert metrics(run) == metrics(expected)
    assert overlays(run) == overlays(expected)


def test_without_a_validation_case_it_is_said_and_done_without(store, tmp_path, capsys):
    run = trained(tmp_path / "run", store, **{**SETTINGS, "folds": 0, "fold": 0})
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: --stop: ")]
    assert said == [f"warning: {without_held_out(run.config, run.view('validation'))}"]
    assert existing_rounds(run.rounds_path) == [1, 2, 3]
    assert not goes_back(run.config, run.view("validation"))
    assert not any("validation" in line for line in metrics(run))


def test_the_mean_over_the_organs_decides_and_a_fall_within_the_tolerance_is_none():
    before = {"liver": 0.9, "pancreas": 0.5}
    assert fell(before, {"liver": 0.95, "pancreas": 0.46}, 0.0) is None
    assert fell(before, {"liver": 0.9, "pancreas": 0.45}, 0.03) is None
    assert "(liver 0.900 to 0.900, pancreas 0.500 to 0.400)" in fell(before, {"liver": 0.9, "pancreas": 0.4}, 0.03)


@pytest.mark.slow
def test_ranks_learn_and_go_back_together(tmp_path):
    """By the real score, which falls by 0.1 in round 2; stopped in it and gone on with, too."""
    hidden = dict.fromkeys([("train_0", "pancreas"), ("train_2", "liver")], State.HIDDEN)
    store = tiny_store(tmp_path / "store", hidden)
    longer = {"batch_size": 5, "epochs": 8.0, "lr": 0.05, "ema": 0.0}
    settings = {**TINY, **SETTINGS, **longer, "score": "confidence", "stop_tolerance": 0}
    arguments = [each for each in options(settings) if each != "True"]
    successful(train_ranks(2, store, tmp_path / "whole", *arguments))
    lines = [line for line in metrics(Run.open(tmp_path / "whole")) if line.get("undone")]
    assert [line["round"] for line in lines] == [2]
    results = spoiled(2, 0, 38, signal.SIGTERM, store, tmp_path / "run", *arguments)
    assert [status for status, *_ in results] == [143] * 2
    successful(train_ranks(2, store, tmp_path / "run", "--resume"))
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")
