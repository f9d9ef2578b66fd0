"""Evaluation in several processes and threads: the same scores, the same sentences, and what overlaps."""

import itertools
import threading
from contextlib import nullcontext

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from smile_fast.evaluation import evaluate, evaluate_run
from smile_fast.pipeline import Here
from smile_runtime.errors import InputError
from tests.evaluation.test_evaluation import write_prediction
from tests.runs import truth


@pytest.mark.parametrize("workers", [2, 4])
def test_scores_do_not_depend_on_the_number_of_processes(run, tmp_path, workers):
    """Neither those of the network nor those of a folder; real processes, more than there are cases."""
    for case in run.cases("test"):
        write_prediction(tmp_path, case, np.roll(truth(), 1, 2))
    for options in ({}, {"predictions": tmp_path}):
        alone = evaluate_run(run, workers=1, **options)
        assert evaluate_run(run, workers=workers, **options) == alone
        assert any(pair.hd95_mm for pair in alone.pairs)


def test_the_number_of_processes_follows_the_work(run, monkeypatch):
    asked = []

    def processes(workers, *, advice, preload):
        asked.append(workers)
        return nullcontext(Here())

    monkeypatch.setattr(evaluate, "worker_processes", processes)
    monkeypatch.setattr(evaluate, "this_process", lambda *, advice: processes(1, advice=advice, preload=""))
    monkeypatch.setattr(evaluate, "usable_cpus", lambda: 2)
    evaluate_run(run)
    monkeypatch.setattr(evaluate, "VOXELS_OF_A_WORKER", 6 * 40 * 48)
    evaluate_run(run)
    monkeypatch.setattr(evaluate, "usable_cpus", lambda: 64)
    evaluate_run(run)
    evaluate_run(run, workers=2)
    assert asked == [1, 2, 3, 2]
    with pytest.raises(InputError, match="--workers: 0 is not a number of processes"):
        evaluate_run(run, workers=0)


@pytest.mark.parametrize("file", ["image", "labels"])
def test_a_damaged_case_is_the_same_sentence_in_a_process(run, file):
    path = run.store.array_path("test_1", file)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    sentences = []
    for workers in (1, 2):
        with pytest.raises(InputError, match="damaged or replaced") as error:
            evaluate_run(run, workers=workers)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
    assert str(path) in sentences[0]


def test_of_several_bad_cases_the_first_is_named(run, tmp_path):
    """Whichever process is the first to find one."""
    for case in run.cases("test"):
        write_prediction(tmp_path, case, truth())
    (tmp_path / "test_1.nii.gz").unlink()
    (tmp_path / "test_2.nii.gz").unlink()
    for workers in (1, 3):
        with pytest.raises(InputError, match=r"test_1\.nii\.gz"):
            evaluate_run(run, workers=workers, predictions=tmp_path)


def test_the_next_case_is_read_while_one_is_predicted(run, monkeypatch):
    reading = {case: threading.Event() for case in run.cases("test")}
    predicted = []
    read_image = Store.read_image

    def read(store, case, slices=slice(None)):
        reading[case].set()
        return read_image(store, case, slices)

    def queue_labels(model, image, box, spacing):
        predicted.append(image)
        if len(predicted) < len(reading):
            assert reading[run.cases("test")[len(predicted)]].wait(60)  # only a defect takes that long
        return truth

    monkeypatch.setattr(Store, "read_image", read)
    monkeypatch.setattr("smile_fast.training.inference.queue_labels", queue_labels)
    assert len(evaluate_run(run, workers=1).cases) == len(predicted) == 3


def test_a_case_is_predicted_while_the_one_before_it_is_taken_from_the_device(run, monkeypatch):
    queued = [threading.Event() for _ in run.cases("test")]
    number = itertools.count()

    def queue_labels(model, image, box, spacing):
        this = next(number)
        queued[this].set()

        def wait():
            assert queued[min(this + 1, 2)].wait(60)  # only a defect takes that long
            return truth()

        return wait

    monkeypatch.setattr("smile_fast.training.inference.queue_labels", queue_labels)
    assert len(evaluate_run(run, workers=1).cases) == 3


@pytest.mark.parametrize("workers", ["0", "-1", "x", "1.5"])
def test_command_refuses_a_number_of_processes_that_is_none(run, capsys, workers):
    assert main(["evaluate", str(run.path), "--device", "cpu", f"--workers={workers}"]) == 2
    err = capsys.readouterr().err
    assert f"{workers} is not a number of processes; give 1 or more, or auto" in err
    assert err.count("\n") == 1
