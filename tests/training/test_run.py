import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smile_fast.data.store import write_index
from smile_fast.records import write_record
from smile_fast.supervision import State
from smile_fast.training import run as module
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.run import Run, split_cases
from smile_runtime.errors import InputError
from tests.runs import ORGANS, make_run, make_store, truth
from tests.trainings import assert_same_bits, tiny_store, weights

LABELS = {name: truth() for name in ("test_1", "train_2", "train_0", "train_1", "test_0")}


@pytest.fixture
def own_store(tmp_path):
    return tiny_store(tmp_path / "store")


def edit(run, change):
    file = run.path / "config.json"
    record = json.loads(file.read_text())
    change(record)
    del record["sha256"]
    write_record(file, record)


def test_a_new_run_can_be_opened_again(store, tmp_path):
    run = make_run(tmp_path / "a" / "run", store, trained=False, method="smiler", channels=3, seed=7, rates=(1, 2))
    found = Run.open(run.path)
    assert (found.config, found.splits) == (run.config, run.splits)
    assert found.store_path == store.path.resolve()
    assert found.organs == store.organs == ORGANS
    assert found.declarations() == store.declarations()
    assert found.cases("test") == ["test_0"]
    record = json.loads((run.path / "config.json").read_text())
    assert record["settings"]["method"] == "smiler"
    assert record["settings"]["model"]["organs"] == list(ORGANS)
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "threads", "device", "smile_fast"} <= set(environment)
    assert sorted(file.name for file in run.path.iterdir()) == ["annotations.csv", "config.json", "environment.json"]


def test_a_run_keeps_its_own_declarations(store, tmp_path):
    declarations = store.declarations()
    declarations["train_1"]["pancreas"] = State.HIDDEN
    run = Run.create(tmp_path / "run", TrainConfig(), store, declarations)
    assert Run.open(run.path).declarations() == declarations != store.declarations()


def test_the_crop_is_the_largest_slice_rounded_up(store, tmp_path):
    assert make_run(tmp_path / "a", store, trained=False).config.crop_size == 64  # 40 x 48
    assert make_run(tmp_path / "b", store, trained=False, crop_size=32).config.crop_size == 32


@pytest.mark.parametrize("method", ["baseline", "smile", "smiler"])
def test_the_baseline_has_a_softmax(store, tmp_path, method):
    run = make_run(tmp_path / "run", store, trained=False, method=method)
    assert run.config.model.head == ("softmax" if method == "baseline" else "sigmoid")
    assert run.config.model.outputs == len(ORGANS) + (method == "baseline")


def test_splits_without_folds(tmp_path):
    store = make_store(tmp_path / "store", LABELS)
    assert split_cases(store, TrainConfig()) == {
        "train": ["train_0", "train_1", "train_2"],
        "validation": [],
        "test": ["test_0", "test_1"],
    }


def test_folds_share_the_training_cases_whatever_the_seed(tmp_path):
    store = make_store(tmp_path / "store", {f"case {number}": truth() for number in range(7)})
    folds = [split_cases(store, TrainConfig(folds=3, fold=fold, seed=fold)) for fold in range(3)]
    assert folds[0] == split_cases(store, TrainConfig(folds=3, fold=0, seed=99))
    assert sorted(name for fold in folds for name in fold["validation"]) == sorted(store.cases)
    for fold in folds:
        assert sorted(fold["train"] + fold["validation"]) == sorted(store.cases)
        assert len(fold["validation"]) in (2, 3)


def test_folds_need_cases(store):
    with pytest.raises(InputError, match="4 folds need at least as many training cases, the store has 3"):
        split_cases(store, TrainConfig(folds=4))


def test_a_store_of_held_out_cases_only_cannot_be_trained_on(tmp_path):
    with pytest.raises(InputError, match="has no training case"):
        make_run(tmp_path / "run", make_store(tmp_path / "store", {"test_0": truth()}), trained=False)
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_not_touched(store, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for name in ("run", "file"):
        with pytest.raises(InputError, match="already exists and is not empty"):
            make_run(tmp_path / name, store, trained=False)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert make_run(tmp_path / "empty", store, trained=False).path.is_dir()


def test_a_run_that_cannot_be_written_leaves_nothing(store, tmp_path, monkeypatch):
    def full(folder, record):
        raise InputError(f"{folder / 'config.json'}: cannot be written (no space left on device)")

    monkeypatch.setattr(module, "write_config", full)
    with pytest.raises(InputError, match=f"^{tmp_path / 'run' / 'config.json'}: cannot be written"):
        make_run(tmp_path / "run", store, trained=False)
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "another schema": (lambda record: record.update(schema=5), "is of schema 5, this version reads 4; restore"),
    "no schema": (lambda record: record.pop("schema"), "damaged "),
    "no settings": (lambda record: record.pop("settings"), "damaged "),
    "settings are no object": (lambda record: record.update(settings=[1]), "damaged "),
    "an unknown setting": (lambda record: record["settings"].update(momentum=1), "settings: momentum is not known"),
    "a wrong setting": (
        lambda record: record["settings"].update(epochs=-1),
        "--epochs: -1 cannot be used; give a positive number",
    ),
    "a setting is gone": (lambda record: record["settings"].pop("body_crop"), "settings: body_crop is missing"),
    "no model": (lambda record: record["settings"].update(model=None), "settings: None is not an object"),
    "no organs": (lambda record: record["settings"]["model"].update(organs=[]), "the network has no organs"),
    "another head": (
        lambda record: record["settings"]["model"].update(head="softmax"),
        "--method: 'smile' cannot be used",
    ),
    "an unknown model field": (lambda record: record["settings"]["model"].update(depth=1), "depth is not known"),
    "no splits": (lambda record: record.update(splits=None), "damaged "),
    "a split is gone": (lambda record: record["splits"].pop("test"), "damaged "),
    "no training case": (lambda record: record["splits"].update(train=[]), "damaged .it names no training case"),
    "a case twice": (lambda record: record["splits"]["test"].append("train_0"), "damaged .it names a case twice"),
    "sources of another case": (lambda record: record["sources"].update(x={}), "damaged .its sources are not those"),
    "no store": (lambda record: record.update(store=None), "damaged "),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_config_is_named(own_store, tmp_path, damage):
    run = make_run(tmp_path / "run", own_store, trained=False)
    change, message = DAMAGE[damage]
    edit(run, change)
    with pytest.raises(InputError, match=message) as caught:
        Run.open(run.path)
    assert str(run.path / "config.json") in str(caught.value)


def test_a_run_of_the_first_schema_is_refused_in_one_sentence(tmp_path):
    """A record as it was written before the settings held those of the network."""
    shutil.copy(Path(__file__).parent / "config_schema_1.json", tmp_path / "config.json")
    with pytest.raises(InputError) as caught:
        Run.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'config.json'}: is of schema 1, this version reads 4; restore it from a copy, train again, or "
        "use the smile-fast that made it"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1'])
def test_a_config_that_is_no_object_is_damaged(own_store, tmp_path, content):
    run = make_run(tmp_path / "run", own_store, trained=False)
    (run.path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: damaged .*; restore it from a copy, train again"):
        Run.open(run.path)


def test_a_folder_that_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=": not a run folder"):
            Run.open(path)


def test_a_store_that_moved_or_changed_is_refused(own_store, tmp_path):
    run = make_run(tmp_path / "run", own_store, trained=False)
    infos = list(own_store.cases.values())
    write_index(own_store.path, own_store.organs, infos[:-2])  # cases are gone
    with pytest.raises(InputError, match=r"lacks 2 cases of the run .*, the first is train_2"):
        _ = Run.open(run.path).store
    write_index(own_store.path, own_store.organs, infos)
    assert Run.open(run.path).store.organs == ORGANS
    shutil.rmtree(own_store.path)
    for organs in (("liver",), ("pancreas", "liver"), ("liver", "pancreas", "spleen")):
        shutil.rmtree(own_store.path, ignore_errors=True)
        make_store(own_store.path, {case: np.minimum(truth(), len(organs)) for case in own_store.cases}, organs=organs)
        with pytest.raises(InputError, match=f"has the organs {', '.join(organs)}, the run .* was trained for liver, "):
            _ = Run.open(run.path).store
    own_store.path.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"the store of the run .* is not there now; .* --store"):
        _ = Run.open(run.path).store


def test_a_store_is_known_again_at_another_place(own_store, tmp_path):
    infos = [replace(info, sources={"image": "0" * 64}) for info in own_store.cases.values()]
    write_index(own_store.path, own_store.organs, infos)
    run = make_run(tmp_path / "run", own_store.open(own_store.path), trained=False)
    record = (run.path / "config.json").read_bytes()
    own_store.path.rename(tmp_path / "moved")
    found = Run.open(run.path, tmp_path / "moved")
    assert found.store.path == found.store_path == tmp_path / "moved"
    assert (run.path / "config.json").read_bytes() == record
    others = {
        "has the organs": (
            ("liver", "spleen"),
            [
                replace(info, runs={}, states={"liver": info.states["liver"], "spleen": info.states["pancreas"]})
                for info in infos
            ],
        ),
        "lacks 1 cases": (ORGANS, infos[1:]),
        "was made from other files": (ORGANS, [replace(infos[0], sources={"image": "1" * 64}), *infos[1:]]),
    }
    for message, (organs, cases) in others.items():
        write_index(tmp_path / "moved", organs, cases)
        with pytest.raises(InputError, match=message):
            Run.open(run.path, tmp_path / "moved")


def test_the_final_weights(smiler):
    model = smiler.load_model()
    assert not model.training
    assert next(model.parameters()).device.type == "cpu"
    assert_same_bits({name: model.state_dict()[name] for name in weights(smiler)}, weights(smiler))
    assert set(weights(smiler)) == set(model.state_dict())


def test_no_final_weights_yet(own_store, tmp_path):
    run = make_run(tmp_path / "run", own_store, trained=False)
    with pytest.raises(InputError, match="does not exist; train first"):
        run.load_model()
    Checkpoint({"model": {}}).save(run.checkpoint_path)
    with pytest.raises(InputError, match="has not finished training; go on with --resume first"):
        run.load_model()


def test_weights_of_another_network_are_refused(own_store, tmp_path):
    run = make_run(tmp_path / "run", own_store)
    other = make_run(tmp_path / "other", own_store, method="baseline")
    shutil.copy(other.model_path, run.model_path)
    with pytest.raises(InputError, match=r"does not hold the weights of this network \(size mismatch") as caught:
        run.load_model()
    assert len(str(caught.value)) < 500
    Checkpoint({"optimizer": {"w": torch.ones(1)}}).save(run.model_path)
    with pytest.raises(InputError, match="does not hold the weights of this network") as caught:
        run.load_model()
    assert len(str(caught.value)) < 500


def test_a_case_that_joins_the_store_later_disturbs_no_run(own_store, tmp_path):
    run = make_run(tmp_path / "run", own_store, trained=False)
    before = run.declarations()
    newcomer = replace(next(iter(own_store.cases.values())), name="train_9")
    write_index(own_store.path, own_store.organs, [*own_store.cases.values(), newcomer])
    assert "train_9" in Run.open(run.path).store.cases
    assert Run.open(run.path).declarations() == before


def test_a_store_of_other_files_is_refused(own_store, tmp_path):
    infos = [replace(info, sources={"image": "0" * 64}) for info in own_store.cases.values()]
    write_index(own_store.path, own_store.organs, infos)
    run = make_run(tmp_path / "run", own_store.open(own_store.path), trained=False)
    assert Run.open(run.path).store.organs == ORGANS
    write_index(own_store.path, own_store.organs, [*infos[:-1], replace(infos[-1], sources={"image": "1" * 64})])
    with pytest.raises(InputError, match=f"made from other files than the run .* 1 cases differ, .* {infos[-1].name}"):
        _ = Run.open(run.path).store


def test_start_weights_are_on_record(own_store, tmp_path):
    run = make_run(tmp_path / "run", own_store, trained=False)
    file = tmp_path / "start.safetensors"
    file.write_bytes(b"weights")
    run.record_weights(file)
    record = json.loads((run.path / "config.json").read_text())
    assert record["weights"] == {"file": "start.safetensors", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert Run.open(run.path).config == run.config
