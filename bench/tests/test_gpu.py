"""What `make gpu` does, as far as that can be seen without a GPU: its steps, its record, its rows on tiny problems."""

import functools
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_ops, gpu_shapes, gpu_step
from bench.gpu_table import table
from bench.gpu_timing import step_times, times
from smile_fast.models import ModelConfig

MACHINE = {
    "gpu": "NVIDIA Some GPU",
    "driver": "1",
    "torch": "2",
    "triton": "3",
    "nvcc": "4",
    "python": "3.11",
    "commit": "abc",
}
SMALL = {"device": "cpu", "repetitions": 1}
SAY = [sys.executable, "-c", "print('said')"]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Record:
    monkeypatch.delenv("OUT", raising=False)
    return gpu.Record(MACHINE, tmp_path / "results")


def written(record: gpu.Record) -> dict[str, dict[str, dict[str, object]]]:
    content: dict[str, dict[str, dict[str, object]]] = json.loads(record.paths[0].read_text())
    return content


def test_a_step_is_recorded_at_once(record: gpu.Record) -> None:
    assert record.step("good", SAY, 60)
    assert not record.step("bad", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60)
    steps = written(record)["steps"]
    assert (steps["good"]["passed"], steps["good"]["tail"]) == (True, ["said"])
    assert (steps["bad"]["passed"], steps["bad"]["tail"]) == (False, ["why"])


def test_a_program_that_is_not_there_fails_its_step_alone(record: gpu.Record) -> None:
    assert not record.step("absent", ["no-such-program"], 60)
    assert "no-such-program" in str(written(record)["steps"]["absent"]["tail"])


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
    passed, output = gpu.run(["bash", "-c", script], 60, {})
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
    passed, output = gpu.run([sys.executable, "-c", code], 60, {"MORE": "more"})
    assert passed
    assert output.splitlines() == [str(gpu.ROOT / "smile_fast" / "__init__.py"), "more"]


def test_parts_of_one_commit_add_up(record: gpu.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record.step("one", SAY, 60)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    second = gpu.Record(MACHINE, tmp_path / "results")
    second.step("two", SAY, 60)
    assert list(written(second)["steps"]) == ["one", "two"]
    assert (tmp_path / "out" / "nvidia-some-gpu.json").read_bytes() == second.paths[0].read_bytes()
    other = gpu.Record({**MACHINE, "commit": "def"}, tmp_path / "results")
    assert other.content["steps"] == {}


def test_everything_runs_after_a_failure_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
        commands.append(command)
        if command[2] in ("bench.gpu_ops", "bench.gpu_step", "bench.gpu_volume"):
            Path(command[-1]).write_text(json.dumps({"milliseconds": {"cuda": {"median": 1.0, "min": 1.0}}}))
        return "pytest" not in command, "output"

    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(gpu, "machine", lambda: MACHINE)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "run", run)
    assert gpu.main([]) == 1
    content = json.loads((tmp_path / "nvidia-some-gpu.json").read_text())
    assert [name for name, step in content["steps"].items() if not step["passed"]] == ["tests"]
    rows = {*gpu_ops.ROWS, *gpu_step.ROWS, *gpu.VOLUME_ROWS}
    assert len(content["steps"]) == 2 + 1 + 2 * len(gpu.SANITIZERS) + len(rows)
    assert set(content["rows"]) == rows
    assert "1 failed: tests" in capsys.readouterr().out
    assert gpu.main(["--only", "bench"]) == 1  # the failed tests are still in the record
    commands.clear()
    gpu.main(["--only", "build"])
    assert [command[0] for command in commands] == ["cmake", "cmake"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "error: torch sees no CUDA device" in capsys.readouterr().err


def test_every_command_exists() -> None:
    assert gpu.machine()["torch"] == torch.__version__
    for command in (*gpu.build_commands().values(), gpu.test_command(), gpu.sanitizer_command("memcheck", "cuda")):
        if "-m" in command:
            assert importlib.util.find_spec(command[command.index("-m") + 1]) is not None
    assert (gpu.ROOT / gpu.test_command()[-1]).is_dir()
    for name in ("gpu_ops", "gpu_step"):
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{name}", "no such row", "out"], cwd=gpu.ROOT, capture_output=True, text=True
        )
        assert "KeyError: 'no such row'" in done.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on the path, as a GPU machine has")
def test_the_build_is_configured_with_what_cmake_knows() -> None:
    lists = (gpu.ROOT / "CMakeLists.txt").read_text() + (gpu.ROOT / "csrc" / "cuda.cmake").read_text()
    options = [part[2:].split("=")[0] for part in gpu.build_commands()["configure"] if part.startswith("-DSMILE")]
    assert options == ["SMILE_FAST_PYTHON", "SMILE_FAST_CUDA"]
    assert all(option in lists for option in options)


def test_ragged_shapes_of_every_op() -> None:
    device_implementation = "native" if "masked_bce" in gpu_shapes.kernels("native", "cpu") else "reference"
    assert gpu_shapes.SHAPES >= 50
    assert gpu_shapes.main(device_implementation, "cpu", shapes=6) == 6 * len(gpu_shapes.OPS)
    assert {op for op, _ in gpu_shapes.problem(random.Random(1), torch.float32, "cpu")} == set(gpu_shapes.OPS)
    with pytest.raises(SystemExit, match="cuda is not usable on cpu"):
        gpu_shapes.main("cuda", "cpu")


ROWS: dict[str, Callable[[], gpu_ops.Row]] = {
    "masked_bce": functools.partial(gpu_ops.loss_row, 3, 0.5, torch.float32, side=32, **SMALL),
    "masked_bce_upsampled": functools.partial(
        gpu_ops.loss_row, 3, 0.5, torch.bfloat16, upsampled=True, side=32, **SMALL
    ),
    "select_top_fraction": functools.partial(gpu_ops.select_row, 0.5, length=2000, **SMALL),
    "pseudo_labels_upsampled": functools.partial(gpu_ops.relabel_row, depth=3, side=32, organs=4, **SMALL),
    "label_map_upsampled": functools.partial(gpu_ops.label_map_row, images=3, side=32, organs=4, **SMALL),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_agree_and_have_their_peers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(compile_, backend="aot_eager"))
    torch.compiler.reset()
    row = ROWS[name]()
    assert all(figures["median"] >= figures["min"] > 0 for figures in row["milliseconds"].values())
    peers = {
        "masked_bce": {"eager", "torch.compile", "copy of the logits"},
        "masked_bce_upsampled": {"eager", "torch.compile", "masked_bce of upsampled logits"},
        "select_top_fraction": {"torch.topk", "torch.sort", "one read"},
        "pseudo_labels_upsampled": {"host to host, captured"},
        "label_map_upsampled": {"eager"},
    }
    assert peers[name] < set(row["milliseconds"])
    assert len(row["milliseconds"]) > len(peers[name])


def test_ceilings() -> None:
    found = gpu_ops.ceilings("cpu", 1 << 16, 1)
    assert min(found["copy_gbps"], found["read_gbps"]) > 0


def test_training_step() -> None:
    config = ModelConfig(organs=("a", "b", "c"), backbone="resnet18", width=8, channels=3)
    row = gpu_step.training_step(False, config, side=32, **SMALL)
    assert set(row["milliseconds"]) == {gpu_step.ALONE, gpu_step.WITH_LOSS}
    assert "overhead of the loss" in row["facts"]


def test_every_call_is_timed_as_often() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    timed = {name: functools.partial(count, name) for name in calls}
    assert set(times(timed, "cpu", 4)) == set(calls)
    assert calls == {"a": 7, "b": 7}
    step_times(timed, "cpu", 2)
    assert calls["a"] == calls["b"] == 7 + 3 + 2 * 6


def test_the_table_compares_with_the_best_of_ours_and_with_a_copy() -> None:
    taken = {"cuda": 2.0, "triton": 4.0, "eager": 30.0}
    row = {
        "milliseconds": {name: {"median": value, "min": value} for name, value in taken.items()},
        "dense_bytes": 4_000_000_000,
        "facts": {"error of cuda": 1e-8},
    }
    ceilings = {"copy_gbps": 4000.0, "read_gbps": 3500.0}
    rows = {"ceilings": ceilings, "masked_bce": row, "step": {"milliseconds": {"alone": {"median": 9.0, "min": 9.0}}}}
    lines = table({"machine": MACHINE, "steps": {"build": {"passed": False}}, "rows": rows}).splitlines()
    assert lines[:3] == [
        "NVIDIA Some GPU, torch 2, triton 3, commit abc",
        "1 steps, 1 failed: build",
        "a copy 4000 GB/s, a read 3500 GB/s",
    ]
    cuda, eager = (next(line for line in lines if name in line) for name in ("cuda  ", "eager"))
    assert cuda.split() == "cuda 2.000 ms 2000 GB/s 50% of a copy 1.00 x ours".split()
    assert eager.split()[-3:] == ["15.00", "x", "ours"]
    assert lines[-1].split() == ["alone", "9.000", "ms"]


@pytest.mark.slow
def test_the_tests_on_the_device_can_be_rehearsed() -> None:
    environment = {**os.environ, "SMILE_FAST_GPU": "rehearse", "PYTHONPATH": f"{gpu.ROOT}:{gpu.ROOT / 'export'}"}
    done = subprocess.run(gpu.test_command(), cwd=gpu.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
