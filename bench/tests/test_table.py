from pathlib import Path

import pytest

from bench.ops import NAMES
from bench.ops.peers import COPY, EAGER, IN_PLACE, OURS
from bench.run import summary
from bench.table import BEGIN, END, README, SELECTIONS, TITLES, table, write
from bench.tests.records import figures, record


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
