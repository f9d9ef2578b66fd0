"""The suites from files to training steps: what they find wrong, whom they leave out, what their tables say."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import catalogue, timing
from bench.benchmark_table import data_table, tables
from bench.comparison import CPU, OURS, SMOKE, Call, Comparison
from bench.data_path import cohort, loader, names, peers, prepare_scale, titles
from bench.data_path.names import LEFT_OUT
from bench.data_path.workloads import SMOKE as SMOKED
from bench.data_path.workloads import WORKLOADS, Cohort, Volumes, Workload, small
from bench.measure import COSTS, figures
from bench.ops.names import EAGER
from bench.records import BrokenRecordError, write
from bench.runner import summary
from bench.tests.synthetic import figures as synthetic
from bench.tests.synthetic import record
from bench.timing import CpuTimer, ProcessTimer, Run, timed
from smile_fast.data import arrays
from smile_fast.data.store import Store

SMALL = small(Workload(Volumes(cases=2)))
DATA_NAMES = [f"{op}/{name}" for op, few in WORKLOADS.items() for name in few]


def test_every_workload_is_in_the_catalogue_and_has_a_row_or_a_sentence() -> None:
    assert set(DATA_NAMES) <= set(catalogue.names(CPU))
    assert set(DATA_NAMES) == titles.WORKLOADS | {"cohort/10"}
    assert {name.partition("/")[0] for name in SMOKED} == set(WORKLOADS)
    assert [name for name in DATA_NAMES if not catalogue.differs_in_size_alone(name)] == list(SMOKED)
    in_cpu_time = {name for name in DATA_NAMES if isinstance(catalogue.timer(name, CPU), ProcessTimer)}
    assert {name.partition("/")[0] for name in in_cpu_time} == {"loader", "prepare", "cohort"}


def test_a_step_waits_as_a_command_does() -> None:
    assert catalogue.environment("train_loop/resnet18") == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert catalogue.environment("loader/phantom") == {}


@pytest.fixture
def read(tmp_path: Path) -> Comparison:
    """The loader on tiny volumes."""
    assert isinstance(SMALL, Workload)
    return loader.compare(SMALL, SMOKE, tmp_path)


def test_everybody_reads_the_same_slices(read: Comparison) -> None:
    read.check()
    peers_here = [call.name for call in read.peers]
    assert [names.CHUNKS, names.CHUNKS_INT16, names.CHUNKS_2D, names.NIFTI] == [
        name for name in peers_here if name in (names.CHUNKS, names.CHUNKS_INT16, names.CHUNKS_2D, names.NIFTI)
    ]
    assert {call.name: read.steps_of(call) for call in read.calls}[names.NIFTI] < read.steps_of(read.ours[0])
    assert read.derived(0.00025) == {names.SLICES_PER_SECOND: 4000}


def test_a_peer_that_reads_other_voxels_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(SMALL, Workload)
    plain = peers.nifti
    monkeypatch.setattr(peers, "nifti", lambda scans: lambda case, z: plain(scans)(case, z) + 1)
    with pytest.raises(AssertionError, match=r"an open \.nii\.gz: slice \d+ of case_"):
        loader.compare(SMALL, SMOKE, tmp_path).check()


def test_ours_verifies_every_slice_and_the_variant_without_none(
    read: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified, plain = [], arrays.inflater.crc32
    monkeypatch.setattr(arrays, "inflater", SimpleNamespace(crc32=lambda chunk: verified.append(chunk) or plain(chunk)))
    by_name = {call.name: call for call in read.calls}
    by_name[names.UNCHECKED].run()
    assert not verified
    by_name[OURS].run()
    assert len(verified) == read.steps_of(by_name[OURS])


def test_peers_that_are_not_installed_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(SMALL, Workload)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found = loader.compare(SMALL, SMOKE, tmp_path)
    found.check()
    assert set(found.facts[LEFT_OUT]) == {names.ZARR, names.ZARR_BEST, names.PERSISTENT}
    assert not {call.name for call in found.peers} & set(found.facts[LEFT_OUT])
    line = summary(synthetic("loader/phantom", {OURS: {EAGER: (2, 2)}}) | {LEFT_OUT: found.facts[LEFT_OUT]})
    assert "left out: zarr v3, zarr is not installed; make bench installs it" in line


def test_a_call_that_does_less_is_counted_by_what_it_does() -> None:
    call, few = Call(OURS, lambda: None), Call("slow", lambda: None, steps=2)
    given = Comparison([call], [few], dict, steps=8)
    assert (given.steps_of(call), given.steps_of(few)) == (8, 2)
    runs = {OURS: [Run(0.001, 0, 0)], "slow": [Run(0.1, 0, 0)]}
    assert figures("loader/phantom", given, runs, {})["peer / ours"][OURS]["slow"]["medians"] == 100


def test_cpu_time_is_not_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, cpu = iter([10.0, 18.0]), iter([1.0, 1.5])
    monkeypatch.setattr(
        timing, "time", SimpleNamespace(perf_counter=lambda: next(clock), process_time=lambda: next(cpu))
    )
    assert timed(Call("sleeps", lambda: None), ProcessTimer()).seconds == 0.5
    assert timed(Call("sleeps", lambda: None), CpuTimer()).seconds == 8


def test_a_cohort_has_as_many_cases_as_it_says_and_their_arrays_are_links(tmp_path: Path) -> None:
    path = cohort.write_cohort(Cohort(20, slices=12), tmp_path / "store")
    store = Store.open(path)
    assert len(store.cases) == 20
    assert len(store.organs) == 13
    np.testing.assert_array_equal(store.read_image("case_00000"), store.read_image("case_00018"))
    assert {info.counts().shape for info in store.cases.values()} == {(12, 13)}
    assert all(len(info.runs) == 13 for info in store.cases.values())
    files = [file for file in path.rglob("*.b2nd")]
    assert (len(files), len({file.stat().st_ino for file in files})) == (40, 6)


@pytest.mark.parametrize("name", ["loader/phantom", "cohort/10000"])
def test_the_table_shows_the_newest_record_that_holds_it(tmp_path: Path, name: str) -> None:
    costs = dict.fromkeys(
        [
            names.SLICES_PER_SECOND,
            names.OPENING,
            names.OPENED_BYTES,
            names.FIRST_BATCH,
            names.TRAINING_BYTES,
            names.TRAINING_GROWTH,
        ],
        1234.5,
    )
    held = synthetic(name, {OURS: {names.ZARR: (12.34, 12)}}) | {COSTS: costs, "cases": 10000}
    kernels = synthetic("masked_bce/K13-none", {OURS: {EAGER: (8.26, 9)}})
    write(record(held, cpu="Another CPU", date="2026-02-01T00:00:00+00:00"), tmp_path / "data.jsonl")
    write(record(kernels), tmp_path / "kernels.jsonl")
    text = tables(tmp_path)
    assert "masked_bce, K = 13, none missing" in text
    assert text.endswith(data_table(record(held, cpu="Another CPU")))
    expected = {
        "loader/phantom": "| phantoms, 4 x 512 x 512 x 100 | 2 |  | 12 |",
        "cohort/10000": "A store of 10,000 cases of 100 slices and 13 organs opens in 1234.50 s of CPU time",
    }
    assert expected[name] in text
    assert text.count("Another CPU") == 1


def test_a_cohort_that_was_prepared_is_a_figure_for_the_goals(tmp_path: Path) -> None:
    assert prepare_scale.recorded(tmp_path) == {}

    def run(parent: float, worker: float) -> dict[str, float]:
        return {"seconds": 1.0, "parent MB": parent, "worker MB": worker}

    written = {
        "growth": {"10": run(90, 200), "50": run(90, 300), "200": run(90, 220), "200, all kept": run(90, 100)},
        "1,000 by extrapolation": {"seconds": 301.5},
        "shards": {"ratio": 0.53},
        "tiny cases": {"10 converted": run(80, 1), "10 kept": run(70, 1), "1000 converted": run(84, 9)},
    }
    path = tmp_path / prepare_scale.FILE
    path.write_text(json.dumps(written))
    found = prepare_scale.recorded(tmp_path)[prepare_scale.SCALE][COSTS]
    assert found == {
        prepare_scale.SCALE_SECONDS: 301.5,
        prepare_scale.SCALE_SHARDS: 0.53,
        prepare_scale.SCALE_MEMORY: 1.1,
    }
    path.write_text(json.dumps(written | {"shards": {}}))
    with pytest.raises(BrokenRecordError, match=r"prepare_scale.json: lacks 'ratio'; take it from git again"):
        prepare_scale.recorded(tmp_path)


def test_workloads_of_a_smoke_run_are_small() -> None:
    for few in WORKLOADS.values():
        for workload in few.values():
            shrunk = small(workload)
            assert shrunk.cases <= 30 if isinstance(shrunk, Cohort) else shrunk.volumes.size == 64
    assert replace(Workload(), width=16) != small(Workload())
