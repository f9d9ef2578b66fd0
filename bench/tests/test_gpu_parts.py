"""The parts of `make gpu`: nothing is forgotten, each fits into nine minutes, and each says what it needs."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import catalogue, gpu, gpu_parts, gpu_steps, machine, records, runner
from bench.commands.workloads import NAMES
from bench.comparison import CUDA
from bench.gpu_parts import MOST_SECONDS, PARTS, Part, chosen, sanitized
from bench.tests.synthetic import GPU, figures

COMMIT = {"commit": "abc", "dirty": False}


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_steps.Steps:
    monkeypatch.delenv("OUT", raising=False)
    return gpu_steps.Steps(GPU, COMMIT, tmp_path / "results")


def test_every_workload_is_in_one_part() -> None:
    measured = [name for part in PARTS.values() for name in part.names]
    assert sorted(measured) == sorted([*catalogue.names(CUDA), *NAMES])


@pytest.mark.parametrize("name", PARTS)
def test_a_part_ends_within_nine_minutes(name: str) -> None:
    assert 10 < PARTS[name].estimate <= MOST_SECONDS == 540


def test_the_list_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--part", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PARTS)
    assert lines[0].split()[1:3] == ["0.7", "min"]


def test_parts_run_in_their_own_order_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen("losses,build") == ["build", "losses"]
    assert chosen("") == list(PARTS)
    assert gpu.main(["--part", "loses"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no part loses; there are build, test,")


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "CORE", "json")  # what every Python has
    part = Part("", modules=("json",), programs=("sh",))
    assert part.missing() == ""
    modules = replace(part, modules=("json", "onnxruntime_", "nibabel_"))
    assert modules.missing() == "needs the Python packages onnxruntime_, nibabel_: pip install onnxruntime_ nibabel_"
    assert replace(part, programs=("no-such-program",)).missing() == "needs no-such-program on the path"
    monkeypatch.setattr(gpu_parts, "CORE", "json.no_such_core")
    assert part.missing().startswith("needs the CUDA core, which is not built for this Python: PART=build first")
    assert replace(part, core=False).missing() == ""
    assert PARTS["predict"].modules[-1] == "onnxruntime"
    assert gpu_parts.package("onnxruntime") == "onnxruntime-gpu"


def test_a_part_that_lacks_something_fails_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(machine, "describe_gpu", lambda: GPU)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    poor = Part("poor", lambda steps: ran.append("poor"), modules=("no_such_module",))
    rich = Part("rich", lambda steps: ran.append("rich"), modules=(), core=False)
    monkeypatch.setattr(gpu, "PARTS", {"poor": poor, "rich": rich})
    monkeypatch.setattr(gpu, "chosen", lambda text: ["poor", "rich"])
    assert gpu.main([]) == 1
    assert ran == ["rich"]
    assert "error: poor needs the Python packages no_such_module" in capsys.readouterr().err


def test_without_history_the_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "describe_gpu", lambda: GPU)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    monkeypatch.delenv("COMMIT", raising=False)
    assert gpu.main(["--part", "losses"]) == 2
    assert "no commit is known" in capsys.readouterr().err
    monkeypatch.setenv("COMMIT", "0123456789abcdef")
    assert machine.commit() == {"commit": "0123456789ab", "dirty": False}


def test_a_part_begins_nothing_when_its_time_is_up_and_stops_what_runs_over(
    steps: gpu_steps.Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(gpu_steps, "run", lambda command, timeout, environment: (given.append(timeout) or True, ""))
    now = time.monotonic()
    monkeypatch.setattr(gpu_steps.time, "monotonic", lambda: now)
    steps.begin(100)
    assert steps.step("short", ["true"], 60)
    assert steps.step("long", ["true"], 600)
    now += 96
    assert not steps.step("late", ["true"], 60)
    assert given == [60, 100]
    assert (list(steps.record.steps), steps.left_out) == (["short", "long"], ["late"])


def test_what_this_commit_has_no_figures_of_comes_first(
    steps: gpu_steps.Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.save(benchmarks={"op/a": figures("op/a", {}), "op/b": figures("op/b", {}) | {"commit": "older"}})
    order: list[str] = []
    monkeypatch.setattr(steps, "benchmark", order.append)
    steps.benchmarks(["op/a", "op/b", "op/c"])
    assert order == ["op/b", "op/c", "op/a"]


def test_a_whole_command_is_measured_by_its_own_program_and_its_costs_are_printed(
    steps: gpu_steps.Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
        assert command[:4] == [sys.executable, "-m", "bench.commands", "commands/export"]
        one = figures("commands/export", {}) | {"costs": {"export, s": 5.25}}
        records.write(records.Record(GPU, records.now(), {one["name"]: one}), Path(command[4]))
        return True, ""

    monkeypatch.setattr(gpu_steps, "run", run)
    steps.benchmark("commands/export")
    assert records.read(steps.paths[0]).benchmarks["commands/export"]["costs"] == {"export, s": 5.25}
    assert "export, s 5.25" in capsys.readouterr().out
    assert runner.summary(figures("op/a", {})) == ""


def test_the_sanitizers_run_whatever_has_kernels() -> None:
    assert sanitized() == ["triton", "cuda"] or sanitized() == ["cuda", "triton"]
