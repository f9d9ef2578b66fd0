"""Whole trainings by several processes: what they leave behind, how they stop, and what they say."""

import json
import signal
from statistics import mean

import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation import evaluate_run
from smile_fast.training.run import Run
from tests.tolerances import OTHER_DROPOUT, within_seeds
from tests.training import rank_processes
from tests.training.rank_processes import ended, start, successful
from tests.trainings import CPU, CURRICULUM, TINY, assert_same_bits, metrics, new_run, overlays, trained, weights

SETTINGS = {**TINY, **CURRICULUM, "batch_size": 5}
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as `train` sets it before torch is imported, which a spoiled rank does first


def options(settings):
    """Settings as command-line options."""
    found = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found


def train(world, store, path, *arguments):
    return rank_processes.train(world, store.path, path, *arguments)


def spoiled(world, rank, step, number, store, path, *arguments):
    """A training of which one rank gets a signal in a step; in step 0, while it relabels."""
    command = ["-m", "tests.training.spoiled_rank", *map(str, (rank, step, int(number), "train", store.path, path))]
    return ended(start(world, [*command, *arguments, "--device", "cpu"], **QUIET))


def assert_same_outcome(path, expected):
    run, other = Run.open(path), Run.open(expected)
    assert_same_bits(weights(run), weights(other))
    assert metrics(run) == metrics(other)
    assert overlays(run) == overlays(other)


@pytest.fixture(scope="module")
def two(store, tmp_path_factory):
    """A SMILEr training by two processes: 4 steps and two rounds of 2, of 3 and 2 images."""
    path = tmp_path_factory.mktemp("ranks") / "two"
    successful(train(2, store, path, *options(SETTINGS)))
    return path


@pytest.mark.slow
def test_one_process_writes_and_the_log_is_that_of_the_whole_batch(store, two, tmp_path):
    files = {str(file.relative_to(two)) for file in two.rglob("*") if file.is_file()}
    assert {"config.json", "environment.json", "metrics.jsonl", "checkpoint.safetensors", "model.safetensors"} <= files
    assert {"rounds/1/round.json", "rounds/2/round.json"} <= files
    assert not [file for file in files if "unfinished" in file or "tmp" in file]
    assert json.loads((two / "environment.json").read_text())["execution"]["processes"] == 2
    alone = trained(tmp_path / "alone", store, **{name: SETTINGS[name] for name in SETTINGS})
    ours, theirs = metrics(Run.open(two)), metrics(alone)
    assert [line["iteration"] for line in ours] == [line["iteration"] for line in theirs]
    # Other features were dropped by one of the ranks; everything else is the same in the first steps.
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], **OTHER_DROPOUT)
    assert weights(Run.open(two)).keys() == weights(alone).keys()
    Run.open(two).load_model()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM)], ids=str)
def test_a_signal_of_any_rank_stops_all_after_the_same_step(store, two, tmp_path, rank, number):
    path = tmp_path / "run"
    results = spoiled(2, rank, 3, number, store, path, *options(SETTINGS))
    assert [status for status, *_ in results] == [128 + number] * 2
    assert sum("stopped; go on with" in output for _, output, _ in results) == 1
    successful(train(2, store, path, "--resume"))
    assert_same_outcome(path, two)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_after_the_ranks_have_agreed_stops_all_at_the_next_step(store, tmp_path, rank):
    """The others validate, and would wait for this rank in the step after it."""
    settings = options({**TINY, "batch_size": 5, "folds": 3, "validate_every": 0.5})
    successful(train(2, store, tmp_path / "whole", *settings))
    results = spoiled(2, rank, -1, signal.SIGTERM, store, tmp_path / "run", *settings)
    assert [status for status, *_ in results] == [143] * 2
    assert Run.open(tmp_path / "run").has_checkpoint
    successful(train(2, store, tmp_path / "run", "--resume"))
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 5], ids=["relabelling", "training"])
def test_a_killed_rank_ends_all_and_the_training_goes_on_from_its_checkpoint(store, two, tmp_path, step):
    path = tmp_path / "run"
    results = spoiled(2, 1, step, signal.SIGKILL, store, path, *options(SETTINGS))
    assert [status for status, *_ in results] == [1, -signal.SIGKILL]
    errors = results[0][2]
    assert "Traceback" not in errors
    assert errors.count("error:") == 1
    assert "process 0 of 2: another one has ended" in errors
    successful(train(2, store, path, "--resume"))
    assert_same_outcome(path, two)


@pytest.mark.slow
def test_a_rank_that_hangs_is_waited_for_as_long_as_was_said(store, tmp_path):
    """It still has its connections; nothing but the time tells that it is lost."""
    arguments = ["-m", "tests.training.spoiled_rank", "1", "2", str(int(signal.SIGSTOP)), "train", str(store.path)]
    processes = start(2, [*arguments, str(tmp_path / "run"), *options(SETTINGS), "--rank-timeout", "3"], **QUIET)
    _, errors = processes[0].communicate(timeout=rank_processes.SECONDS)
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 1
    assert "did not answer within 3 s" in errors


@pytest.mark.slow
def test_four_processes_repeat_themselves_bit_for_bit(store, tmp_path):
    """The resumed one as well: sums of four numbers depend on their order."""
    settings = options({**SETTINGS, "batch_size": 9, "epochs": 2.0})
    successful(train(4, store, tmp_path / "whole", *settings))
    spoiled(4, 2, 3, signal.SIGTERM, store, tmp_path / "stopped", *settings)
    successful(train(4, store, tmp_path / "stopped", "--resume"))
    assert_same_outcome(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_budget_and_validation_are_the_same_for_all(store, tmp_path):
    settings = options({**SETTINGS, "folds": 3, "validate_every": 1.0, "budget": "4s"})
    successful(train(2, store, tmp_path / "run", *settings))
    run = Run.open(tmp_path / "run")
    assert any("validation" in line for line in metrics(run))
    run.load_model()


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(store, tmp_path):
    path = tmp_path / "run"
    spoiled(2, 0, 3, signal.SIGTERM, store, path, *options(SETTINGS))
    successful(train(1, store, path, "--resume"))
    assert weights(Run.open(path))


@pytest.mark.slow
def test_the_dice_is_that_of_one_process_within_what_seeds_change(store, tmp_path):
    """On the held-out case, after 72 steps of which 32 with pseudo-labels."""
    settings = {**SETTINGS, "batch_size": 4, "epochs": 8.0, "optimizer": "adamw", "lr": 0.01}
    alone = [dice(trained(tmp_path / f"alone{seed}", store, **settings, seed=seed)) for seed in range(3)]
    successful(train(2, store, tmp_path / "two", *options(settings)))
    assert dice(Run.open(tmp_path / "two")) == pytest.approx(mean(alone), abs=within_seeds(alone))
    assert min(alone) > 0.4  # a network that has learned nothing would not show a difference


def dice(run):
    return evaluate_run(run, split="test", nsd_tolerance_mm=None, predictions=None, device=CPU, workers=1).dice


def test_a_world_of_one_is_no_other_training(store, tmp_path, monkeypatch):
    for name, text in rank_processes.environment_of(1, 0).items():
        monkeypatch.setenv(name, text)
    arguments = ["train", str(store.path), str(tmp_path / "torchrun"), "--device", "cpu"]
    assert main([*arguments, *options({**TINY, "epochs": 0.3})]) == 0
    alone = trained(tmp_path / "alone", store, epochs=0.3)
    assert_same_outcome(tmp_path / "torchrun", alone.path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch-size", "3"], "--batch-size: 3 slices are less than 2 for each of 2 processes; give 4 or more"),
        pytest.param(["--width", "7"], "--width: 7 cannot be used", marks=pytest.mark.slow),
        (["--rank-timeout", "0"], "--rank-timeout: 0.0 cannot be used"),
        pytest.param(["--device", "cuda:0"], "--device: cuda:0 is one device for 2", marks=pytest.mark.slow),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_once(store, tmp_path, arguments, sentence):
    command = ["-m", "smile_fast", "train", str(store.path), str(tmp_path / "run"), *arguments]
    results = ended(start(2, command))
    assert [status for status, *_ in results] == [2, 2]
    said = "".join(output + errors for _, output, errors in results)
    assert said.count("error:") == 1
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_once(store, tmp_path):
    run = new_run(tmp_path / "run", store)
    run.checkpoint_path.write_bytes(b"no checkpoint")
    results = train(2, store, run.path, "--resume")
    assert [status for status, *_ in results] == [2, 2]
    said = "".join(errors for *_, errors in results)
    assert said.count("error:") == 1
    assert "Traceback" not in said
