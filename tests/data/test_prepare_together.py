"""Many processes prepare one store: at the same time, by shards in any order, killed at any moment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.store import Store
from tests.cohorts import annotate, edit_label, make_cohort, other_image, stored, write_nifti
from tests.data.prepared import SILENT, voxels

SCRIPT = Path(__file__).with_name("prepare_processes.py")


def run_rounds(rounds):
    """See `prepare_processes`; every process has one worker."""
    one_worker = ["--workers", "1"]
    jobs = [
        [
            [moment, [*map(str, arguments), *([] if "--finish" in arguments else one_worker)]]
            for moment, arguments in one
        ]
        for one in rounds
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(jobs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = make_cohort(tmp_path_factory.mktemp("together") / "cohort", train=4, test=2)
    annotate(path)
    return path


@pytest.fixture(scope="module")
def expected(cohort, tmp_path_factory):
    """What one call makes of the cohort."""
    return stored(
        prepare(RawDataset.open(cohort), tmp_path_factory.mktemp("one") / "store", workers=1, **SILENT).store.path
    )


def test_processes_at_once_share_the_cases(cohort, expected, tmp_path):
    stores = [tmp_path / f"store_{number}" for number in range(4)]
    results = run_rounds([[(0, [cohort, store])] * 3 for store in stores])
    for store, result in zip(stores, results, strict=True):
        assert [status for status, *_ in result] == [0, 0, 0], result
        assert stored(store) == expected
        converted = [int(text.split(" converted")[0].split("(")[-1]) for *_, text in result]
        assert sum(converted) == 6, result  # none was converted twice


def test_forced_processes_at_once_convert_each_case_once_or_twice(cohort, expected, tmp_path):
    store = tmp_path / "store"
    prepare(RawDataset.open(cohort), store, workers=1, **SILENT)
    (result,) = run_rounds([[(0, [cohort, store, "--force"])] * 2])
    assert [status for status, *_ in result] == [0, 0], result
    assert stored(store) == expected


def test_other_data_at_once_are_refused_in_one_sentence(cohort, expected, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(
        (cohort / "annotations.csv").read_text().replace("case_01,liver,annotated", "case_01,liver,hidden")
    )
    stores = [tmp_path / f"store_{number}" for number in range(4)]
    results = run_rounds([[(0, [cohort, store]), (0, [cohort, store, "--annotations", other])] for store in stores])
    refused = 0
    for store, result in zip(stores, results, strict=True):
        assert {status for status, *_ in result} <= {0, 2}
        for status, _, text in result:
            if status:
                refused += 1
                (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
                assert error.startswith(f"error: {store}: another prepare is at work there now, with other files, decl")
        # Whoever was there first, or last, the store is one of the two and not a mixture.
        states = {info.states["liver"].value for info in [Store.open(store).cases["case_01"]]}
        assert states in ({"annotated"}, {"hidden"})
    assert refused


def test_shards_in_any_order_twice_and_one_forgotten(cohort, expected, tmp_path):
    store = tmp_path / "store"
    shard = [(0, [cohort, store, "--shard", f"{number}/3"]) for number in (1, 2, 3)]
    finish = (0, [cohort, store, "--finish"])
    first, twice, forgotten, last, done = run_rounds([[shard[2]], [shard[2], shard[0]], [finish], [shard[1]], [finish]])
    assert [status for status, *_ in (*first, *twice, *last, *done)] == [0] * 5, (first, twice, last, done)
    assert (
        "shard 3/3: 2 converted, 0 unchanged, 0 broken; 4 of 6 cases are still to be converted (case_00" in first[0][2]
    )
    assert "shard 3/3: 0 converted, 2 unchanged, 0 broken; " in twice[0][2]
    assert forgotten[0][0] == 2
    assert "error: " in forgotten[0][2]
    assert "2 of 6 cases are missing or not up to date (case_01, case_04); convert them with" in forgotten[0][2]
    assert "none of the 6 cases is left to do, 'smile-fast prepare --finish' completes the store" in last[0][2]
    assert stored(store) == expected


def test_finish_notices_what_changed_since_its_shard(cohort, tmp_path):
    changed, store = tmp_path / "cohort", tmp_path / "store"
    shutil.copytree(cohort, changed)
    ((shard,),) = run_rounds([[(0, [changed, store, "--shard", "1/1"])]])
    assert shard[0] == 0
    edit_label(changed, "case_02", lambda labels: np.roll(labels, 1, axis=2))
    ((done,),) = run_rounds([[(0, [changed, store, "--finish"])]])
    assert done[0] == 2
    assert "1 of 6 cases are missing or not up to date (case_02)" in done[2]
    assert not (store / "index.json").exists()


def test_a_broken_case_of_a_shard_is_known_to_finish(cohort, tmp_path):
    broken, store = tmp_path / "cohort", tmp_path / "store"
    shutil.copytree(cohort, broken)
    (broken / "labelsTr" / "case_01.nii.gz").write_bytes(b"broken")
    shards = [(0, [broken, store, "--shard", f"{number}/2"]) for number in (1, 2)]
    finish = (0, [broken, store, "--finish"])
    one, two, strict, done = run_rounds([[shards[0]], [shards[1]], [(0, [*finish[1], "--strict"])], [finish]])
    assert [one[0][0], two[0][0], strict[0][0], done[0][0]] == [0, 0, 2, 0], (one, two, strict, done)
    assert f"warning: {store}: 1 of 6 cases are broken and left out, see" in done[0][2]
    assert list(Store.open(store).cases) == ["case_00", "case_02", "case_03", "case_04", "case_05"]


def changed_cohort(cohort, path):
    """The cohort with a case that is drawn again, one that is scanned again and one less."""
    shutil.copytree(cohort, path)
    edit_label(path, "case_01", lambda labels: np.roll(labels, 1, axis=2))
    write_nifti(path / "imagesTr" / "case_03_0000.nii.gz", other_image())
    for file in path.glob("*Ts/case_05*"):
        file.unlink()
    annotate(path)
    return path


SCENARIOS = {"plain": [[]], "shards": [["--shard", "1/2"], ["--shard", "2/2"], ["--finish"]]}


def kill(cohort, tmp_path, scenario, every):
    """Kill each call of a scenario at every n-th moment, on a store of the cohort as it was before.

    Returns:
        How many were killed.
    """
    changed = changed_cohort(cohort, tmp_path / "changed")
    old = prepare(RawDataset.open(cohort), tmp_path / "old", workers=1, **SILENT).store
    new = prepare(RawDataset.open(changed), tmp_path / "new", workers=1, **SILENT).store
    before, after, expected = voxels(old), voxels(new), stored(new.path)
    calls = SCENARIOS[scenario]
    shutil.copytree(old.path, tmp_path / "counted")
    counts = [result[0][1] for result in run_rounds([[(0, [changed, tmp_path / "counted", *call])] for call in calls])]
    rounds, stores = [], []
    for number, count in enumerate(counts):
        for moment in range(1 + number % every, count + 1, every):
            store = tmp_path / f"store_{number}_{moment}"
            shutil.copytree(old.path, store)
            stores.append(store)
            rounds += [[(0, [changed, store, *call])] for call in calls[:number]]
            rounds.append([(moment, [changed, store, *calls[number]])])
    results = [result[0] for result in run_rounds(rounds)]
    assert [status for status, *_ in results].count(-9) == len(stores), results
    for store in stores:
        assert voxels(Store.open(store)) in (before, after)
    for store, result in zip(stores, run_rounds([[(0, [changed, store])] for store in stores]), strict=True):
        assert result[0][0] == 0, result
        assert stored(store) == expected
    return len(stores)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_call_that_is_killed_leaves_the_store_before_and_is_continued(cohort, tmp_path, scenario):
    assert kill(cohort, tmp_path, scenario, every=12) >= 6


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_call_that_is_killed_at_every_moment(cohort, tmp_path, scenario):
    assert kill(cohort, tmp_path, scenario, every=1) >= 60
