"""A training that is interrupted and resumed gives the bits of one that was left alone."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smile_fast.data.annotations import write_annotations
from smile_fast.models import Segmenter
from smile_fast.training import loop, unfinished_round
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.execution import Execution
from smile_fast.training.interrupt import Interrupted, Stop, stop_signals
from smile_fast.training.loop import Trainer, train
from smile_fast.training.metrics import read_metrics
from smile_fast.training.rounds import existing_rounds, unfinished_rounds
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from tests.training.recording import RecordedSteps
from tests.trainings import (
    CPU,
    CURRICULUM,
    TINY,
    assert_same_bits,
    interrupted,
    metrics,
    new_run,
    overlays,
    steps_of,
    stop_after,
    trained,
    weights,
)


def assert_same_outcome(run, expected):
    """Final weights, both checkpoints, log and rounds."""
    assert_same_bits(weights(run), weights(expected))
    found, wanted = Checkpoint.load(run.checkpoint_path), Checkpoint.load(expected.checkpoint_path)
    assert found.state == wanted.state
    assert set(found.tensors) == set(wanted.tensors)
    for group in wanted.tensors:
        assert_same_bits(found.tensors[group], wanted.tensors[group])
    assert metrics(run) == metrics(expected)
    assert overlays(run) == overlays(expected)


# 9 steps on human labels, 4 of each round: in the middle of one, at its end and start, and at the very end.
@pytest.mark.parametrize("step", [1, 9, 10, 12, 13, 17])
def test_a_curriculum_resumes_anywhere(store, smiler, tmp_path, step):
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    interrupted(run, step)
    assert steps_of(run) == step
    assert not run.model_path.exists()
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, smiler)


def test_a_training_resumes_again_and_again(store, smiler, tmp_path):
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    interrupted(run, 2)
    for step in (4, 5, 1, 4):  # at steps 6, 11, 12, 16
        interrupted(Run.open(run.path), step, resume=True)
    assert steps_of(run) == 16
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, smiler)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "channels": 3, "flip": 0.5, "clip_norm": 0.1},
        {"method": "baseline", "ema": 0.5, "validate_every": 0.5, "folds": 3},
        {"policy": "channel-drop", "output_stride": 16, "seed": 20261231},
        {"amp": "bfloat16", "batch_size": 3},
    ],
    ids=str,
)
def test_other_settings_resume_as_well(store, tmp_path, settings):
    expected = trained(tmp_path / "expected", store, **{"epochs": 1.5, **settings})
    run = new_run(tmp_path / "run", store, **{"epochs": 1.5, **settings})
    interrupted(run, 5)
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, expected)


def test_losses_that_were_not_written_yet_are_not_lost(store, tmp_path):
    """Ten steps a line: after 13 steps three losses wait, and belong to the line of step 20."""
    expected = trained(tmp_path / "expected", store, epochs=2.5)
    run = new_run(tmp_path / "run", store, epochs=2.5)
    interrupted(run, 13)
    assert [line["iteration"] for line in metrics(run)] == [10]
    train(Run.open(run.path), resume=True, device=CPU)
    assert [line["iteration"] for line in metrics(run)] == [10, 20, 22]
    assert_same_outcome(run, expected)


@pytest.mark.parametrize("workers", [(1, 1), (4, 0), (0, 4)])
def test_whoever_makes_the_batches_it_is_the_same_training(store, smiler, tmp_path, workers):
    """A thread, one process or several, before the stop in a round and after it."""
    before, after = (Execution(workers=str(number)) for number in workers)
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    interrupted(run, 11, execution=before)
    record = json.loads((run.path / "environment.json").read_text())
    assert record["execution"] == {"device": "cpu", "processes": 1, **before.to_json()}
    train(Run.open(run.path), resume=True, device=CPU, execution=after)
    assert_same_outcome(run, smiler)
    record = json.loads((run.path / "environment.json").read_text())
    assert record["execution"] == {"device": "cpu", "processes": 1, **after.to_json()}
    assert record["packages"]["torch"] == torch.__version__


def test_a_signal_that_also_ends_the_workers_is_saved(store, smiler, tmp_path, monkeypatch):
    """As a scheduler sends it: to every process of the job, whose batches then do not come."""
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    plain = loop.read_ahead

    def ended(source, first, workers, **options):
        batches = plain(source, first, workers, **options)
        yield from (next(batches) for _ in range(3))
        signal.raise_signal(signal.SIGTERM)
        raise InputError("--workers: a process that makes batches was killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "read_ahead", ended)
        with pytest.raises(Interrupted):
            train(run, device=CPU)
    assert steps_of(run) == 3
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, smiler)


def test_captured_and_plain_steps_go_on_from_each_others_checkpoints(store, tmp_path):
    """Also from those of an optimizer whose numbers are on the host, as older ones are."""
    run = new_run(tmp_path / "run", store, ema=0.9, epochs=2.0)
    interrupted(run, 4)
    for capturer in (RecordedSteps(), None):
        trainer = Trainer(Run.open(run.path), Segmenter(run.config.model), CPU, Stop(), resume=True, capturer=capturer)
        stop_at = trainer.position.total_steps + 6
        step = trainer.step

        def counted(*arguments, trainer=trainer, step=step, stop_at=stop_at):
            if trainer.position.total_steps == stop_at:
                raise Killed
            return step(*arguments)

        trainer.step = counted
        with pytest.raises(Killed):
            trainer.train_round(run.view("train"))
        trainer.save()
        trainer.metrics.close()
    assert steps_of(run) == 4 + 6 + 6
    train(Run.open(run.path), resume=True, device=CPU)
    assert [line["iteration"] for line in metrics(run)] == [10, 18]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


class Killed(BaseException):
    """Stands for a power cut: nothing is saved any more."""


def test_a_kill_falls_back_to_the_last_checkpoint(store, smiler, tmp_path, monkeypatch):
    """A checkpoint every 120 s; here after every step until the 7th, then three steps that are lost."""
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    step, save, done = Trainer.step, Trainer.save, []

    def counted(self, *arguments):
        if len(done) == 10:
            raise Killed
        done.append(1)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", count(step=200.0).__next__)  # seconds between two looks at the clock
        patch.setattr(Trainer, "step", counted)
        patch.setattr(Trainer, "save", lambda self: save(self) if len(done) <= 7 else None)
        with pytest.raises(Killed):
            train(run, device=CPU)
    assert steps_of(run) == 7
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, smiler)


def test_a_round_that_was_cut_short_begins_again_from_the_same_weights(store, smiler, tmp_path, monkeypatch):
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    write, written = unfinished_round.write_array, []

    def fails(folder, case, overlay):
        written.append(case)
        if len(written) == 5:  # the second case of the second round
            raise Killed
        return write(folder, case, overlay)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished_round, "write_array", fails)
        with pytest.raises(Killed):
            train(run, device=CPU)
    assert Checkpoint.load(run.checkpoint_path).state["round"] == 2
    assert (existing_rounds(run.rounds_path), unfinished_rounds(run.rounds_path)) == ([1], [2])
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, smiler)


def test_a_signal_during_a_round_keeps_what_is_finished(store, smiler, tmp_path, monkeypatch, capsys):
    """A round over a large cohort takes longer than whoever sent SIGTERM will wait."""
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    write, written = unfinished_round.write_array, []

    def signalled(folder, case, overlay):
        written.append(case)
        digest = write(folder, case, overlay)
        if len(written) == 4:  # the first case of the second round
            signal.raise_signal(signal.SIGTERM)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(unfinished_round, "write_array", signalled)
        with pytest.raises(Interrupted):
            train(run, device=CPU)
    assert len(written) in (4, 5)  # one more was computed while that was written
    assert (existing_rounds(run.rounds_path), unfinished_rounds(run.rounds_path)) == ([1], [2])
    train(Run.open(run.path), resume=True, device=CPU)
    assert f"round 2: {len(written) - 3} of 3 cases had been finished before" in capsys.readouterr().err
    assert_same_outcome(run, smiler)


def test_a_finished_training_has_nothing_left_to_do(smiler, store, tmp_path):
    run = trained(tmp_path / "run", store, epochs=0.5)
    before = (weights(run), metrics(run))
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_bits(weights(run), before[0])
    assert metrics(run) == before[1]


def test_without_a_checkpoint_it_starts_from_the_start(store, smiler, tmp_path):
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    train(run, resume=True, device=CPU)
    assert_same_outcome(run, smiler)


def test_start_weights_survive_a_kill_before_the_first_checkpoint(store, tmp_path, monkeypatch):
    other = trained(tmp_path / "other", store, epochs=0.3, seed=5)
    save_file(
        {name: t for name, t in weights(other).items() if name.startswith("backbone")}, tmp_path / "w.safetensors"
    )
    expected = new_run(tmp_path / "expected", store, tmp_path / "w.safetensors", epochs=0.5)
    train(expected, resume=True, device=CPU)
    run = new_run(tmp_path / "run", store, tmp_path / "w.safetensors", epochs=0.5)

    def killed(self, *arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(Killed):
            train(run, resume=True, device=CPU)
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, expected)


WRONG = {
    "the final weights under its name": (
        lambda run, tensors, state: Checkpoint({"model": tensors["model"]}, {"total_steps": 5}).save(
            run.checkpoint_path
        ),
        "does not say where training stood",
    ),
    "no average": (
        lambda run, tensors, state: Checkpoint(
            {name: group for name, group in tensors.items() if name != "average"}, state
        ).save(run.checkpoint_path),
        "does not fit the settings of its run",
    ),
    "another optimizer": (
        lambda run, tensors, state: Checkpoint({**tensors, "optimizer": {"x.step": torch.ones(1)}}, state).save(
            run.checkpoint_path
        ),
        "does not fit the settings of its run",
    ),
    "another network": (
        lambda run, tensors, state: Checkpoint({**tensors, "model": {"conv.weight": torch.ones(1)}}, state).save(
            run.checkpoint_path
        ),
        "does not hold the weights of this network",
    ),
    "cut off": (
        lambda run, tensors, state: run.checkpoint_path.write_bytes(run.checkpoint_path.read_bytes()[:5000]),
        "damaged",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_checkpoint_is_refused(store, tmp_path, wrong):
    run = new_run(tmp_path / "run", store, ema=0.9, epochs=0.5)
    interrupted(run, 2)
    checkpoint = Checkpoint.load(run.checkpoint_path)
    spoil, message = WRONG[wrong]
    spoil(run, checkpoint.tensors, checkpoint.state)
    before = run.checkpoint_path.read_bytes()
    with pytest.raises(InputError, match=message) as caught:
        train(run, resume=True, device=CPU)
    assert str(run.checkpoint_path) in str(caught.value)
    assert run.checkpoint_path.read_bytes() == before
    assert not run.model_path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_stop_and_are_handed_back(store, tmp_path, number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    run = new_run(tmp_path / "run", store)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, number)
        with pytest.raises(Interrupted):
            train(run, device=CPU)
    assert steps_of(run) == 3
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_thread_trains_without_signals():
    events = []

    def inside():
        with stop_signals() as stop:
            events.append(stop.is_set())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert events == [False]


@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_process_that_is_stopped_saves_and_says_so(store, tmp_path, workers, number):
    """The real thing: a signal to `smile-fast train` and its workers, as a terminal or a scheduler sends it."""
    settings = {**TINY, "epochs": 3000.0}  # 27,000 steps: only the signal ends it
    write_annotations(tmp_path / "annotations.csv", store.declarations(), list(store.cases), store.organs)
    run_folder = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "rates"]
    command = [
        *(sys.executable, "-m", "smile_fast", "train", str(store.path), str(run_folder), *options),
        *("--rates", "1", "--threads=1", "--device=cpu", f"--workers={workers}"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        line = process.stderr.readline()  # comes with the tenth step
        while line and "steps/s" not in line:  # on a busy machine one comes before, after ten seconds
            line = process.stderr.readline()
        assert re.match(r"smile: 10/27000, \S+ passed, \S+ left, \S+ steps/s, loss ", line), line
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)  # until nobody is left that could write
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, err
    assert f"go on with: smile-fast train {store.path} {run_folder} --resume" in out
    assert "Traceback" not in err
    run = Run.open(run_folder)
    stopped = steps_of(run)
    assert 10 <= stopped < 27_000
    assert [line["iteration"] for line in read_metrics(run)] == list(range(10, stopped + 1, 10))
    assert {Path(file).name for file in run_folder.iterdir()} == {
        "annotations.csv",
        "checkpoint.safetensors",
        "config.json",
        "environment.json",
        "metrics.jsonl",
    }
    # The same process state as a stop at that step in this one.
    other = new_run(tmp_path / "other", store, **settings)
    interrupted(other, stopped)
    found, wanted = Checkpoint.load(run.checkpoint_path), Checkpoint.load(other.checkpoint_path)
    for group in wanted.tensors:
        assert_same_bits(found.tensors[group], wanted.tensors[group])
