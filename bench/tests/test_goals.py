from fnmatch import fnmatch

import pytest

from bench.catalogue import names
from bench.comparison import CPU, OURS
from bench.data_path import names as data
from bench.data_path.prepare_scale import SCALE, SCALE_SECONDS
from bench.goals import GOALS, Goal, judge, report
from bench.ops.names import COMPILE, COPY, EAGER, IN_PLACE, ONE_GRAPH
from bench.records import selected
from bench.tests.synthetic import figures
from bench.whole_volume.workloads import BYTES_A_VOXEL

FAST = Goal("fast", "op/a", EAGER, 10)
CLOSE = Goal("close to a copy", "op/a", COPY, 3, "at most")
RIGHT = Goal("right", "op/*", "voxels", 0, "at most")


@pytest.mark.parametrize(
    ("goal", "ratio", "state", "figure"),
    [
        (FAST, 10.0, "met", 10.0),
        (FAST, 9.9, "missed", 9.9),
        (CLOSE, 0.4, "met", 2.5),
        (CLOSE, 0.25, "missed", 4.0),
    ],
)
def test_medians_decide(goal: Goal, ratio: float, state: str, figure: float) -> None:
    verdict = judge(goal, {"op/a": figures("op/a", {OURS: {EAGER: (ratio, 99.0), COPY: (ratio, 99.0)}})})
    assert (verdict.state, verdict.figure) == (state, figure)


def test_in_place_counts_and_the_other_figure_is_shown() -> None:
    verdict = judge(FAST, {"op/a": figures("op/a", {OURS: {EAGER: (8, 8)}, IN_PLACE: {EAGER: (12, 12)}})})
    assert (verdict.state, verdict.remark) == ("met", "in place, 8 in a new buffer")


def test_the_stronger_compiled_peer_is_named() -> None:
    ratios = {
        OURS: {COMPILE: (8, 8), ONE_GRAPH: (5, 5)},
        IN_PLACE: {EAGER: (30, 30), COMPILE: (12, 12), ONE_GRAPH: (7, 7)},
    }
    measured = {"op/a": figures("op/a", ratios)}
    verdict = judge(Goal("fast", "op/a", COMPILE, 10), measured)
    assert (verdict.state, verdict.figure) == ("met", 12)
    assert verdict.remark == "in place, 8 in a new buffer, 7 against compile, one graph"
    assert ONE_GRAPH not in judge(FAST, measured).remark


def test_a_figure_without_a_goal_is_shown_and_fails_nothing() -> None:
    verdict = judge(Goal("only shown", "op/a", EAGER), {"op/a": figures("op/a", {OURS: {EAGER: (0.5, 0.5)}})})
    assert (verdict.state, verdict.figure) == ("no goal", 0.5)
    assert verdict.line().split() == ["no", "goal", "only", "shown", "0.5"]
    assert judge(Goal("only shown", "op/a", EAGER), {}).state == "not measured"


def test_the_best_of_several_peers_and_the_worst_of_several_workloads_count() -> None:
    best = Goal("best", "op/*", ("x", "y"), 5)
    measured = {
        "op/a": figures("op/a", {OURS: {"x": (9, 9), "y": (6, 6)}}, voxels=0),
        "op/b": figures("op/b", {OURS: {"x": (8, 8)}}, voxels=2),
        "other/c": figures("other/c", {OURS: {"x": (1, 1)}}, voxels=7),
    }
    assert (judge(best, measured).state, judge(best, measured).figure) == ("met", 6)
    assert (judge(RIGHT, measured).state, judge(RIGHT, measured).figure) == ("missed", 2)


def test_what_is_not_measured_is_not_missed() -> None:
    assert judge(FAST, {}).state == "not measured"
    lines, none_missed = report({"this CPU": {}})
    assert none_missed
    assert len(lines) == len(GOALS) + 1
    assert all(goal.wording in line for goal, line in zip(GOALS, lines, strict=False))
    assert lines[-1] == f"0 met, 0 missed, {len(GOALS)} not measured"


def test_a_miss_fails_the_report() -> None:
    name = "masked_bce/K13-none"
    lines, none_missed = report({"this CPU": {name: figures(name, {OURS: {EAGER: (24.9, 99)}})}})
    assert not none_missed
    assert sum(line.startswith("missed") for line in lines) == 1


def test_every_goal_names_workloads_that_exist() -> None:
    for goal in GOALS:
        assert selected([*names(CPU, long=True), SCALE], goal.workload)


def test_what_is_no_time_is_judged_too() -> None:
    goal = next(goal for goal in GOALS if goal.peer == BYTES_A_VOXEL)
    for bytes_a_voxel, state in ((4.9, "met"), (5.1, "missed")):
        measured = {
            "whole_volume/memory-K3": figures("whole_volume/memory-K3", {}) | {"costs": {BYTES_A_VOXEL: 3.0}},
            "whole_volume/memory-K100": figures("whole_volume/memory-K100", {})
            | {"costs": {BYTES_A_VOXEL: bytes_a_voxel}},
        }
        assert judge(goal, measured).state == state


def test_as_many_goals_as_were_set() -> None:
    """A goal that is withdrawn is withdrawn here, too."""
    aimed = [goal for goal in GOALS if goal.threshold is not None]
    assert (len(GOALS), len(aimed)) == (68, 56)


def test_what_the_first_record_has_not_measured_is_judged_by_the_next() -> None:
    name, other = "masked_bce/K13-none", "masked_bce/K13-70"
    here = {name: figures(name, {OURS: {EAGER: (30, 30)}})}
    there = {one: figures(one, {OURS: {EAGER: (50, 50)}}) for one in (name, other)}
    lines, none_missed = report({"here": here, "there": there})
    assert none_missed
    first, second = (next(line for line in lines if line.startswith("met") and of in line) for of in ("none", "70%"))
    assert " 30 " in first
    assert "there" not in first
    assert " 50 " in second
    assert second.endswith("(there)")


def test_a_peer_that_was_left_out_is_said() -> None:
    goal = next(goal for goal in GOALS if goal.peer == (data.ZARR, data.ZARR_BEST))
    without = figures("loader/phantom", {OURS: {data.NIFTI: (100, 100)}})
    verdict = judge(goal, {"loader/phantom": without | {data.LEFT_OUT: {data.ZARR: "zarr is not installed"}}})
    assert (verdict.state, verdict.remark) == ("not measured", "zarr v3: zarr is not installed")
    assert judge(goal, {"loader/phantom": without}).remark == "zarr v3 is not in the record"


@pytest.mark.parametrize(
    ("workload", "peer", "direction", "good", "bad"),
    [
        ("loader/thorax", data.SLICES_PER_SECOND, "at least", 4000.0, 3999.0),
        ("cohort/1000", data.OPENING, "at most", 0.2, 0.21),
        ("cohort/10000", data.OPENING, "at most", 1.5, 1.6),
        ("cohort/1000", data.TRAINING_GROWTH, "at most", 1.1, 1.2),
        (SCALE, SCALE_SECONDS, "at most", 300.0, 301.0),
    ],
)
def test_costs_of_the_data_path_are_judged(workload: str, peer: str, direction: str, good: float, bad: float) -> None:
    goal = next(goal for goal in GOALS if goal.peer == peer and fnmatch(workload, goal.workload))
    assert goal.direction == direction
    for value, state in ((good, "met"), (bad, "missed")):
        assert judge(goal, {workload: figures(workload, {}) | {"costs": {peer: value}}}).state == state


def test_the_step_is_held_against_the_bare_pass_without_the_optimizer() -> None:
    goal = next(goal for goal in GOALS if goal.peer == data.BARE)
    name = "train_loop/resnet18"
    ratios = {OURS: {data.BARE: (1 / 1.06, 1), data.BARE_STEP: (1, 1)}, data.BY_PROCESS: {data.BARE: (1, 1)}}
    verdict = judge(goal, {name: figures(name, ratios)})
    assert (verdict.state, round(verdict.figure or 0, 2)) == ("missed", 1.06)


def test_wordings_are_distinguished() -> None:
    assert len({goal.wording for goal in GOALS}) == len(GOALS)
