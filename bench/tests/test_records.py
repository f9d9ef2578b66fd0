import json
from pathlib import Path

import pytest

from bench.allocators import ALLOCATORS, allocator, environment
from bench.machine import cpu, record_name
from bench.records import (
    RESULTS,
    NoRecordError,
    commits,
    newest,
    path_of,
    ranked,
    read,
    recorded,
    remarks,
    save,
    selected,
    write,
)
from bench.runner import record_of
from bench.tests.synthetic import GPU, record
from bench.tests.synthetic import figures as measured
from tests.tolerances import RECORDED_RATIO

NAMES = ["bce/K3", "bce/K13-half", "bce_upsampled/K3"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("", NAMES),
        ("bce", NAMES[:2]),
        ("bce/K13*", NAMES[1:2]),
        ("*/K3", [NAMES[0], NAMES[2]]),
        ("bce/K3,bce_upsampled", [NAMES[0], NAMES[2]]),
    ],
)
def test_selection(patterns: str, expected: list[str]) -> None:
    assert selected(NAMES, patterns) == expected


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no workload is called 'bcd'"):
        selected(NAMES, "bcd")


def test_the_name_of_a_record_says_what_decides_the_figures() -> None:
    machine = record().machine
    assert record_name(machine) == "some-cpu-2-ghz-2-threads-avx2"
    assert record_name(machine | {"allocator": "keep"}) == "some-cpu-2-ghz-2-threads-avx2-keep"
    assert record_name(machine | {"threads": 1}) != record_name(machine)
    assert record_name(GPU) == "nvidia-some-gpu"


def test_a_record_of_a_cpu_is_a_line_a_benchmark(tmp_path: Path) -> None:
    names = [f"op/{letter}" for letter in "cab"]
    run = record(*(measured(name, {"ours": {"eager": (2.0, 3.0)}}, error=1e-9) for name in names))
    path = tmp_path / "machine.jsonl"
    write(run, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("name") for line in lines] == [None, *names]
    assert lines[0] == {"machine": run.machine, "datetime": run.datetime, "lines": 3}
    assert read(path) == run
    assert list(read(path).benchmarks) == names


@pytest.mark.parametrize("lines", [[0, 1], [0, 2], [0, 1, 2, 2], [0, 1, 1]])
def test_a_line_that_was_lost_or_is_there_twice_is_noticed(tmp_path: Path, lines: list[int]) -> None:
    path = tmp_path / "machine.jsonl"
    write(record(measured("op/a", {}), measured("op/b", {})), path)
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[number] for number in lines))
    with pytest.raises(ValueError, match=r"machine.jsonl: 2 lines were recorded, \d are there; take it from git again"):
        read(path)


def test_the_committed_records_are_whole() -> None:
    found = recorded(RESULTS)
    assert found
    for name, run in found.items():
        assert path_of(run.machine).stem == name
        for figures in run.benchmarks.values():
            assert {"commit", "dirty", "errors", "milliseconds", "peer / ours"} <= set(figures)
            for ours, peers in figures["peer / ours"].items():
                taken = figures["milliseconds"]
                for peer, ratio in peers.items():
                    assert ratio["medians"] == pytest.approx(
                        taken[peer]["median"] / taken[ours]["median"], **RECORDED_RATIO
                    )
                    if "minima" in ratio or run.machine["device"] == "cpu":  # of a GPU's memory only medians were kept
                        assert ratio["minima"] == pytest.approx(
                            taken[peer]["minimum"] / taken[ours]["minimum"], **RECORDED_RATIO
                        )


def test_a_run_is_read_from_what_pytest_benchmark_writes(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert record_of(path) is None
    path.write_text("")
    assert record_of(path) is None
    figures = {"name": "op/a", "errors": {}}
    written = {
        "machine_info": {"device": "cpu"},
        "commit_info": {"commit": "abc", "dirty": True},
        "datetime": "2026-01-01T00:00:00+00:00",
        "benchmarks": [{"name": "test[op/a]", "stats": {}, "extra_info": figures}],
    }
    path.write_text(json.dumps(written))
    found = record_of(path)
    assert found is not None
    assert found.machine == {"device": "cpu"}
    assert found.benchmarks == {"op/a": {**figures, "commit": "abc", "dirty": True}}


def test_a_part_of_the_workloads_measured_again_replaces_that_part(tmp_path: Path) -> None:
    save(record(measured("op/a", {}, error=1), measured("op/b", {}, error=1)), tmp_path)
    path = save(record(measured("op/b", {}, error=2), date="2026-02-01T00:00:00+00:00"), tmp_path)
    found = read(path)
    assert {name: figure["errors"]["error"] for name, figure in found.benchmarks.items()} == {"op/a": 1, "op/b": 2}
    assert found.datetime == "2026-02-01T00:00:00+00:00"
    assert commits(found.benchmarks.values()) == "commit abc"


def test_uncommitted_changes_are_recorded() -> None:
    changed = measured("op/b", {}) | {"dirty": True}
    assert commits([changed, measured("op/a", {})]) == "commit abc; commit abc, with uncommitted changes"


def test_a_remark_is_kept_with_every_figure_that_it_was_made_of(tmp_path: Path) -> None:
    run = record(measured("op/a", {}), measured("op/b", {}))
    assert run.remarked("") == run
    path = save(run.remarked("beside other work"), tmp_path)
    assert remarks(read(path).benchmarks.values()) == "; beside other work"
    save(record(measured("op/b", {})), tmp_path)
    assert {name: remarks([one]) for name, one in read(path).benchmarks.items()} == {
        "op/a": "; beside other work",
        "op/b": "",
    }


def test_figures_of_another_torch_are_not_kept() -> None:
    new = record(measured("op/b", {}), torch="10.0")
    assert record(measured("op/a", {})).merged(new) == new


def test_the_newest_run_of_a_cpu_counts(tmp_path: Path) -> None:
    with pytest.raises(NoRecordError):
        newest(tmp_path)
    (tmp_path / "demo.json").write_text("{}")
    for name, run in {
        "old": record(date="2026-01-01T00:00:00+00:00"),
        "new": record(date="2026-03-01T00:00:00+00:00"),
        "keep": record(date="2026-04-01T00:00:00+00:00", allocator="keep"),
        "gpu": record(date="2026-05-01T00:00:00+00:00", device="cuda"),
        "plain": record(date="2026-05-02T00:00:00+00:00", **{"instruction set": "plain"}),
        "one-thread": record(date="2026-05-03T00:00:00+00:00", threads=1),
    }.items():
        write(run, tmp_path / f"{name}.jsonl")
    assert newest(tmp_path)[0] == "new"
    assert newest(tmp_path, "keep")[0] == "keep"
    with pytest.raises(NoRecordError, match="'huge', 2 threads and a machine's best instruction set"):
        newest(tmp_path, "huge")
    write(record(measured("op/a", {}), date="2025-01-01T00:00:00+00:00", cpu=cpu()), tmp_path / "here.jsonl")
    assert newest(tmp_path)[0] == "new"
    assert newest(tmp_path, holding={"op/a", "op/b"})[0] == "here"
    assert [name for name, _ in ranked(tmp_path)] == ["new", "old", "here"]
    assert [name for name, _ in ranked(tmp_path, first=cpu())] == ["here", "new", "old"]


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_process_knows_its_allocator(name: str) -> None:
    foreign = {"PATH": "/bin", "MALLOC_ARENA_MAX": "1", "THP_MEM_ALLOC_ENABLE": "0"}
    assert allocator(foreign) == "other"
    given = environment(name, foreign)
    assert allocator(given) == name
    assert given["PATH"] == "/bin"


def test_the_record_lies_where_its_machine_says(tmp_path: Path) -> None:
    assert path_of(record().machine, tmp_path).parent == tmp_path
