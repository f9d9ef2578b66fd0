import json
from pathlib import Path

import pytest

from bench.heap import ALLOCATORS, allocator, environment
from bench.machine import cpu, record_name
from bench.record import NoRecordError, commits, figures, joined, newest, path_of, read, save, selected, updated
from bench.tests.records import figures as measured
from bench.tests.records import record

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
    machine = record()["machine_info"]
    assert record_name(machine) == "some-cpu-2-ghz-2-threads-avx2"
    assert record_name(machine | {"allocator": "keep"}) == "some-cpu-2-ghz-2-threads-avx2-keep"
    assert record_name(machine | {"threads": 1}) != record_name(machine)


def test_a_part_of_the_workloads_measured_again_replaces_that_part(tmp_path: Path) -> None:
    save(joined([record(measured("op/a", {}, error=1)), record(measured("op/b", {}, error=1))]), tmp_path)
    path = save(joined([record(measured("op/b", {}, error=2))]), tmp_path)
    found = figures(read(path))
    assert {name: figure["errors"]["error"] for name, figure in found.items()} == {"op/a": 1, "op/b": 2}
    assert commits(found) == "commit abc"


def test_uncommitted_changes_are_told() -> None:
    changed = record(measured("op/b", {}))
    changed["commit_info"]["dirty"] = True
    both = figures(joined([changed, record(measured("op/a", {}))]))
    assert both["op/b"]["dirty"] is True
    assert commits(both) == "commit abc; commit abc, with uncommitted changes"


def test_figures_of_another_torch_are_not_kept() -> None:
    new = record(measured("op/b", {}), torch="10.0")
    assert updated(record(measured("op/a", {})), new) == new


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
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    assert newest(tmp_path)[0] == "new"
    assert newest(tmp_path, "keep")[0] == "keep"
    with pytest.raises(NoRecordError, match="'huge', 2 threads and a machine's best instruction set"):
        newest(tmp_path, "huge")
    (tmp_path / "here.json").write_text(json.dumps(record(date="2025-01-01T00:00:00+00:00", cpu=cpu())))
    assert newest(tmp_path)[0] == "here"


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_process_knows_its_allocator(name: str) -> None:
    foreign = {"PATH": "/bin", "MALLOC_ARENA_MAX": "1", "THP_MEM_ALLOC_ENABLE": "0"}
    assert allocator(foreign) == "other"
    given = environment(name, foreign)
    assert allocator(given) == name
    assert given["PATH"] == "/bin"


def test_the_record_lies_where_its_machine_says(tmp_path: Path) -> None:
    assert path_of(record()["machine_info"], tmp_path).parent == tmp_path
