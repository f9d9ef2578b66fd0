"""Profiles beside a GPU's record: arithmetic, the file, and that a workload can be profiled at all."""

from pathlib import Path

import pytest

from bench import gpu_profile, gpu_steps
from bench.comparison import OURS
from bench.ops.names import EAGER
from bench.tests.synthetic import GPU, figures

COMMIT = {"commit": "abc", "dirty": False}


def test_kernels_stand_by_their_time_a_run() -> None:
    events = [("small", 1.0), ("large", 30.0), ("small", 1.0), ("large", 50.0), ("small", 2.0), ("small", 4.0)]
    lines = gpu_profile.by_kernel(events, runs=2)
    assert lines[0] == "44.0 us of kernels a run, 3.0 launches"
    assert [line.split() for line in lines[1:]] == [
        ["40.0", "us", "90.9%", "1.0", "x", "large"],
        ["4.0", "us", "9.1%", "2.0", "x", "small"],
    ]
    assert gpu_profile.by_kernel([], runs=2) == ["0.0 us of kernels a run, 0.0 launches"]


def test_a_profile_replaces_that_of_its_workload_alone(tmp_path: Path) -> None:
    path = tmp_path / "gpu-profile.txt"
    older = COMMIT | {"commit": "older"}
    gpu_profile.put(path, "op/a", "slow\n", older)
    gpu_profile.put(path, "op/b", "one line\nanother", older)
    gpu_profile.put(path, "op/a", "fast", COMMIT)
    assert gpu_profile.sections(path) == {"op/a": "abc\nfast\n", "op/b": "older\none line\nanother\n"}
    assert list(gpu_profile.sections(path, COMMIT)) == ["op/a"]
    assert path.read_text() == "## op/a at abc\nfast\n\n## op/b at older\none line\nanother\n"


def test_of_ncu_a_few_lines_are_kept() -> None:
    output = """==PROF== Connected
void kernel<float>(Problem) (512, 1, 1)x(128, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Duration                         us         40.32
    L1/TEX Hit Rate                   %         12.00
    Achieved Occupancy                %         23.10"""
    kept = list(gpu_profile.ncu_lines(output))
    assert kept[2:] == ["  Duration us 40.32", "  Achieved Occupancy % 23.10"]
    assert "kernel<float>" in kept[1]


def test_what_misses_a_goal_or_was_never_measured_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    steps = gpu_steps.Steps(GPU, COMMIT, tmp_path / "results")
    fast, slow = "masked_bce/K64-bf16-half", "masked_bce/K13-none"
    times = {OURS: {"median": 0.01, "minimum": 0.01}, EAGER: {"median": 1.0, "minimum": 1.0}}
    steps.save(
        benchmarks={
            fast: figures(fast, {OURS: {EAGER: (100, 100)}}) | {"milliseconds": times},
            slow: figures(slow, {OURS: {EAGER: (1, 1)}}),
        }
    )
    profiled: list[str] = []

    def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
        if command[0] == "ncu":
            return False, "ncu: no such program"
        profiled.append(command[3])
        Path(command[-1]).write_text("kernels")
        return True, ""

    monkeypatch.setattr(gpu_steps, "run", run)
    monkeypatch.setattr(gpu_profile, "run", run)
    gpu_profile.ops(steps)
    assert fast not in profiled
    assert {slow, "masked_bce/K3-half", "select_top_fraction/3x26M-all"} <= set(profiled)
    assert not any(name.startswith(("commands/", "whole_volume/", "predict/")) for name in profiled)
    beside = gpu_profile.sections(tmp_path / "results" / "nvidia-some-gpu-profile.txt")
    assert beside[slow] == "abc\nkernels\nncu: ncu: no such program\n"
    assert beside == gpu_profile.sections(tmp_path / "out" / "nvidia-some-gpu-profile.txt")
    profiled.clear()
    gpu_profile.commands(steps)
    assert "commands/train-resnet50" in profiled
    assert all(name.startswith(("commands/", "whole_volume/", "predict/")) for name in profiled)


@pytest.fixture(params=["masked_bce/K3-half", "whole_volume/gpu-fp16-resnet18"])
def workload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("bench.comparison.Conditions.compiled", lambda self, function: function)
    monkeypatch.setattr(gpu_profile, "RUNS", 2)
    return str(request.param)


def test_a_workload_can_be_profiled(workload: str, tmp_path: Path) -> None:
    out = tmp_path / "profile.txt"
    assert gpu_profile.main([workload, "--rehearse", "--out", str(out)]) == 0
    text = out.read_text()
    assert text.startswith("none, 2 runs\n") or "GPU" in text
    assert ("masked_bce" in text) if workload.startswith("masked_bce") else ("tottime" in text)


def test_the_committed_profiles_are_of_workloads() -> None:
    from bench.records import RESULTS

    for path in RESULTS.glob("*-profile.txt"):
        assert len(gpu_profile.sections(path)) >= 1
