"""An evaluation that several processes make: the bytes of one that a single process made, and nothing in between."""

import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data import folder_lock
from smile_fast.data.folder_lock import locked, shared
from smile_fast.evaluation import (
    Scoring,
    evaluate_run,
    evaluate_share,
    finish_evaluation,
    read_evaluation,
    write_evaluation,
)
from smile_fast.evaluation import shares as module
from smile_fast.evaluation.verify import verify_run
from smile_fast.training.checkpoint import Checkpoint
from smile_runtime.errors import InputError
from smile_runtime.sharding import WHOLE, Shard
from tests.evaluation.test_evaluation import write_prediction
from tests.runs import truth

TEST = Scoring()
HALVES = [Shard(1, 2), Shard(2, 2)]


def scores(run):
    """The files of scores of a run, and what else is in its folder."""
    names = {path.name: path for path in run.path.iterdir()}
    return {name: path.read_bytes() for name, path in names.items() if name.startswith("evaluation")}, set(names)


@pytest.fixture
def expected(run):
    """The files that one process writes; they are removed again."""
    write_evaluation(evaluate_run(run), run.path)
    found = scores(run)
    for name in found[0]:
        (run.path / name).unlink()
    assert len(found[0]) == 2
    return found


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1, 0, 1)])
def test_shares_make_the_bytes_of_one_process(run, expected, order):
    done = [evaluate_share(run, TEST, HALVES[number]) for number in order]
    assert sum(done) == 3  # none is scored twice
    assert scores(run)[0] == {}
    assert finish_evaluation(run, TEST) == read_evaluation(run.path)
    assert scores(run) == expected
    assert finish_evaluation(run, TEST) == read_evaluation(run.path)  # once more: it is there already
    assert scores(run) == expected
    assert [evaluate_share(run, TEST, half) for half in HALVES] == [None, None]  # as a scheduler may start them again
    assert finish_evaluation(run, TEST) == read_evaluation(run.path)
    assert scores(run) == expected


def test_what_is_missing_is_said_and_nothing_appears(run, expected):
    assert evaluate_share(run, TEST, HALVES[1]) == 1
    for _ in range(2):
        with pytest.raises(InputError, match=r"run: 2 of 3 test cases are not scored \(test_0, test_2\); run"):
            finish_evaluation(run, TEST)
        assert scores(run)[0] == {}
    assert evaluate_share(run, TEST, WHOLE) == 2
    finish_evaluation(run, TEST)
    assert scores(run) == expected


def change_weights(run):
    checkpoint = Checkpoint.load(run.model_path)
    name = next(name for name in checkpoint.tensors["model"] if name.endswith("bias"))
    checkpoint.tensors["model"][name] += 0.25
    checkpoint.save(run.model_path)


def change_truth(run):
    annotations = run.path / "annotations.csv"
    annotations.write_text(annotations.read_text().replace("test_0,liver,annotated", "test_0,liver,missing"))


@pytest.mark.parametrize("change", [change_weights, change_truth, None], ids=["weights", "truth", "options"])
def test_scores_of_other_weights_or_settings_are_none_of_it(run, change):
    evaluate_share(run, TEST, WHOLE)
    if change is not None:
        change(run)
    asked = replace(TEST, nsd_tolerance_mm=1.0) if change is None else TEST
    with pytest.raises(InputError, match="3 of 3 test cases are not scored"):
        finish_evaluation(run, asked)
    assert evaluate_share(run, asked, WHOLE) == 3
    finish_evaluation(run, asked)
    assert read_evaluation(run.path) == evaluate_run(run, nsd_tolerance_mm=asked.nsd_tolerance_mm)


def test_scores_know_their_source_and_those_of_another_source_are_none_of_it(run):
    evaluate_share(run, TEST, WHOLE)
    run.store.cases["test_1"] = replace(run.store.cases["test_1"], source="north")  # as sources.csv may say one day
    with pytest.raises(InputError, match="3 of 3 test cases are not scored"):
        finish_evaluation(run, TEST)
    evaluate_share(run, TEST, WHOLE)
    found = finish_evaluation(run, TEST)
    assert {pair.case: pair.source for pair in found.pairs} == {"test_0": "", "test_1": "north", "test_2": ""}
    assert [source.source for source in read_evaluation(run.path).sources] == ["", "north"]
    assert "test_1,liver" in (run.path / "evaluation.csv").read_text()
    assert ",north" in (run.path / "evaluation.csv").read_text()


def test_an_evaluation_of_other_weights_does_not_count_as_finished(run):
    write_evaluation(evaluate_run(run), run.path)
    assert finish_evaluation(run, TEST) == read_evaluation(run.path)
    change_weights(run)
    with pytest.raises(InputError, match="3 of 3 test cases are not scored"):
        finish_evaluation(run, TEST)


def test_a_label_map_that_was_replaced_is_scored_again(run, tmp_path):
    for case in run.cases("test"):
        write_prediction(tmp_path, case, truth())
    asked = Scoring(predictions=tmp_path)
    assert evaluate_share(run, asked, WHOLE) == 3
    for _ in range(2):
        finish_evaluation(run, asked)
        assert evaluate_share(run, asked, WHOLE) is None
    (run.path / "evaluation-of-predictions.json").unlink()
    assert evaluate_share(run, asked, WHOLE) == 3
    write_prediction(tmp_path, "test_1", np.roll(truth(), 1, 2))
    with pytest.raises(InputError, match=r"1 of 3 test cases are not scored \(test_1\)"):
        finish_evaluation(run, asked)
    assert evaluate_share(run, asked, WHOLE) == 1
    assert finish_evaluation(run, asked) == evaluate_run(run, predictions=tmp_path)
    assert set(scores(run)[0]) == {"evaluation-of-predictions.json", "evaluation-of-predictions.csv"}


def test_the_folder_of_label_maps_may_be_named_in_any_way(run, tmp_path, monkeypatch):
    folder = tmp_path / "maps"
    folder.mkdir()
    for case in run.cases("test"):
        write_prediction(folder, case, truth())
    monkeypatch.chdir(tmp_path)
    assert evaluate_share(run, Scoring(predictions=Path("maps")), WHOLE) == 3
    finish_evaluation(run, Scoring(predictions=folder))
    assert evaluate_share(run, Scoring(predictions=Path("../", tmp_path.name, "maps")), WHOLE) is None


@pytest.mark.parametrize("change", [change_weights, change_truth], ids=["weights", "truth"])
def test_what_was_finished_of_other_weights_or_truth_is_scored_again(run, change):
    evaluate_share(run, TEST, WHOLE)
    finish_evaluation(run, TEST)
    change(run)
    assert evaluate_share(run, TEST, WHOLE) == 3
    finish_evaluation(run, TEST)
    assert read_evaluation(run.path) == evaluate_run(run)


def test_what_others_left_over_is_dropped_with_a_word_when_nobody_is_at_work(run, capsys):
    evaluate_share(run, TEST, WHOLE)
    change_weights(run)
    evaluate_share(run, TEST, WHOLE)
    with shared(run.path, ".evaluation.lock"), pytest.raises(InputError, match="another smile-fast process is at work"):
        finish_evaluation(run, TEST)
    assert len(list(run.path.glob(".evaluation.parts/*"))) == 2
    finish_evaluation(run, TEST)
    assert "evaluation.parts: 3 scored cases of other weights or options are dropped" in capsys.readouterr().err
    assert not list(run.path.glob(".eval*"))


def test_two_splits_do_not_wait_for_each_other(run):
    train = Scoring(split="train")
    evaluate_share(run, TEST, WHOLE)
    with shared(run.path, ".evaluation-train.lock"):
        finish_evaluation(run, TEST)
        assert evaluate_share(run, train, WHOLE) > 0


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "edited"])
def test_a_table_of_another_evaluation_is_found(run, monkeypatch, kill, capsys):
    write_evaluation(evaluate_run(run, nsd_tolerance_mm=None), run.path)
    after, table, replace_file = evaluate_run(run), run.path / "evaluation.csv", os.replace

    def killed(*arguments):
        replace_file(*arguments)
        raise KeyboardInterrupt

    if kill:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                write_evaluation(after, run.path)
    else:
        table.write_text(table.read_text().replace("test_0", "test_1", 1))
    assert verify_run(run.path, workers=1).faults == [
        f"{table}: is not the table that was written with evaluation.json; run smile-fast evaluate again"
    ]
    assert evaluate_share(run, TEST, WHOLE) == 3
    finish_evaluation(run, TEST)
    assert verify_run(run.path, workers=1).faults == []
    table.unlink()
    assert verify_run(run.path, workers=1).faults == [f"{table}: there is no such file; run smile-fast evaluate again"]


def test_two_that_write_scores_at_once_wait_for_each_other(run, monkeypatch):
    found = evaluate_run(run)
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.0)
    with locked(run.path, ".evaluation.writing"), pytest.raises(InputError, match="is at work there now"):
        write_evaluation(found, run.path)
    assert scores(run)[0] == {}
    monkeypatch.setattr(folder_lock, "PATIENCE", 60.0)
    with ExitStack() as held, ThreadPoolExecutor(1) as other:
        held.enter_context(locked(run.path, ".evaluation.writing"))
        written = other.submit(write_evaluation, found, run.path)
        held.close()
        written.result()
    assert read_evaluation(run.path) == found


def test_a_part_that_is_damaged_is_made_again(run, expected):
    evaluate_share(run, TEST, WHOLE)
    (part,) = run.path.glob(".evaluation.parts/*/test_2.json")
    part.write_bytes(part.read_bytes().replace(b"null", b"0.00", 1))
    assert evaluate_share(run, TEST, WHOLE) == 1
    finish_evaluation(run, TEST)
    assert scores(run) == expected


@pytest.mark.parametrize(("failing", "at"), [("fsync", 1), ("fsync", 2), ("replace", 1)])
def test_a_disk_that_fails_leaves_the_pair_of_before(run, monkeypatch, failing, at):
    """Both files are on the disk before one of them is renamed."""
    write_evaluation(evaluate_run(run, nsd_tolerance_mm=None), run.path)
    before, after = scores(run), evaluate_run(run)
    real, calls = getattr(os, failing), itertools.count(1)

    def fails(*arguments):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fails)
        with pytest.raises(InputError, match=r"evaluation\.(json|csv): cannot be written \(no space left on device\)"):
            write_evaluation(after, run.path)
    assert scores(run) == before
    write_evaluation(after, run.path)
    assert scores(run)[0] != before[0]


def test_parts_that_cannot_be_written_are_one_sentence(run):
    (run.path / ".evaluation.parts").touch()
    with pytest.raises(InputError, match=r"evaluation\.parts.*: cannot be made .*; make the folder"):
        evaluate_share(run, TEST, WHOLE)


def test_a_kill_while_parts_are_dropped_leaves_all_or_none(run, monkeypatch, expected):
    evaluate_share(run, TEST, WHOLE)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            finish_evaluation(run, TEST)
    assert scores(run)[0] == expected[0]
    finish_evaluation(run, TEST)
    assert scores(run)[0] == expected[0]


def test_the_command_shares_the_work(run, expected, capsys):
    command = ["evaluate", str(run.path), "--device", "cpu", "--workers", "1"]
    assert main([*command, "--shard", "2/2", "--finish"]) == 2
    assert "--finish: puts together what all shares did; leave --shard out" in capsys.readouterr().err
    assert main([*command, "--finish"]) == 2
    assert f"error: {run.path}: 3 of 3 test cases are not scored" in capsys.readouterr().err
    assert main([*command, "--shard", "2/2"]) == 0
    assert "share 2/2 of the test cases is scored, 1 now; when all are: --finish" in capsys.readouterr().out
    assert main([*command, "--shard", "1/2"]) == 0
    assert main([*command, "--finish"]) == 0
    assert "mean of organs" in capsys.readouterr().out
    assert scores(run)[0] == expected[0]
    assert main([*command, "--shard", "2/2"]) == 0
    assert "split test are finished already: nothing is left to do for share 2/2 of" in capsys.readouterr().out


def test_the_parts_of_a_run_are_in_a_hidden_folder(run):
    evaluate_share(run, Scoring(split="train"), WHOLE)
    (part,) = (path for path in run.path.rglob("train_0.json"))
    assert Path(part).relative_to(run.path).parts[0] == ".evaluation-train.parts"
