"""Goals of a GPU: the arithmetic, whose figure counts, and that the committed record says what was reported of it."""

from dataclasses import replace
from typing import Any

import pytest

from bench import catalogue, gpu_goals
from bench.commands.workloads import NAMES, STEPS
from bench.comparison import CUDA, OURS, listed
from bench.gpu_goals import (
    GOALS,
    MET,
    MISSED,
    UNMEASURED,
    GpuGoal,
    against,
    bandwidth,
    cost,
    judge,
    memory_a_voxel,
    time,
)
from bench.ops.names import COPY, EAGER
from bench.records import gpus, selected
from bench.tests.synthetic import GPU, figures, record
from bench.timing import EXTRA_MEMORY
from smile_fast.ops import OPS
from tests.tolerances import RECORDED_RATIO

SLOW = GpuGoal("slow", "op/a", time(1e3), "us", 44)
FAST = GpuGoal("fast", "op/a", against(EAGER), "x", 25, "at least")


def one(name: str = "op/a", **more: Any) -> dict[str, Any]:
    return {name: figures(name, {OURS: {EAGER: (5, 5), COPY: (0.5, 0.5)}}) | more}


@pytest.mark.parametrize(
    ("goal", "state", "figure", "gap"),
    [
        (SLOW, MISSED, 2000, "45.45 times off"),
        (replace(SLOW, goal=2000), MET, 2000, ""),
        (FAST, MISSED, 5, "5.00 times off"),
        (replace(FAST, goal=5), MET, 5, ""),
        (replace(FAST, workload="op/b"), UNMEASURED, None, ""),
        (replace(FAST, figure=against("nobody")), UNMEASURED, None, ""),
    ],
)
def test_met_missed_or_not_measured(goal: GpuGoal, state: str, figure: float | None, gap: str) -> None:
    verdict = judge(goal, one())
    assert (verdict.state, verdict.figure, verdict.gap) == (state, figure, gap)
    assert verdict.line().startswith(f"{state}, {gap}" if gap else state)


def test_the_worst_of_several_workloads_counts() -> None:
    slower = one("op/b", milliseconds={OURS: {"median": 3.0}})
    verdict = judge(replace(SLOW, workload="op/*"), one() | slower)
    assert (verdict.figure, verdict.workload) == (3000, "op/b")


def test_bandwidth_counts_the_labels_too() -> None:
    """A copy takes half of our time and moves 40 of the 50 bytes."""
    (measured,) = one(bytes=50, labels=[2, 5]).values()
    assert bandwidth(measured) == pytest.approx(0.5 * 50 / 40)


def test_memory_is_that_of_a_voxel() -> None:
    (measured,) = one(labels=[2, 5], costs={EXTRA_MEMORY: 60.0}).values()
    assert memory_a_voxel(measured) == 6
    assert cost(STEPS)(measured) is None


def test_the_implementation_that_runs_today_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was the choice then stays in the record; the figure of today's choice is taken from the same run."""
    name = "masked_bce_upsampled/K13-half"
    measured = {
        name: figures(name, {OURS: {EAGER: (7, 7)}, f"{OURS}, triton": {EAGER: (11, 11)}}) | {"implementation": "cuda"}
    }
    goal = replace(FAST, workload=name)
    for today, whose, figure in ((["cuda", "triton"], "cuda", 7), (["triton"], "triton", 11), (["other"], "cuda", 7)):
        monkeypatch.setattr(gpu_goals, "listed", lambda op, device, today=today: today)
        verdict = judge(goal, measured)
        assert (verdict.whose, verdict.figure) == (f"{whose} at abc", figure)


def test_every_op_has_a_kernel_for_a_gpu_whatever_this_machine_has() -> None:
    for op in OPS:
        assert listed(op, CUDA)[0] in ("cuda", "triton")
        assert not {"native", "reference"} & set(listed(op, CUDA))
    assert listed("training_step", CUDA) == []


def test_goals_name_what_make_gpu_measures() -> None:
    known = [*catalogue.names(CUDA), *NAMES]
    for goal in GOALS:
        assert selected(known, goal.workload)


def test_as_many_goals_as_were_set() -> None:
    """A goal that is withdrawn is withdrawn here, too."""
    assert len(GOALS) == 33
    assert len({goal.wording for goal in GOALS}) == len(GOALS)


def test_the_first_run_is_what_its_record_says() -> None:
    """As long as a row of the first H100 stands in its record."""
    (run,) = [run for name, run in gpus().items() if name == "nvidia-h100-80gb-hbm3"]
    first = {name: row for name, row in run.benchmarks.items() if row["commit"] == "8346b26"}
    for goal in GOALS:
        verdict = judge(goal, first)
        if verdict.state != UNMEASURED and verdict.whose.startswith("cuda"):
            assert verdict.figure == pytest.approx(goal.first, **RECORDED_RATIO)


def test_the_report_counts() -> None:
    run = replace(record(*one("masked_bce/K13-none", milliseconds={OURS: {"median": 0.04}}).values()), machine=GPU)
    lines, none_missed = gpu_goals.report(run)
    assert none_missed
    assert len(lines) == len(GOALS) + 1
    assert lines[-1] == f"1 met, 0 missed, {len(GOALS) - 1} nobody has measured"
