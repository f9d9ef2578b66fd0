from dataclasses import replace
from pathlib import Path

import pytest

from bench import benchmark_table as shown
from bench import gpu_table, records
from bench.benchmark_table import (
    BEGIN,
    END,
    GPU_BEGIN,
    GPU_END,
    JUDGED,
    README,
    SELECTIONS,
    STEPS,
    TITLES,
    VOLUMES,
    table,
    tables,
    write,
)
from bench.catalogue import names
from bench.comparison import CPU, CUDA, OURS
from bench.ops.names import COPY, EAGER, IN_PLACE, READ
from bench.ops.training_step import ALONE
from bench.runner import summary
from bench.tests.synthetic import GPU, figures, record
from bench.whole_volume import workloads


def test_a_row_for_each_variant_of_ours() -> None:
    name = "masked_bce/K13-none"
    run = record(figures(name, {OURS: {EAGER: (8.26, 9)}, IN_PLACE: {EAGER: (25.4, 30), COPY: (0.448, 0.5)}}))
    lines = table(run).splitlines()
    assert "| masked_bce, K = 13, none missing | 2 | 8.3 |  |  |  |" in lines
    assert "| masked_bce, K = 13, none missing, in place | 2 | 25 |  |  | 0.45 |" in lines
    assert lines[-1].endswith("2 threads of Some CPU @ 2 GHz, avx2, torch 9.9; commit abc.")
    assert not any("select_top_fraction" in line for line in lines)


def test_another_allocator_gets_a_short_table_of_what_goals_judge(tmp_path: Path) -> None:
    ratios = {OURS: {EAGER: (8.26, 9)}, IN_PLACE: {EAGER: (25.4, 30)}}
    both = [figures(name, ratios) for name in ("masked_bce/K13-none", "masked_bce/K13-half")]
    records.write(record(*both), tmp_path / "default.jsonl")
    records.write(record(*both, allocator="huge"), tmp_path / "huge.jsonl")
    first, second = (part.splitlines() for part in tables(tmp_path).split("\n\nMedians")[:2])
    assert sum(line.startswith("| masked_bce") for line in first) == 4
    assert [line for line in second if line.startswith("| masked_bce")] == [
        "| masked_bce, K = 13, none missing, in place | 2 | 25 |  |  |  |"
    ]
    assert "THP_MEM_ALLOC_ENABLE=1" in tables(tmp_path)


def test_what_is_judged_is_of_the_losses() -> None:
    assert set(JUDGED) < set(TITLES)
    assert {name.split("/")[0] for name in JUDGED} == {"masked_bce", "masked_bce_upsampled"}
    assert "masked_bce/K13-fp16-none" not in JUDGED


def test_every_title_is_of_a_workload() -> None:
    assert {*TITLES, *SELECTIONS, *STEPS, *VOLUMES} <= {*names(CPU, long=True), *names(CUDA)}
    assert {*shown.GPU_TITLES, *SELECTIONS, *STEPS, *VOLUMES, "memory/1GiB"} >= {
        name for name in names(CUDA) if not name.startswith("predict/")
    }


def test_whole_volumes_have_a_table_and_their_costs_a_line() -> None:
    name = "whole_volume/thorax-resnet50"
    costs = {workloads.BYTES_A_VOXEL: 4.321, workloads.HELP: 0.1}
    run = record(
        figures(name, {OURS: {workloads.SESSION: (0.97, 0.97), workloads.CHANNELS_LAST: (3.14, 3)}}),
        figures("whole_volume/memory-K3", {OURS: {workloads.SESSION: (0.5, 0.5)}}) | {"costs": costs},
    )
    lines = table(run).splitlines()
    assert "| CT 512 x 512 x 4, ResNet-50 | 2 | 0.97 |  |  |  | 3.1 |  |" in lines
    assert (
        "smile-predict: peak memory beyond the session's 4.32 bytes a voxel (K = 3), smile-predict --help 0.10 s."
        in lines
    )


def gpu_record() -> records.Record:
    memory = figures("memory/1GiB", {COPY: {READ: (0.5, 0.5)}})
    memory = memory | {"bytes": 2**30, "milliseconds": {COPY: {"median": 0.708}, READ: {"median": 0.352}}}
    return replace(
        record(
            figures("masked_bce/K13-none", {OURS: {EAGER: (6.55, 7)}, "ours, triton": {EAGER: (6.14, 6)}})
            | {"implementation": "cuda"},
            figures("select_top_fraction/3x26M-5pct", {OURS: {"torch.topk": (3.04, 3)}}),
            figures("training_step/resnet50", {OURS: {ALONE: (0.952, 0.95)}}),
            memory,
        ),
        machine=GPU,
    )


def test_a_gpu_has_the_same_table_with_every_implementation_its_memory_and_its_peers() -> None:
    lines = table(gpu_record()).splitlines()
    assert "| masked_bce, K = 13, none missing, cuda | 2 | 6.5 |  |  |  |  |" in lines
    assert "| masked_bce, K = 13, none missing, triton | 2 | 6.1 |  |  |  |  |" in lines
    assert "| 5% candidates | 2 |  | 3.0 |  |" in lines
    assert "| DeepLab ResNet-50 and masked_bce_upsampled | 2 | 0.95 |" in lines
    assert "The GPU's memory: a copy 3.03 TB/s, a read 3.05 TB/s." in lines
    assert lines[-1] == (
        "Medians of interleaved runs with a cold L2; NVIDIA Some GPU, torch 2, triton 3, driver 1; commit abc."
    )


def test_the_readme_shows_every_gpu_that_was_measured(tmp_path: Path) -> None:
    assert gpu_table.tables(tmp_path) == "No GPU was measured yet.\n"
    records.write(record(figures("masked_bce/K13-none", {OURS: {EAGER: (8.26, 9)}})), tmp_path / "cpu.jsonl")
    only_cpu = tables(tmp_path)
    other = replace(gpu_record(), machine=GPU | {"gpu": "Another GPU"})
    for run in (gpu_record(), other):
        records.save(run, tmp_path)
    assert tables(tmp_path) == only_cpu
    expected = [part for run in (other, gpu_record()) for part in (gpu_table.goals_table(run), table(run))]
    assert gpu_table.tables(tmp_path) == "\n".join(expected)


def test_goals_of_a_gpu_stand_beside_figures_and_what_nobody_measured_is_named() -> None:
    lines = gpu_table.goals_table(gpu_record()).splitlines()
    assert "| masked_bce K=13 fp32 | 2000 us | at most 44 us | missed, 45.45 times off | cuda at abc |" in lines
    start = "| select 3 x 26.2M, 5%: times as fast as torch.topk | 3.04 x | at least 6 x"
    assert f"{start} | missed, 1.97 times off | abc |" in lines
    unmeasured = next(line for line in lines if line.startswith("Goals that nobody has measured yet: "))
    assert "smile-fast export, ResNet-18 (at most 6 s)" in unmeasured
    assert "masked_bce K=13 fp32 (" not in unmeasured


def test_the_readme_shows_what_is_recorded() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == tables()
    assert text.split(GPU_BEGIN)[1].split(GPU_END)[0] == gpu_table.tables()


def test_only_what_is_between_the_markers_is_written(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}old\n{END}between\n{GPU_BEGIN}{GPU_END}after\n")
    write("new\n", readme)
    write("gpu\n", readme, GPU_BEGIN, GPU_END)
    assert readme.read_text() == f"before\n{BEGIN}new\n{END}between\n{GPU_BEGIN}gpu\n{GPU_END}after\n"


@pytest.mark.parametrize("marker", [BEGIN, END, GPU_BEGIN, GPU_END])
def test_the_readme_has_the_markers(marker: str) -> None:
    assert README.read_text().count(marker) == 1


@pytest.mark.parametrize(("preemptions", "disturbed"), [(1, False), (2, True)])
def test_a_disturbed_run_says_so(preemptions: int, disturbed: bool) -> None:
    one = figures("op/a", {OURS: {EAGER: (8.26, 9)}})  # 2 ms
    one["milliseconds"][OURS]["preemptions"] = preemptions
    assert ("NOT QUIET" in summary(one)) is disturbed
    assert summary(one).startswith("ours 2 ms: eager 8.26x")
