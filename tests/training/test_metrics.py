import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from smile_fast.training import metrics
from smile_fast.training.metrics import MetricsLog, read_metrics
from smile_fast.training.objectives import StepLoss
from smile_fast.training.schedule import Course, Position
from smile_runtime import progress
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
    yield log
    log.close()


def test_a_line_is_the_mean_since_the_last_one(log, run):
    log.add(step_loss(1.0, (2.0, 3.0), (4, 6)), lr=0.5)
    log.add(step_loss(2.0, (4.0, 3.0), (8, 0)), lr=0.25)
    log.write_step(at(2))
    log.add(step_loss(7.0), lr=0.125)
    log.write_step(at(3))
    log.flush()
    first, second = read_metrics(run)
    assert first == {
        "iteration": 2,
        "round": 0,
        "loss": 1.5,
        "lr": 0.25,
        "loss_per_organ": {"liver": 0.5, "pancreas": 1.0},
        "seconds": 0.2,
        "steps_per_second": 10.0,
    }
    assert (second["loss"], second["lr"]) == (7.0, 0.125)
    assert second["loss_per_organ"] == {"liver": 0.5}  # no pair of the pancreas was known


def test_a_round_ends_with_what_is_left(log, run, capsys):
    log.start_round(Position(), Course(run.config, 8))
    log.add(step_loss(1.0), lr=0.5)
    log.end_round(at(1))
    log.start_round(Position(1, 0, 1, 0.0), Course(run.config, 8))
    log.end_round(Position(1, 3, 4, 0.5))  # nothing new: no line
    assert [line["iteration"] for line in read_metrics(run)] == [1]
    err = capsys.readouterr().err.splitlines()
    assert "smiler: 1 steps, 0.125 epochs in 00:00 (10 steps/s)" in err
    assert "smiler, round 1/1: 3 steps, 0.375 epochs in 00:00 (6 steps/s)" in err


def test_validation_has_lines_of_its_own(log, run):
    log.write_validation(at(4), {"liver": 0.75})
    log.flush()
    assert read_metrics(run) == [{"iteration": 4, "round": 0, "validation": {"liver": 0.75}}]


class Fetching:
    """Stands for the event behind a copy from a GPU."""

    def __init__(self, waits):
        self._waits = waits

    def synchronize(self):
        self._waits.append(self)


@pytest.fixture
def waits(monkeypatch):
    """Lines arrive as from a GPU; the waits for them."""
    found, plain = [], metrics.Arriving.of
    monkeypatch.setattr(metrics.Arriving, "of", lambda *line: replace(plain(*line), fetched=Fetching(found)))
    return found


def test_lines_from_a_gpu_are_written_with_the_next_one_or_when_flushed(log, run, waits):
    """The same lines in the same order; nothing is waited for in the step that logs it."""
    position = at(10)
    log.add(step_loss(1.0), lr=0.5)
    log.write_step(position)
    position.step = position.total_steps = 11  # the loop goes on with the same object
    assert waits == []
    log.add(step_loss(2.0), lr=0.25)
    log.write_step(at(20))
    assert len(waits) == 1
    log.write_validation(at(20), {"liver": 0.75})
    assert len(waits) == 2
    log.add(step_loss(3.0), lr=0.125)
    log.write_step(at(30))
    assert len(waits) == 2
    log.flush()
    assert len(waits) == 3
    found = [(line["iteration"], line.get("loss"), line.get("lr")) for line in read_metrics(run)]
    assert found == [(10, 1.0, 0.5), (20, 2.0, 0.25), (20, None, None), (30, 3.0, 0.125)]


def test_a_loss_from_a_gpu_that_is_not_finite_is_never_saved(log, waits):
    """The checkpoint flushes the log first."""
    log.add(step_loss(float("nan")), lr=0.5)
    log.write_step(at(10))
    with pytest.raises(InputError, match="the loss became nan at step 10"):
        log.flush()


def test_a_line_that_is_on_its_way_is_not_lost_in_an_error(log, run, waits):
    """Ten steps a line; the 19th fails."""
    log.add(step_loss(1.0), lr=0.5)
    log.write_step(at(10))
    assert (waits, read_metrics(run)) == ([], [])
    log.close()
    assert [(line["iteration"], line["loss"]) for line in read_metrics(run)] == [(10, 1.0)]


@pytest.mark.parametrize("value", [float("nan"), "gone"])
def test_a_line_that_cannot_arrive_does_not_hide_the_error(log, run, waits, monkeypatch, value):
    """Neither a loss that is not finite nor a device that is gone."""
    log.add(step_loss(0.5 if value == "gone" else value), lr=0.5)
    log.write_step(at(10))
    if value == "gone":
        monkeypatch.setattr(Fetching, "synchronize", gone)
    log.close()
    assert read_metrics(run) == []


def gone(self):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(log, run, value):
    log.add(step_loss(1.0), lr=0.5)
    log.add(step_loss(value), lr=0.5)
    with pytest.raises(InputError, match=rf"run: the loss became {value} at step 2; .*lower learning rate \(--lr\)"):
        log.write_step(at(2))


def test_what_is_pending_survives_in_a_checkpoint(log, run, store, tmp_path):
    assert log.pending() == {}
    for number in range(3):
        log.add(step_loss(number / 3, (number / 7, 1.0), (5, number)), lr=0.1 * number)
    other_run = make_run(tmp_path / "other", store, trained=False)
    other = MetricsLog(other_run, keep_until=0)
    other.restore(log.pending(), torch.device("cpu"))
    for each in (log, other):
        each.add(step_loss(0.9), lr=0.7)
        each.write_step(at(4))
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


@pytest.fixture
def now(monkeypatch):
    """A clock that only moves when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def work(log, now, course, round_number=0, steps=20, before=0, seconds=3.0):
    """Do some steps of a round as the training loop does, `seconds` each, and end it."""
    log.start_round(Position(round_number, 0, before, 0.0), course)
    for step in range(1, steps + 1):
        now[0] += seconds
        position = Position(round_number, step, before + step, step * seconds)
        log.add(step_loss(0.5), lr=0.1)
        if step % 10 == 0:
            log.write_step(position)
        log.show(position)
    log.end_round(position)


def test_a_terminal_gets_a_bar_of_the_whole_training(log, run, capsys, monkeypatch, now):
    """20 steps on human labels, 10 in the round: after 3 s a step, 90 s in all."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    course = Course(replace(run.config, epochs=2.5), 8)
    work(log, now, course)
    work(log, now, course, 1, steps=10, before=20)
    states = capsys.readouterr().err.split("\r\x1b[K")
    assert "smiler [........................] 0/30 --:-- left" in states
    assert "smiler [########................] 10/30 01:00 left, 0.333 steps/s, loss 0.5000" in states
    assert "smiler, round 1/1 [####################....] 25/30 00:15 left" in states
    assert states[-1].startswith("smiler, round 1/1 [########################] 30/30 in 00:30, 0.333 steps/s, ")


def test_elsewhere_it_prints_a_line_every_ten_seconds(log, run, capsys, now):
    work(log, now, Course(replace(run.config, epochs=2.5), 8))
    lines = [line for line in capsys.readouterr().err.splitlines() if "left" in line]
    assert lines[:4] == [
        "smiler: 4/30, 00:12 passed, 01:18 left",
        "smiler: 8/30, 00:24 passed, 01:06 left",
        "smiler: 10/30, 00:30 passed, 01:00 left, 0.333 steps/s, loss 0.5000",  # at once, with the first numbers
        "smiler: 14/30, 00:42 passed, 00:48 left, 0.333 steps/s, loss 0.5000",
    ]


def test_a_resumed_training_expects_its_end_by_its_own_pace(log, run, capsys, now):
    log.start_round(Position(0, 8, 8, 800.0), Course(replace(run.config, epochs=2.5), 8))
    now[0] += 20
    log.show(Position(0, 12, 12, 820.0))
    assert capsys.readouterr().err == "smiler: 12/30, 00:20 passed, 01:30 left\n"
    log.add(step_loss(0.5), lr=0.1)
    log.write_step(Position(0, 12, 12, 820.0))
    log.close()
    assert read_metrics(run)[-1]["steps_per_second"] == 0.2


def test_an_end_by_an_error_ends_the_terminals_line(log, run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.start_round(Position(), Course(run.config, 8))
    log.close()
    assert capsys.readouterr().err.endswith(" left\n")


def budgeted(path, store, **settings):
    run = make_run(path, store, trained=False, **settings)
    return run, MetricsLog(run, keep_until=0)


def test_with_a_budget_the_bar_shows_its_time(store, tmp_path, capsys, monkeypatch, now):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run, log = budgeted(tmp_path / "run", store, method="smiler", rounds=2, budget=90.0)
    with closing(log):
        work(log, now, Course(run.config, 8), steps=15)  # 45 s are the share of the human labels
        work(log, now, Course(run.config, 8), 1, steps=8, before=15)  # a second more than 22.5 s
    err = capsys.readouterr().err
    assert "smiler [####....................] 15/90 s 01:15 left" in err
    assert "smiler, round 1/2 [################........] 60/90 s 00:30 left" in err
    assert "smiler, round 1/2 [##################......] 67/90 s 00:24 left" in err


@pytest.mark.parametrize(
    ("settings", "steps", "warning"),
    [
        (
            {"budget": 60.0},
            20,
            "it gave 2.5 epochs of the 20 that are the default, rounds included, at 0.333 steps/s; give about 8m, ",
        ),
        (
            {"budget": 60.0},
            79,
            "it gave 9.88 epochs of the 20 that are the default, rounds included, at 0.333 steps/s; give about 8m, ",
        ),
        ({"budget": 60.0}, 80, None),
        ({"epochs": 2.5}, 20, None),  # as asked for
    ],
)
def test_a_budget_that_was_too_short_is_said(store, tmp_path, capsys, now, settings, steps, warning):
    run, log = budgeted(tmp_path / "run", store, method="smile", **settings)
    with closing(log):
        work(log, now, Course(run.config, 8), steps=steps)
    err = capsys.readouterr().err.splitlines()
    done = f"smile: {steps} steps, {steps / 8:.3g} epochs in {progress.clock(3 * steps)} (0.333 steps/s)"
    said = [line for line in err if line.startswith("warning")]
    assert err[-1 - len(said)] == done
    assert len(said) == (warning is not None)
    if warning is not None:
        assert said[0].startswith(f"warning: --budget 60s: {warning}")


def test_the_rounds_count_in_what_was_done_and_in_what_is_the_default(store, tmp_path, capsys, now):
    """A half more of 20 epochs for each of two rounds: 40 in all. Half of the steps were done before it was resumed."""
    run, log = budgeted(tmp_path / "run", store, method="smiler", rounds=2, budget=90.0)
    with closing(log):
        work(log, now, Course(run.config, 8), steps=16)
    log = MetricsLog(run, keep_until=16)
    with closing(log):
        work(log, now, Course(run.config, 8), 1, steps=8, before=16)
        assert "warning" not in capsys.readouterr().err  # the training goes on
        work(log, now, Course(run.config, 8), 2, steps=8, before=24, seconds=6.0)
    err = capsys.readouterr().err
    assert "\nsmiler, all rounds: 32 steps, 4 epochs in 02:00 (0.267 steps/s)\n" in err
    assert "it gave 4 epochs of the 40 that are the default, rounds included, at 0.267 steps/s; give about 20m" in err


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
    log.write_step(at(7))
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
