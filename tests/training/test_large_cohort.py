"""Cohorts of 1,000 cases: what the index and a round's description say is not decoded again."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.tests.cpu_time import seconds_of, shortest
from smile_fast.cli.main import main
from smile_fast.data import arrays
from smile_fast.data import store as store_module
from smile_fast.data.store import CASES, Store, write_index
from smile_fast.supervision import State
from smile_fast.training import loop
from smile_fast.training.batches import BatchSource
from smile_fast.training.config import TrainConfig
from smile_fast.training.rounds import Round
from smile_fast.training.run import Run
from smile_runtime.label_map import PSEUDO_BIT
from tests.runs import ORGANS, SHAPE, ct, make_store, truth, writing_round
from tests.trainings import CPU, TINY, tiny_store

NUMBER = 1000
LIMIT = 3.0  # CPU seconds from the open store to the first step


class FirstStep(Exception):
    """Training has begun."""


@pytest.fixture
def opened(monkeypatch):
    """The files of the slices that are read, in order: nothing is decoded that was not."""
    found, plain = [], arrays.read_slice

    def recorded(descriptor, path, *arguments):
        found.append(Path(path))
        plain(descriptor, path, *arguments)

    monkeypatch.setattr(arrays, "read_slice", recorded)
    return found


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1,000 cases: three volumes and links to them, some with missing and hidden organs."""
    path = tmp_path_factory.mktemp("thousand") / "store"
    states = {("train_1", "liver"): State.HIDDEN, ("train_2", "pancreas"): State.MISSING}
    labels = {"train_0": truth(), "train_1": np.roll(truth(), 1, axis=0), "train_2": truth() % 2}
    few = make_store(path, labels, states)
    infos = []
    for number in range(NUMBER):
        info = few.cases[f"train_{number % 3}"]
        name = f"case_{number:04}"
        (path / CASES / name).mkdir()
        for array in info.arrays:
            file = few.array_path(info.name, array)
            os.link(file, path / CASES / name / file.name)
        infos.append(replace(info, name=name))
    write_index(path, few.organs, infos)
    return Store.open(path)


def reach_first_step(path, store, monkeypatch, **settings):
    """Make a run and train it until its first step has its batch; returns the run."""
    run = Run.create(path, TrainConfig.from_options({**TINY, "crop_size": 0, **settings}), store, store.declarations())

    def stop(*_):
        raise FirstStep

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", stop)
        with pytest.raises(FirstStep):
            loop.train(run, device=CPU)
    return run


def test_the_first_step_decodes_what_it_trains_on_and_nothing_else(thousand, tmp_path, monkeypatch, opened):
    run = reach_first_step(tmp_path / "run", thousand, monkeypatch)
    files = Counter(file.name.partition("-")[0] for file in opened)
    read_ahead = list(opened)
    opened.clear()
    view = run.view("train")
    source = BatchSource.of(run.config, view, 0)
    assert opened == []
    drawn = {view.cases[case] for step in range(3) for case in source.batch(step).cases}  # read ahead of the step
    assert {file.parent.name for file in read_ahead} == drawn
    assert files == {"image": 6, "labels": 6}  # three batches of two slices


def test_the_first_step_comes_soon(thousand, tmp_path, monkeypatch):
    runs = (tmp_path / f"run {number}" for number in range(100))
    assert shortest(lambda: seconds_of(reach_first_step, next(runs), thousand, monkeypatch), LIMIT) <= LIMIT


def test_a_round_begins_without_decoding_its_overlays(thousand, tmp_path, opened):
    """Its slices with pseudo-labels are drawn all the same."""
    run = Run.create(tmp_path / "run", TrainConfig.from_options(TINY), thousand, thousand.declarations())
    overlay = np.zeros(SHAPE, np.uint8)
    overlay[5, 1, 2:4] = PSEUDO_BIT | 2
    with writing_round(run.rounds_path, Round(1, 0.5, "volume"), ORGANS) as written:
        written.add("case_0002", overlay, {"pancreas": {"candidates": 4, "selected": 2, "kept": 2}})
    view = run.view("train", 1)
    BatchSource.of(run.config, view, 1)
    assert opened == []
    assert view.counts["case_0002"][:, 1].tolist() == [0, 0, 0, 0, 0, 2]


def test_only_cases_that_show_more_than_the_store_are_decoded(thousand, tmp_path, opened):
    declarations = thousand.declarations()
    declarations["case_0004"]["liver"] = State.ANNOTATED  # hidden in the store
    declarations["case_0000"]["liver"] = State.HIDDEN  # and here by the run
    run = Run.create(tmp_path / "run", TrainConfig.from_options(TINY), thousand, declarations)
    view = run.view("train")
    assert [file.parent.name for file in opened] == ["case_0004"] * SHAPE[0]
    np.testing.assert_array_equal(view.counts["case_0004"][:, 0], (np.roll(truth(), 1, axis=0) == 1).sum(axis=(1, 2)))
    assert not view.counts["case_0000"][:, 0].any()


@pytest.fixture
def indices(monkeypatch):
    """How often an index was read."""
    found, plain = [], store_module.read_index
    monkeypatch.setattr(store_module, "read_index", lambda path: found.append(path) or plain(path))
    return found


def test_a_command_reads_the_index_once(tmp_path, indices, monkeypatch):
    """Training with validation and a round, its continuation, evaluation, relabelling, a report: one read each."""
    monkeypatch.chdir(tmp_path)
    tiny_store(tmp_path / "store")
    small = "--backbone resnet18 --width 8 --crop-size 32 --batch-size 2 --rates 1 --threads 1 --epochs 0.5".split()
    curriculum = "--method smiler --rounds 1 --folds 3 --validate-every 0.25".split()
    moved = ["--store", "store"]
    for command in (
        ["train", "store", "run", *small, *curriculum],
        ["train", "store", "run", "--resume"],
        ["evaluate", "run", "--no-surface"],
        ["evaluate", "run", "--no-surface", "--split", "validation", *moved],
        ["relabel", "run", "--gamma", "0.5"],
        ["report", "run", *moved],
    ):
        indices.clear()
        assert main(command) == 0, command
        assert [path.name for path in indices] == ["store"], command


def test_images_of_the_links_are_those_of_three_volumes(thousand):
    """The cohort above is what it says."""
    np.testing.assert_array_equal(thousand.read_image("case_0004"), ct(1))
    assert len(thousand.cases) == NUMBER
