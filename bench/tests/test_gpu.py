"""What `make gpu` does, as far as that can be seen without a GPU: its steps, its record, its workloads rehearsed."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import catalogue, comparison, gpu, gpu_parts, gpu_profile, gpu_steps, machine, ragged_shapes, records, runner
from bench.commands.workloads import NAMES as COMMANDS
from bench.comparison import CPU, CUDA, OURS, SMOKE, Conditions
from bench.measure import MILLISECONDS
from bench.ops import masked_bce_upsampled, pseudo_labels_upsampled, select_top_fraction, training_step
from bench.ops.names import COMPILE, COPY, EAGER, IN_PLACE, ONE_GRAPH, READ
from bench.tests.synthetic import GPU, figures
from bench.timing import CpuTimer, CudaTimer
from bench.whole_volume import volume
from bench.whole_volume.workloads import COMPILED, NO_CROP, SESSION
from bench.whole_volume.workloads import EAGER as EAGER_LOOP

COMMIT = {"commit": "abc", "dirty": False}
SAY = [sys.executable, "-c", "print('said')"]
REHEARSED = replace(SMOKE, rehearsed=True)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_steps.Steps:
    monkeypatch.delenv("OUT", raising=False)
    return gpu_steps.Steps(GPU, COMMIT, tmp_path / "results")


def written(steps: gpu_steps.Steps) -> records.Record:
    return records.read(steps.paths[0])


def test_a_step_is_recorded_at_once(steps: gpu_steps.Steps) -> None:
    assert steps.step("good", SAY, 60)
    assert not steps.step("bad", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60)
    found = written(steps).steps
    assert (found["good"]["passed"], found["good"]["tail"], found["good"]["commit"]) == (True, ["said"], "abc")
    assert (found["bad"]["passed"], found["bad"]["tail"]) == (False, ["why"])


def test_a_program_that_is_not_there_fails_its_step_alone(steps: gpu_steps.Steps) -> None:
    assert not steps.step("absent", ["no-such-program"], 60)
    assert "no-such-program" in str(written(steps).steps["absent"]["tail"])


def test_a_step_that_hangs_ends_with_its_children_and_keeps_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is up as soon as the shell's child runs, whenever that is."""
    pid = tmp_path / "pid"

    class Hanging(subprocess.Popen[str]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            wait_until(pid.exists)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Hanging)
    script = f"echo begun; sleep 600 & echo $! > {pid}.unfinished; mv {pid}.unfinished {pid}; wait"
    passed, output = gpu_steps.run(["bash", "-c", script], 60, {})
    assert not passed
    assert output == "begun\n\nstopped after 60 s"
    child = int(pid.read_text())
    wait_until(lambda: not is_running(child))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120  # only a defect takes that long
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # FileNotFoundError, or gone while it was read
        return False


def test_steps_see_the_checkout_and_their_own_environment() -> None:
    code = "import os, smile_fast, smile_runtime; print(smile_fast.__file__); print(os.environ['MORE'])"
    passed, output = gpu_steps.run([sys.executable, "-c", code], 60, {"MORE": "more"})
    assert passed
    assert output.splitlines() == [str(machine.ROOT / "smile_fast" / "__init__.py"), "more"]


def test_parts_of_one_commit_add_up(steps: gpu_steps.Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.step("one", SAY, 60)
    steps.save(benchmarks={"op/a": figures("op/a", {})})
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    second = gpu_steps.Steps(GPU, COMMIT, tmp_path / "results")
    second.step("two", SAY, 60)
    assert list(written(second).steps) == ["one", "two"]
    assert list(written(second).benchmarks) == ["op/a"]
    assert (tmp_path / "out" / "nvidia-some-gpu.json").read_bytes() == second.paths[0].read_bytes()
    other = gpu_steps.Steps(GPU, {"commit": "def", "dirty": False}, tmp_path / "results")
    assert other.record.steps == {}
    assert list(other.record.benchmarks) == ["op/a"]  # says at which commit it was measured


def test_everything_runs_after_a_failure_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
        commands.append(command)
        if "bench.commands" in command:
            one = figures(command[-2], {}) | {"costs": {"steps/s": 20.0}}
            records.write(records.Record(GPU, records.now(), {one["name"]: one}), Path(command[-1]))
        if "bench.gpu_profile" in command:
            Path(command[-1]).write_text("kernels")
        for option in command:
            if option.startswith("--benchmark-json="):
                name = next(part for part in command if "::" in part).split("[")[1].rstrip("]")
                content = {"machine_info": GPU, "commit_info": COMMIT, "datetime": records.now()}
                one = figures(name, {OURS: {EAGER: (2, 2)}, COPY: {READ: (2, 2)}, READ: {}}) | {"bytes": 2**30}
                content["benchmarks"] = [{"extra_info": one}]
                Path(option.partition("=")[2]).write_text(json.dumps(content))
        return "tests/gpu" not in command, "output"

    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(machine, "describe_gpu", lambda: GPU)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_steps, "run", run)
    monkeypatch.setattr(gpu_profile, "run", run)
    monkeypatch.setattr(gpu_parts.Part, "missing", lambda self: "")
    assert gpu.main([]) == 1
    content = records.read(tmp_path / "nvidia-some-gpu.json")
    assert [name for name, step in content.steps.items() if not step["passed"]] == ["tests"]
    workloads = {*catalogue.names(CUDA), *COMMANDS}
    profiles = [name for name in content.steps if name.startswith("profile of ")]
    sanitizers = len(gpu_parts.sanitized()) * len(gpu_parts.SANITIZERS)
    assert len(content.steps) == 2 + 1 + sanitizers + len(workloads) + len(profiles)
    assert set(content.benchmarks) == workloads
    assert len(profiles) >= 10
    assert set(gpu_profile.sections(tmp_path / "nvidia-some-gpu-profile.txt")) == {name[11:] for name in profiles}
    printed = capsys.readouterr().out
    assert "1 failed: tests" in printed
    assert "missed, 1.65 times off" in printed  # 20 steps/s, 33 are the goal
    assert gpu.main(["--part", "losses"]) == 1  # the failed tests are still in the record
    commands.clear()
    gpu.main(["--part", "build"])
    assert [command[0] for command in commands] == ["cmake", "cmake"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "error: torch sees no CUDA device" in capsys.readouterr().err


def test_every_command_exists() -> None:
    assert machine.describe_gpu()["torch"] == torch.__version__
    sanitizer = gpu_parts.sanitizer_command("memcheck", "cuda")
    for command in (*gpu_parts.build_commands().values(), gpu_parts.test_command(), sanitizer):
        if "-m" in command:
            assert importlib.util.find_spec(command[command.index("-m") + 1]) is not None
    assert (machine.ROOT / gpu_parts.test_command()[-1]).is_dir()
    needed = {module for part in gpu_parts.PARTS.values() for module in part.modules}
    assert all(importlib.util.find_spec(name) for name in needed)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on the path, as a GPU machine has")
def test_the_build_is_configured_with_what_cmake_knows() -> None:
    lists = (machine.ROOT / "CMakeLists.txt").read_text() + (machine.ROOT / "csrc" / "cuda.cmake").read_text()
    options = [part[2:].split("=")[0] for part in gpu_parts.build_commands()["configure"] if part.startswith("-DSMILE")]
    assert options == ["SMILE_FAST_PYTHON", "SMILE_FAST_CUDA"]
    assert all(option in lists for option in options)


def test_ragged_shapes_of_every_op() -> None:
    device_implementation = "native" if ragged_shapes.kernels("native", "cpu") else "reference"
    assert ragged_shapes.SHAPES >= 50
    assert ragged_shapes.main(device_implementation, "cpu", shapes=6) == 6 * len(ragged_shapes.OPS)
    assert {op for op, _ in ragged_shapes.problem(random.Random(1), torch.float32, "cpu")} == set(ragged_shapes.OPS)
    with pytest.raises(SystemExit, match="cuda is not usable on cpu"):
        ragged_shapes.main("cuda", "cpu")
    with pytest.raises(SystemExit, match="gone is not usable on cpu: no op has it"):
        ragged_shapes.main("gone", "cpu")


def test_a_gpu_is_timed_by_events_but_for_what_ends_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    monkeypatch.setattr(catalogue, "CudaTimer", lambda *, queued: made.append(queued) or "events")
    timers = {name: catalogue.timer(name, CUDA) for name in catalogue.names(CUDA)}
    assert {name for name, timer in timers.items() if timer == "events"} == {
        name for name in timers if not name.startswith(("whole_volume/", "predict/"))
    }
    assert made.count(False) == len(training_step.WORKLOADS)
    assert all(isinstance(catalogue.timer(name, CPU), CpuTimer) for name in catalogue.names(CPU, long=True))
    assert CudaTimer(device=CPU, queued=False).repetitions > CpuTimer().repetitions


def test_a_gpu_measures_every_implementation_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = [("native", False, "no"), ("cuda", True, ""), ("triton", True, ""), ("reference", True, "")]
    monkeypatch.setattr(comparison, "available", lambda op, device: usable)
    asked: list[str | None] = []
    calls = comparison.variants("masked_bce", REHEARSED, lambda implementation: asked.append(implementation))
    for call in calls:
        call.run()
    assert ([call.name for call in calls], asked) == ([OURS, f"{OURS}, triton"], [None, "triton"])
    assert [call.name for call in comparison.variants("masked_bce", SMOKE, lambda implementation: None)] == [OURS]
    assert comparison.chosen("masked_bce", CUDA) == "cuda"


LOSSES = {OURS, EAGER, COMPILE, ONE_GRAPH, COPY}
EXPECTED = {
    "masked_bce/K3-half": LOSSES | {IN_PLACE},
    "masked_bce_upsampled/K13-bf16-half": LOSSES | {masked_bce_upsampled.DENSE},
    "select_top_fraction/3x26M-5pct-scattered": {OURS, select_top_fraction.TOPK, select_top_fraction.SORT, READ},
    "pseudo_labels_upsampled/K13-noise-volume": {OURS, EAGER, COMPILE, pseudo_labels_upsampled.HOST_TO_HOST},
    "label_map_upsampled/K13-noise-volume": {OURS, EAGER, COMPILE},
    "memory/1GiB": {COPY, READ},
    "training_step/resnet50": {OURS, training_step.ALONE},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_workloads_of_a_gpu_agree_and_have_their_peers(name: str, tmp_path: Path) -> None:
    """Another implementation of ours, where a CPU has one, takes part as well."""
    given = catalogue.comparison(name, REHEARSED, tmp_path)
    errors = given.check()
    assert all(np.isfinite(value) for value in errors.values())
    assert EXPECTED[name] <= {call.name for call in given.calls}
    assert given.facts.get("bytes", 1) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_whole_volume_of_a_gpu_agrees_with_torch(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled here: `make bench-smoke` does that, for a minute."""
    monkeypatch.setattr(Conditions, "compiled", lambda self, function: function)
    given = catalogue.comparison(f"whole_volume/gpu-{precision}", REHEARSED, tmp_path)
    assert {call.name for call in given.calls} == {OURS, SESSION, NO_CROP, EAGER_LOOP, COMPILED}
    assert given.check()["share of differing voxels"] <= volume.UNDECIDED_VOLUME[precision]
    assert 0 < given.facts["computed pixels"] <= given.facts["voxels"]


def test_labels_that_differ_from_torch_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = volume.loop
    monkeypatch.setattr(volume, "inferers", lambda *_: {})
    monkeypatch.setattr(volume, "loop", lambda *given, **options: (real(*given, **options) == 0).astype(np.uint8))
    with pytest.raises(AssertionError, match="differ from torch"):
        catalogue.comparison("whole_volume/gpu-fp32", REHEARSED, tmp_path).check()


def test_without_the_provider_a_workload_says_why_it_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="onnxruntime has no CUDAExecutionProvider here"):
        catalogue.comparison("whole_volume/gpu-fp32", replace(REHEARSED, device=CUDA), tmp_path)


def test_pytest_benchmark_times_by_the_timer_of_the_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a benchmark, in a process as `make gpu` starts one, on a clock that goes by whole seconds."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under xdist pytest-benchmark switches itself off
    code = (
        "import itertools, sys, pytest; from bench import timing; seconds = itertools.count();"
        "timing.CpuTimer.now = lambda self: next(seconds); sys.exit(pytest.main(sys.argv[1:]))"
    )
    path = tmp_path / "run.json"
    arguments = runner.command(runner.arguments("memory/1GiB", CUDA, path))
    command = [sys.executable, "-c", code, *arguments[3:], "--smoke"]
    passed, output = gpu_steps.run(command, 300, {})
    assert passed, output
    found = runner.record_of(path)
    assert found is not None
    assert found.machine["device"] == CUDA
    assert found.benchmarks["memory/1GiB"][MILLISECONDS][COPY]["median"] == 1000
    assert found.benchmarks["memory/1GiB"][MILLISECONDS][READ]["median"] == 1000


@pytest.mark.slow
def test_the_tests_on_the_device_can_be_rehearsed() -> None:
    path = f"{machine.ROOT}:{machine.ROOT / 'export'}"
    environment = {**os.environ, "SMILE_FAST_GPU": "rehearse", "PYTHONPATH": path}
    done = subprocess.run(gpu_parts.test_command(), cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_a_folder_agrees_with_a_loop_by_hand(tmp_path: Path) -> None:
    given = catalogue.comparison("predict/folder-fp16", REHEARSED, tmp_path)
    assert given.check()["share of differing voxels"] <= volume.UNDECIDED_VOLUME["fp16"]
    assert [call.name for call in given.calls] == [OURS, EAGER_LOOP]
    assert given.facts["volumes"] == 2
