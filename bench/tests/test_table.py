from pathlib import Path

import pytest

from bench.ops import NAMES
from bench.ops.peers import COPY, EAGER, IN_PLACE, OURS
from bench.run import summary
from bench.table import BEGIN, END, README, SELECTIONS, TITLES, VOLUMES, table, write
from bench.tests.records import figures, record
from bench.whole_volume import workloads


def test_a_row_for_each_variant_of_ours() -> None:
    name = "masked_bce/K13-none"
    run = record(figures(name, {OURS: {EAGER: (8.26, 9)}, IN_PLACE: {EAGER: (25.4, 30), COPY: (0.448, 0.5)}}))
    run["benchmarks"][0]["extra_info"]["commit"] = "abc"
    lines = table(run).splitlines()
    assert "| masked_bce, K = 13, none missing | 2 | 8.3 |  |  |  |" in lines
    assert "| masked_bce, K = 13, none missing, in place | 2 | 25 |  |  | 0.45 |" in lines
    assert lines[-1].endswith("2 threads of Some CPU @ 2 GHz, avx2, torch 9.9, commit abc.")
    assert not any("select_top_fraction" in line for line in lines)


def test_every_title_is_of_a_workload() -> None:
    assert {*TITLES, *SELECTIONS} <= set(NAMES)
    assert set(VOLUMES) <= {*workloads.NAMES, *workloads.LONG_NAMES}


def test_whole_volumes_have_a_table_and_their_costs_a_line() -> None:
    name = "whole_volume/thorax-resnet50"
    costs = {workloads.BYTES_A_VOXEL: 4.321, workloads.HELP: 0.1}
    run = record(
        figures(name, {OURS: {workloads.SESSION: (0.97, 0.97), workloads.CHANNELS_LAST: (3.14, 3)}}),
        figures("whole_volume/memory-K3", {OURS: {workloads.SESSION: (0.5, 0.5)}}) | {"costs": costs},
    )
    for benchmark in run["benchmarks"]:
        benchmark["extra_info"]["commit"] = "abc"
    lines = table(run).splitlines()
    assert "| CT 512 x 512 x 4, ResNet-50 | 2 | 0.97 |  |  |  | 3.1 |  |" in lines
    assert (
        "smile-predict: peak memory beyond the session's 4.32 bytes a voxel (K = 3), smile-predict --help 0.10 s."
        in lines
    )


def test_only_what_is_between_the_markers_is_written(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}old\n{END}after\n")
    write("new\n", readme)
    assert readme.read_text() == f"before\n{BEGIN}new\n{END}after\n"


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_the_readme_has_the_markers(marker: str) -> None:
    assert README.read_text().count(marker) == 1


@pytest.mark.parametrize(("preemptions", "told"), [(1, False), (2, True)])
def test_a_disturbed_run_says_so(preemptions: int, told: bool) -> None:
    one = figures("op/a", {OURS: {EAGER: (8.26, 9)}})  # 2 ms
    one["milliseconds"][OURS]["preemptions"] = preemptions
    assert ("NOT QUIET" in summary(one)) is told
    assert summary(one).startswith("ours 2 ms: eager 8.26x")
