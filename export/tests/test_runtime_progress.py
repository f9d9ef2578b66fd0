import io

import pytest

from smile_runtime import progress as module
from smile_runtime.progress import Progress, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a test says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def work(clock, seconds, count, label, out):
    """Work off ``count`` items of ``seconds`` each."""
    done = []
    for item in progress(range(count), total=count, label=label, stream=out):
        clock[0] += seconds
        done.append(item)
    assert done == list(range(count))


def test_a_log_gets_a_line_every_ten_seconds_and_a_last_one(clock):
    out = io.StringIO()
    work(clock, 4.0, 10, "prepare", out)
    assert out.getvalue().splitlines() == [
        "prepare: 3/10, 00:12 passed, 00:28 left",
        "prepare: 6/10, 00:24 passed, 00:16 left",
        "prepare: 9/10, 00:36 passed, 00:04 left",
        "prepare: 10/10 in 00:40",
    ]


def test_a_terminal_gets_a_bar_that_ends_its_line(clock):
    out = Terminal()
    work(clock, 1.0, 4, "predict", out)
    states = out.getvalue().split("\r\x1b[K")
    assert states[1:] == [
        "predict [........................] 0/4 --:-- left",
        "predict [######..................] 1/4 00:03 left",
        "predict [############............] 2/4 00:02 left",
        "predict [##################......] 3/4 00:01 left",
        "predict [########################] 4/4 in 00:04\n",
    ]


def test_a_terminal_is_not_flooded(clock):
    out = Terminal()
    work(clock, 0.001, 10000, "x", out)
    assert out.getvalue().count("\r") <= 102  # one every 0.1 s of 10 s, the first and the last


def test_a_job_that_was_begun_before(clock):
    """What was done before says nothing of the time that is left; a unit and a note are shown."""
    out = io.StringIO()
    bar = Progress(100.5, "train", out, start=40, unit=" s")
    clock[0] += 5.0
    bar.advance(50)
    bar.advance(50.9, "3 steps/s")  # the first note comes at once
    clock[0] += 5.0
    bar.advance(60.2, "3 steps/s")
    clock[0] += 10.0
    bar.advance(70.5, "4 steps/s")
    clock[0] += 20.0
    bar.advance(100.5, "5 steps/s")
    bar.close()
    assert out.getvalue().splitlines() == [
        "train: 50/100 s, 00:05 passed, 00:23 left, 3 steps/s",
        "train: 70/100 s, 00:20 passed, 00:20 left, 4 steps/s",
        "train: 100/100 s in 00:40, 5 steps/s",
    ]


def test_a_bar_has_one_line_on_a_narrow_terminal(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    bar = Progress(4, "predict", out)
    clock[0] += 1.0
    bar.advance(1, "loss 0.5")
    assert out.getvalue().split("\r\x1b[K")[2] == "predict [######..................] 1/4 "


def test_an_error_ends_the_line(clock):
    out = Terminal()
    items = progress(range(3), total=3, label="x", stream=out)
    assert [next(items), next(items)] == [0, 1]
    items.close()  # as the interpreter does when an error leaves the loop
    assert out.getvalue().endswith("1/3 00:00 left\n")


def test_nothing_to_do(clock):
    out = io.StringIO()
    assert list(progress([], total=0, label="x", stream=out)) == []
    assert out.getvalue() == "x: 0/0 in 00:00\n"


def test_hours_and_standard_error(clock, capsys):
    work(clock, 3725.0, 1, "train", None)
    assert capsys.readouterr().err == "train: 1/1 in 1:02:05\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (59.6, "01:00"), (185, "03:05"), (3599.4, "59:59"), (36000, "10:00:00")]
)
def test_a_duration_as_on_a_clock(seconds, text):
    assert module.clock(seconds) == text
