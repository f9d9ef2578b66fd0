"""train and relabel as a user meets them."""

import argparse
import json
import math
import re
import shutil
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from smile_fast.cli.main import main
from smile_fast.cli.train import choose_device
from smile_fast.data.annotations import write_annotations
from smile_fast.data.store import Store
from smile_fast.models import Segmenter
from smile_fast.models.config import ModelConfig
from smile_fast.supervision import State
from smile_fast.training import loop
from smile_fast.training.config import TrainConfig, parse_time
from smile_fast.training.execution import Execution
from smile_fast.training.metrics import read_metrics
from smile_fast.training.ranks import ALONE
from smile_fast.training.rounds import existing_rounds, open_round
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.io.files import sha256
from tests.cohorts import tree
from tests.runs import balance, ct, make_store, truth
from tests.trainings import (
    CURRICULUM,
    TINY,
    assert_same_bits,
    differs,
    overlays,
    steps_of,
    stop_after,
    tiny_store,
    trained,
    weights,
)


@pytest.fixture(autouse=True)
def _small(one_thread):
    """Tensors are tiny."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("commands") / "store")


def options(settings):
    """Settings as command-line options."""
    found = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            found += [option if value else f"--no-{option.removeprefix('--')}"]
        elif isinstance(value, list | tuple):
            found += [option, *map(str, value)]
        else:
            found += [option, str(value)]
    return found


def train(store, run, *more, **settings):
    return main(["train", str(store.path), str(run), *options({**TINY, **settings}), *more])


@pytest.mark.parametrize("method", ["baseline", "smile", "smiler"])
def test_each_method_trains(store, tmp_path, capsys, method):
    run_folder = tmp_path / "runs" / method
    assert train(store, run_folder, method=method, epochs=0.3, rounds=1) == 0
    out, err = capsys.readouterr()
    assert out == f"trained: {run_folder / 'model.safetensors'}\n"
    run = Run.open(run_folder)
    rounds = ", all rounds" if method == "smiler" else ""
    steps = 4 if method == "smiler" else 3
    assert re.search(rf"^{method}{rounds}: {steps} steps, \S+ epochs in \d\d:\d\d \(\S+ steps/s\)$", err, re.MULTILINE)
    assert err.startswith("pixels: brought to 1.414 mm, trained on scans of 1 to 2 mm\n")
    assert re.search(rf"^{method}: 3/{steps}[ ,]", err, re.MULTILINE)
    said = re.findall(r"^round 1 \(gamma \S+\), pseudo-label voxels kept: (.*)$", err, re.MULTILINE)
    totals = open_round(run.rounds_path, 1).totals() if method == "smiler" else {}
    assert said == [", ".join(f"{n['kept']:,} of {organ}" for organ, n in totals.items())] * (method == "smiler")
    assert run.config.method == method
    assert steps_of(run) == (4 if method == "smiler" else 3)
    assert existing_rounds(run.rounds_path) == ([1] if method == "smiler" else [])
    assert not run.load_model().training


def test_what_cannot_be_learned_is_said_before_the_first_step(store, tmp_path, capsys):
    states = {case: {**own, "pancreas": State.HIDDEN} for case, own in store.declarations().items()}
    write_annotations(tmp_path / "hidden.csv", states, list(store.cases), store.organs)
    assert train(store, tmp_path / "run", "--annotations", str(tmp_path / "hidden.csv"), epochs=0.2) == 0
    _, first, *others = capsys.readouterr().err.splitlines()
    assert first == (
        f"warning: {store.path}: the 3 training cases show no voxel of pancreas that training may learn from, so it "
        "cannot be found; annotate it in some of them"
    )
    assert not [line for line in others if line.startswith("warning: ")]


def test_a_scan_in_training_and_test_is_said_by_train_and_evaluate(tmp_path, capsys):
    labels = {case: truth() for case in ("train_0", "train_1", "test_0", "test_1")}
    doubled = make_store(tmp_path / "store", labels, images={"test_1": ct(1)})
    said = (
        f"warning: {doubled.path}: the same scan is in training and among the cases to score (train_1 and test_1), "
        "whose scores will be too good; take one of them out of the dataset"
    )
    assert train(doubled, tmp_path / "run", epochs=0.1) == 0
    assert capsys.readouterr().err.count(said) == 1
    for split, count in (("test", 1), ("train", 0)):
        assert main(["evaluate", str(tmp_path / "run"), "--no-surface", "--split", split]) == 0
        assert capsys.readouterr().err.count(said) == count


def test_every_option_arrives(store, tmp_path):
    settings = {
        "method": "smiler",
        "policy": "channel-drop",
        "backbone": "resnet34",
        "output_stride": 16,
        "width": 16,
        "rates": (1, 2),
        "channels": 3,
        "window": (-100.0, 300.0),
        "pixel_size": "0.75",
        "crop_size": 64,
        "batch_size": 3,
        "epochs": 0.1,
        "budget": 90.0,
        "optimizer": "sgd",
        "lr": 0.25,
        "weight_decay": 0.5,
        "clip_norm": 1.5,
        "batch_norm": "frozen",
        "warmup": 0.2,
        "ema": 0.5,
        "organ_share": 0.25,
        "flip": 0.125,
        "rotate": 1.0,
        "scale": 0.2,
        "translate": 0.3,
        "intensity": 0.4,
        "noise": 5.0,
        "rounds": 3,
        "gamma_max": 0.5,
        "scope": "slice",
        "round_share": 0.75,
        "pseudo_negative": True,
        "keep_rounds": True,
        "fold": 1,
        "folds": 2,
        "seed": 5,
        "amp": "off",
        "validate_every": 2.0,
        "tensorboard": True,
        "body_crop": False,
    }
    brakes = {
        "negatives": 0.25,
        "margin": 7.5,
        "limit_volume": True,
        "one_component": True,
        "limit_slices": True,
        "stop": True,
        "stop_tolerance": 0.125,
        "score": "confidence",
        "calibrate": True,
        "growth": 2.0,
    }
    seen, network = [], Segmenter(ModelConfig(organs=store.organs, backbone="resnet34", width=16, channels=3))
    save_file(network.backbone.state_dict(prefix="backbone."), tmp_path / "w.safetensors")  # what is frozen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", lambda run, **arguments: seen.append((run.config, arguments)))
        assert train(store, tmp_path / "run", weights=tmp_path / "w.safetensors", **settings, **brakes) == 0
    ((config, arguments),) = seen
    # The store adds its organs and its pixel size, the method the head.
    assert config == TrainConfig.from_options({**settings, **brakes, "organs": store.organs, "pixel_mm": 0.75})
    assert {**config.to_json(), **config.model.to_json()} == {
        **settings,
        "model": config.model.to_json(),
        "brakes": brakes,
        "organs": store.organs,
        "pixel_mm": 0.75,
        "head": "sigmoid",
    }
    cpu = torch.device("cpu")
    assert arguments == {"resume": True, "device": cpu, "execution": Execution(), "ranks": ALONE}


def test_every_option_of_the_execution_arrives_and_may_change_on_resume(store, tmp_path, capsys):
    """They are not the run's own: --resume takes others."""
    assert train(store, tmp_path / "run", epochs=0.2) == 0
    assert "graph: none" not in capsys.readouterr().err
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", lambda run, **arguments: seen.append(arguments["execution"]))
        more = ["--graph", "off", "--workers", "3", "--compile"]
        assert main(["train", str(store.path), str(tmp_path / "run"), "--resume", *more]) == 0
    assert seen == [Execution(graph="off", workers="3", compile=True)]
    assert "graph: none (--graph off); steps run operation by operation\n" in capsys.readouterr().err


def test_a_graph_that_was_asked_for_on_the_cpu_is_said_not_to_be_there(store, tmp_path, capsys):
    assert train(store, tmp_path / "run", "--graph", "auto", "--workers", "1", epochs=0.2) == 0
    assert "graph: none (only CUDA has graphs); steps run operation by operation\n" in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["execution"] == {"device": "cpu", "processes": 1, **Execution(workers="1").to_json()}


@pytest.mark.parametrize("option", [["--graph", "on"], ["--workers", "-2"], ["--workers", "two"]], ids=str)
def test_an_execution_that_cannot_be_is_one_sentence(store, tmp_path, capsys, option):
    assert train(store, tmp_path / "run", f"{option[0]}={option[1]}", epochs=0.2) == 2
    assert re.fullmatch(rf"error: {option[0]}: .* cannot be used; give auto,? .*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_compiled_network_trains_as_the_network(store, tmp_path, monkeypatch):
    """With a compiler that changes no arithmetic: the same bits."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert train(store, tmp_path / "compiled", "--compile", epochs=0.5, ema=0.9) == 0
    plain = trained(tmp_path / "plain", store, epochs=0.5, ema=0.9)
    assert_same_bits(weights(Run.open(tmp_path / "compiled")), weights(plain))


def test_a_network_that_cannot_be_compiled_is_one_sentence(store, tmp_path, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    assert train(store, tmp_path / "run", "--compile", epochs=0.5) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: --compile: torch cannot compile the network here \(.*\); leave the option out", said)
    assert not (tmp_path / "run").exists()


def test_other_annotations_are_used_and_kept(store, tmp_path):
    declarations = store.declarations()
    declarations["train_1"]["pancreas"] = State.HIDDEN
    write_annotations(tmp_path / "more.csv", declarations, list(store.cases), store.organs)
    assert train(store, tmp_path / "run", "--annotations", str(tmp_path / "more.csv"), epochs=0.3) == 0
    assert train(store, tmp_path / "plain", epochs=0.3) == 0
    run = Run.open(tmp_path / "run")
    assert run.declarations() == declarations
    assert differs(weights(run), weights(Run.open(tmp_path / "plain")))


def test_start_weights_are_reported(store, tmp_path, capsys):
    source = trained(tmp_path / "source", store, epochs=0.2)
    save_file({name: t for name, t in weights(source).items() if "layer1" in name}, tmp_path / "w.safetensors")
    assert train(store, tmp_path / "run", "--weights", str(tmp_path / "w.safetensors"), epochs=0.2) == 0
    assert "weights: 24 tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_status_says_that_it_was_stopped_and_resume_goes_on(store, tmp_path, capsys, monkeypatch, number, status):
    expected = trained(tmp_path / "expected", store, **CURRICULUM)
    with monkeypatch.context() as patch:
        stop_after(patch, 11, number)
        assert train(store, tmp_path / "run", **CURRICULUM) == status
    out, err = capsys.readouterr()
    assert f"stopped; go on with: smile-fast train {store.path} {tmp_path / 'run'} --resume" in out
    assert "Traceback" not in err
    assert main(["train", str(store.path), str(tmp_path / "run"), "--resume"]) == 0  # under the run's own settings
    run = Run.open(tmp_path / "run")
    assert_same_bits(weights(run), weights(expected))
    assert overlays(run) == overlays(expected)


def test_a_run_starts_from_another_one(store, tmp_path, capsys):
    source = trained(tmp_path / "source", store, epochs=0.2)
    assert train(store, tmp_path / "run", "--weights", str(source.path), epochs=0.2) == 0
    assert re.search(r"weights: \d+ tensors loaded, 0 left at their start\n", capsys.readouterr().out)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["weights"] == {"file": "source/model.safetensors", "sha256": sha256(source.model_path)}


def test_progress_goes_to_stderr_and_time_is_printed(store, tmp_path, capsys):
    assert train(store, tmp_path / "run", epochs=1.2) == 0
    out, err = capsys.readouterr()
    assert "smile: 10/11, " in err
    assert "step" not in out
    assert [line["iteration"] for line in read_metrics(Run.open(tmp_path / "run"))] == [10, 11]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("45", 45), ("0", 0)]
)
def test_a_budget_is_a_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "soon", "-5m", "nan", "infh", "10d", "1e999"])
def test_what_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as 90s, 10m or 2h"):
        parse_time(text)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match=f"--device: {name} was asked for, but torch sees no CUDA device"):
            choose_device(name)
    for name in ("gpu", "", "cuda:x"):
        with pytest.raises(InputError, match="is no device; give cpu, cuda or cuda:N"):
            choose_device(name)
    for name in ("mps", "meta"):
        with pytest.raises(InputError, match="is not supported"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="--device: torch sees 2 CUDA devices, no cuda:2; give cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_threads_are_set():
    choose_device("cpu", threads=2)
    assert torch.get_num_threads() == 2
    choose_device("cpu", threads=0)
    assert torch.get_num_threads() == 2
    with pytest.raises(InputError, match="--threads: -1 cannot be used; give 0 or more"):
        choose_device("cpu", threads=-1)


def test_a_run_goes_on_with_its_store_at_another_place(store, tmp_path, monkeypatch):
    """Resumed, relabelled, scored, exported and reported on, it does not ask for the old one."""
    expected = trained(tmp_path / "expected", store, **CURRICULUM)
    shutil.copytree(store.path, tmp_path / "old")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(Store.open(tmp_path / "old"), tmp_path / "run", **CURRICULUM) == 143
    (tmp_path / "old").rename(tmp_path / "new")
    run, moved = str(tmp_path / "run"), ["--store", str(tmp_path / "new")]
    assert main(["train", str(tmp_path / "new"), run, "--resume"]) == 0
    assert_same_bits(weights(Run.open(tmp_path / "run")), weights(expected))
    assert main(["relabel", run, "--gamma", "0.5", *moved]) == 0
    assert main(["evaluate", run, "--no-surface", *moved]) == 0
    assert main(["export", run, str(tmp_path / "model.onnx"), *moved]) == 0
    assert main(["report", run, str(expected.path), *moved]) == 0
    assert Run.open(tmp_path / "run").store_path == tmp_path / "old"  # the record of the training stays


@pytest.fixture
def run(store, tmp_path):
    """A trained run whose network finds something everywhere."""
    run = trained(tmp_path / "run", store, method="smiler", epochs=0.2, rounds=2)
    model = run.load_model()
    balance(model, ct()[:, None])
    loop.Checkpoint({"model": dict(model.state_dict())}).save(run.model_path)
    return run


def test_relabel_goes_on_with_the_next_round(run, capsys):
    before = tree(run.store_path)
    assert existing_rounds(run.rounds_path) == [1, 2]
    assert main(["relabel", str(run.path), "--gamma", "0.25", "--scope", "slice"]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((run.rounds_path / "3" / "round.json").read_text())
    assert (record["round"], record["gamma"], record["scope"]) == (3, 0.25, "slice")
    assert set(record["cases"]) == {"train_0", "train_1", "train_2"}  # training cases only
    expected = [f"wrote round 3 (gamma 0.25): {run.rounds_path / '3'}"]
    for organ in dict.fromkeys(organ for organs in record["cases"].values() for organ in organs):
        counts = [organs[organ] for organs in record["cases"].values() if organ in organs]
        candidates, selected, kept = (sum(c[name] for c in counts) for name in ("candidates", "selected", "kept"))
        expected.append(f"  {organ}: {candidates:,} candidates, {selected:,} selected, {kept:,} kept voxels")
    assert lines[: len(expected)] == expected
    assert lines[len(expected)].startswith("review these first")
    assert sum(counts["kept"] for case in record["cases"].values() for counts in case.values()) > 100
    assert tree(run.store_path) == before


def test_relabel_follows_the_runs_curriculum(run):
    assert main(["relabel", str(run.path), "--undo", "0"]) == 0
    assert main(["relabel", str(run.path)]) == 0
    record = json.loads((run.rounds_path / "1" / "round.json").read_text())
    assert (record["gamma"], record["scope"]) == (run.config.gamma(1), "volume")
    for organs in record["cases"].values():
        for counts in organs.values():
            assert counts["selected"] == math.ceil(0.33 * counts["candidates"] - 1e-9)
    assert main(["relabel", str(run.path), "--round", "2"]) == 0
    assert json.loads((run.rounds_path / "2" / "round.json").read_text())["gamma"] == 0.66


def test_relabel_undoes_rounds(run, capsys):
    before = tree(run.store_path)
    model = run.model_path.read_bytes()
    assert main(["relabel", str(run.path), "--undo", "1"]) == 0
    said = "dropped rounds: 2; human labels are as they were, and so is the trained network\n"
    assert capsys.readouterr().out == said
    assert existing_rounds(run.rounds_path) == [1]
    assert main(["relabel", str(run.path), "--undo", "0"]) == 0
    assert main(["relabel", str(run.path), "--undo", "0"]) == 0
    assert "dropped rounds: none" in capsys.readouterr().out
    assert existing_rounds(run.rounds_path) == []
    assert main(["relabel", str(run.path)]) == 0
    assert existing_rounds(run.rounds_path) == [1]
    assert tree(run.store_path) == before
    assert run.model_path.read_bytes() == model


def test_relabel_gives_every_run_of_organ_heads_a_round(store, tmp_path):
    run = trained(tmp_path / "run", store, method="smile", epochs=0.2)
    assert main(["relabel", str(run.path), "--gamma", "1"]) == 0
    overlay = open_round(run.rounds_path, 1).pseudo_labels("train_2")
    assert overlay.shape == store.cases["train_2"].shape
