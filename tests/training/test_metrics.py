import json
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from smile_fast.training import metrics as module
from smile_fast.training.metrics import MetricsLog, read_metrics
from smile_fast.training.objectives import StepLoss
from smile_fast.training.schedule import Position
from smile_runtime.errors import InputError
from tests.runs import make_run


@pytest.fixture
def run(store, tmp_path):
    return make_run(tmp_path / "run", store, trained=False, method="smiler", rounds=1)


def step_loss(value, sums=(2.0, 0.0), counts=(4, 0)):
    return StepLoss(torch.tensor(value, dtype=torch.float64), torch.tensor(sums), torch.tensor(counts))


def at(total, number=0):
    return Position(number, total, total, total / 10)


@pytest.fixture
def log(run):
    log = MetricsLog(run, keep_until=0)
    log.start_round(0)
    yield log
    log.close()


def test_a_line_is_the_mean_since_the_last_one(log, run):
    log.add(step_loss(1.0, (2.0, 3.0), (4, 6)), lr=0.5)
    log.add(step_loss(2.0, (4.0, 3.0), (8, 0)), lr=0.25)
    log.write_step(at(2), 0.5)
    log.add(step_loss(7.0), lr=0.125)
    log.write_step(at(3), 0.75)
    log.flush()
    first, second = read_metrics(run)
    assert first == {
        "iteration": 2,
        "round": 0,
        "loss": 1.5,
        "lr": 0.25,
        "loss_per_organ": {"liver": 0.5, "pancreas": 1.0},
        "seconds": 0.2,
    }
    assert (second["loss"], second["lr"]) == (7.0, 0.125)
    assert second["loss_per_organ"] == {"liver": 0.5}  # no pair of the pancreas was known


def test_a_round_ends_with_what_is_left(log, run, capsys):
    log.add(step_loss(1.0), lr=0.5)
    log.end_round(at(1))
    log.start_round(1)
    log.end_round(at(1, number=1))  # nothing new: no line
    assert [line["iteration"] for line in read_metrics(run)] == [1]
    err = capsys.readouterr().err
    assert "smiler: 1 steps in 0 s" in err
    assert "smiler, round 1 of 1: 1 steps" in err


def test_validation_has_lines_of_its_own(log, run):
    log.write_validation(at(4), {"liver": 0.75})
    log.flush()
    assert read_metrics(run) == [{"iteration": 4, "round": 0, "validation": {"liver": 0.75}}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(log, run, value):
    log.add(step_loss(1.0), lr=0.5)
    log.add(step_loss(value), lr=0.5)
    with pytest.raises(InputError, match=rf"run: the loss became {value} at step 2; .*lower learning rate \(--lr\)"):
        log.write_step(at(2), 0.5)


def test_what_is_pending_survives_in_a_checkpoint(log, run, store, tmp_path):
    assert log.pending() == {}
    for number in range(3):
        log.add(step_loss(number / 3, (number / 7, 1.0), (5, number)), lr=0.1 * number)
    other_run = make_run(tmp_path / "other", store, trained=False)
    other = MetricsLog(other_run, keep_until=0)
    other.restore(log.pending(), torch.device("cpu"))
    for each in (log, other):
        each.add(step_loss(0.9), lr=0.7)
        each.write_step(at(4), 1.0)
        each.flush()
    other.close()
    assert read_metrics(other_run) == read_metrics(run)


def lines(run, *numbers):
    run.metrics_path.write_text("".join(json.dumps({"iteration": n, "loss": 0.1}) + "\n" for n in numbers))


def test_a_resumed_training_drops_what_it_will_do_again(run):
    lines(run, 10, 20, 30)
    MetricsLog(run, keep_until=20).close()
    assert [line["iteration"] for line in read_metrics(run)] == [10, 20]


@pytest.mark.parametrize(
    "tail", ['{"iteration": 3', "[]\n", "null\n", '{"loss": 1}\n', '{"iteration": "x"}\n', "\xff\n"]
)
def test_a_line_that_was_cut_off_is_left_out(run, tail):
    lines(run, 1, 2)
    with run.metrics_path.open("a", encoding="latin-1") as file:
        file.write(tail)
    assert [line["iteration"] for line in read_metrics(run)] == [1, 2]
    MetricsLog(run, keep_until=10).close()


def test_no_metrics_yet(run):
    assert read_metrics(run) == []


def on_a_full_disk(full):
    """Path.open, but for one path: what is appended to it goes to /dev/full."""
    real = Path.open

    def opened(path, mode="r", **options):
        return real(Path("/dev/full") if (path, mode) == (full, "a") else path, mode, **options)

    return opened


def test_a_full_disk_is_one_sentence(run, monkeypatch):
    """/dev/full takes nothing: the error comes when the buffer is emptied."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", on_a_full_disk(run.metrics_path))
        log = MetricsLog(run, keep_until=0)
    log.write_validation(at(1), {"liver": 0.5})
    with pytest.raises(
        InputError, match=r"metrics\.jsonl: cannot be written \(no space left on device\); free some space"
    ):
        log.flush()
    with pytest.raises(InputError, match="cannot be written"):
        log.close()


def test_a_folder_in_its_place_is_one_sentence(run):
    run.metrics_path.mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        MetricsLog(run, keep_until=0)


def test_the_terminal_shows_progress(log, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=count().__next__))  # a second between two lines
    for total, fraction in ((10, 0.25), (20, 0.5)):
        log.add(step_loss(0.5), lr=0.1)
        log.write_step(Position(0, total, total, 60.0), fraction)
    err = capsys.readouterr().err
    assert "\rsmiler:  25%  step 10  loss 0.5000  03:00 left" in err
    assert "\rsmiler:  50%  step 20  loss 0.5000  01:00 left" in err


def test_elsewhere_it_prints_a_line_every_ten_seconds(log, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for total in range(10, 100, 10):
        log.add(step_loss(0.5), lr=0.1)
        log.write_step(at(total), total / 100)
        now[0] += 4.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[3] for line in lines] == ["10", "40", "70"]
    assert not any("\r" in line for line in lines)


def test_hours_are_hours(log, capsys):
    log.add(step_loss(0.5), lr=0.1)
    log.write_step(Position(0, 10, 10, 3661.0), 0.5)
    assert "1:01:01 left" in capsys.readouterr().err


def test_tensorboard_is_optional(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = make_run(tmp_path / "board", store, trained=False, tensorboard=True)
    with pytest.raises(InputError, match="--tensorboard: the package tensorboard is not installed; install it"):
        MetricsLog(run, keep_until=0)
    assert not run.metrics_path.exists()


class Board:
    """What torch.utils.tensorboard would write."""

    def __init__(self, log_dir):
        self.log_dir, self.scalars = log_dir, []
        self.closed = False
        Board.last = self

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def close(self):
        self.closed = True


def test_tensorboard_gets_the_same_numbers(store, tmp_path, monkeypatch):
    fake = type(sys)("torch.utils.tensorboard")
    fake.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run = make_run(tmp_path / "board", store, trained=False, tensorboard=True)
    log = MetricsLog(run, keep_until=0)
    log.add(step_loss(1.5), lr=0.25)
    log.write_step(at(7), 0.5)
    log.write_validation(at(7), {"liver": 0.75})
    log.close()
    assert Board.last.scalars == [
        ("loss", 1.5, 7),
        ("lr", 0.25, 7),
        ("loss_per_organ/liver", 0.5, 7),
        ("validation/liver", 0.75, 7),
    ]
    assert Board.last.closed
    assert Board.last.log_dir == str(run.path / "tensorboard")
