"""Whole commands: what is read of a training, of nvidia-smi and of scores; and all of it once, tiny, on the CPU."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.commands import __main__ as program
from bench.commands import cohort, scoring
from bench.commands.cohort import CommandError
from bench.commands.gpu_use import GpuUse, Sample
from bench.commands.training import steady_part
from bench.commands.workloads import (
    BUSY,
    CAPTURED,
    CASE,
    EXPORT,
    NAMES,
    SHARE,
    START,
    STEPS,
    WORKLOADS,
    Cohort,
    Scoring,
    Training,
)
from bench.measure import COSTS
from bench.tests.synthetic import GPU
from smile_fast.data.case_info import IMAGE
from smile_fast.data.store import Store
from tests.tolerances import RECORDED_RATIO

OPTIONS = ("--width", "8", "--crop-size", "64", "--rates", "1", "2", "3", "--batch-size", "2", "--folds", "4")
TINY = Training("resnet18", 2, Cohort(5, 1, 64, 12), options=OPTIONS, replays=1)


def metrics(*seconds: float) -> str:
    lines = [
        {"iteration": 10 * (number + 1), "loss": 1 / (number + 1), "seconds": taken}
        for number, taken in enumerate(seconds)
    ]
    lines.insert(1, {"iteration": 10, "round": 0, "validation": {"liver": 0.5}})
    return "\n".join(map(json.dumps, lines)) + "\n"


def test_the_first_steps_of_a_training_do_not_count() -> None:
    found = steady_part(metrics(9, 10, 11, 12, 13), warmup=0.25)
    assert (found.steps, found.seconds) == (30, 3)
    assert found.losses[0] == 1
    with pytest.raises(CommandError, match="holds 1 lines: too few steps"):
        steady_part(metrics(9), warmup=0.25)


def test_the_use_of_a_gpu_is_read_from_a_program_that_goes_on(tmp_path: Path) -> None:
    code = "import time\nfor value in ('50', '[N/A]', '100'): print(value, flush=True)\ntime.sleep(600)"
    with GpuUse([sys.executable, "-c", code]) as use:
        deadline = time.monotonic() + 60
        while len(use.samples) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [sample.share for sample in use.samples] == [0.5, 1.0]
    with GpuUse([str(tmp_path / "no-such-program")]) as absent:
        pass
    assert absent.mean(0, time.time()) is None


def test_only_samples_of_the_steady_part_count() -> None:
    use = GpuUse(["true"])
    use.samples = [Sample(1, 0.1), Sample(2, 0.6), Sample(3, 0.8), Sample(4, 0.0)]
    assert use.mean(1.5, 3.5) == pytest.approx(0.7)


def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(CommandError, match=r"smile-fast train nowhere run ended with status 2:\nerror: nowhere"):
        cohort.command("train", "nowhere", "run")


def test_seconds_a_case_are_free_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"validation": ["a", "b"], "train": ["c", "d", "e", "f", "g"]}
    taken = {"validation": 7.0, "train": 8.5}
    monkeypatch.setattr(scoring, "train", lambda *_: tmp_path)
    monkeypatch.setattr(scoring.Run, "open", lambda run: SimpleNamespace(splits=splits))
    monkeypatch.setattr(scoring, "read_evaluation", lambda run, split: SimpleNamespace(cases=splits[split]))
    monkeypatch.setattr(scoring, "seconds_of", lambda *arguments: taken[arguments[3]])
    found = scoring.evaluate(Scoring(TINY), tmp_path, "cpu", tmp_path)[COSTS]
    assert (found[CASE], found[START]) == (0.5, 6.0)
    taken["train"] = 7.0
    with pytest.raises(CommandError, match="5 cases took no longer than 2"):
        scoring.evaluate(Scoring(TINY), tmp_path, "cpu", tmp_path)
    monkeypatch.setattr(scoring, "read_evaluation", lambda run, split: None)
    with pytest.raises(AssertionError, match="no scores were written"):
        scoring.evaluate(Scoring(TINY), tmp_path, "cpu", tmp_path)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohorts")


def test_few_volumes_make_a_large_cohort(cohorts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "DISTINCT", 2)
    made = cohort.store(TINY.cohort, cohorts)
    opened = Store.open(made)
    assert len(opened.cases) == 6
    images = [case.arrays[IMAGE] for case in opened.cases.values()]
    assert len(set(images)) == 3  # two of the training, one of the test
    monkeypatch.setattr(cohort, "command", None)
    assert cohort.store(TINY.cohort, cohorts) == made  # made once


@pytest.mark.slow
def test_a_training_and_its_step_alone_can_be_measured(cohorts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, tiny; no time counts."""
    monkeypatch.setattr(cohort, "DISTINCT", 2)
    monkeypatch.setitem(WORKLOADS, "train-resnet18", TINY)
    found = program.figures("commands/train-resnet18", "cpu", cohorts)
    costs = found[COSTS]
    assert {STEPS, CAPTURED, SHARE} <= set(costs) <= {STEPS, CAPTURED, SHARE, BUSY}
    assert costs[SHARE] == pytest.approx(costs[STEPS] / costs[CAPTURED], **RECORDED_RATIO)
    assert found["steps"] == 26  # of 36: the first line of metrics.jsonl, 10 steps, is the warm-up


@pytest.mark.slow
def test_an_export_can_be_measured(cohorts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "DISTINCT", 2)
    monkeypatch.setitem(WORKLOADS, "export", Scoring(replace(TINY, epochs=0.2), repetitions=1))
    found = program.figures("commands/export", "cpu", cohorts)
    assert found[COSTS][EXPORT] > 0
    assert found["bytes"] > 0


def test_the_program_writes_a_record_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program.machine, "describe_gpu", lambda: GPU)
    monkeypatch.setitem(program.MEASURES, "export", lambda *_: {COSTS: {EXPORT: 5.0}})
    out = tmp_path / "run.json"
    assert program.main([NAMES[-1], str(out)]) == 0
    assert program.records.read(out).benchmarks[NAMES[-1]][COSTS] == {EXPORT: 5.0}

    def fail(*_: object) -> None:
        raise CommandError("smile-fast export ended with status 2")

    monkeypatch.setitem(program.MEASURES, "export", fail)
    assert program.main([NAMES[-1], str(out)]) == 1
    assert capsys.readouterr().err == "error: smile-fast export ended with status 2\n"
