"""Bad input to relabel, evaluate, export and report: one sentence, exit status 2, nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.training.checkpoint import Checkpoint
from tests.cli.spoiling import Bad, assert_refused, config, copy, cut, foreign, index, other_organs, removed, write

RELABEL = "relabel run --gamma 0.5"


def moved() -> None:
    Path("store").rename("elsewhere")


BAD = [
    # run folders
    Bad(
        "config is no JSON",
        "evaluate run",
        "config.json: damaged (its end is missing or changed)",
        write("run/config.json"),
    ),
    Bad(
        "config of another version",
        "evaluate run",
        "config.json: is of schema 7, this version reads 4",
        config(lambda record: record.update(schema=7)),
    ),
    Bad(
        "config without settings",
        "export run model.onnx",
        "config.json: damaged",
        config(lambda record: record.pop("settings")),
    ),
    Bad(
        "config with a wrong setting",
        RELABEL,
        "config.json: --gamma-max: 7 cannot be used; give a number in (0, 1]",
        config(lambda record: record["settings"].update(gamma_max=7)),
    ),
    Bad(
        "config with another backbone",
        "evaluate run",
        "does not hold the weights of this network",
        config(lambda record: record["settings"]["model"].update(backbone="resnet34")),
    ),
    Bad(
        "config with more organs",
        "evaluate run",
        "has the organs liver, pancreas, the run",
        config(lambda record: record["settings"]["model"].update(organs=["liver", "pancreas", "x"])),
    ),
    Bad(
        "annotations of the run are damaged",
        RELABEL,
        "line 1: the header is 'a,b'; write 'case,organ,state'",
        write("run/annotations.csv", b"a,b\n"),
    ),
    *(
        Bad(
            f"store has moved, {command}",
            command,
            "not there now; if it was moved, say where it is with --store",
            moved,
        )
        for command in ("evaluate run", RELABEL, "export run model.onnx", "report run")
    ),
    Bad(
        "no store at the new place",
        "evaluate run --store elsewhere",
        "elsewhere: there is no store here; say with --store where that of the run run is",
    ),
    Bad(
        "another store for the moved one",
        "report run --store store",
        "has the organs liver, pancreas, spl",
        other_organs,
    ),
    Bad("store with another K, relabel", RELABEL, "has the organs liver, pancreas, spleen", other_organs),
    Bad("store with another K, evaluate", "evaluate run", "has the organs liver, pancreas, spleen", other_organs),
    Bad(
        "store with another K, export", "export run model.onnx", "has the organs liver, pancreas, spleen", other_organs
    ),
    Bad("store with another K, report", "report run", "has the organs liver, pancreas, spleen", other_organs),
    Bad(
        "store with fewer cases",
        RELABEL,
        "lacks 1 cases of the run run, the first is train_1",
        index(lambda found: found["cases"].pop(1)),
    ),
    Bad(
        "store from other files",
        "evaluate run",
        "was made from other files than the run run was trained on",
        index(lambda found: found["cases"][1].update(sources={"image": "ab"})),
    ),
    # final weights
    Bad("weights of the run are cut off", "evaluate run", "model.safetensors: damaged", cut("run/model.safetensors")),
    Bad(
        "weights of the run are foreign",
        "export run model.onnx",
        "not a smile-fast checkpoint",
        foreign("run/model.safetensors"),
    ),
    Bad(
        "weights of another run",
        RELABEL,
        "does not hold the weights of this network",
        copy("baseline/model.safetensors", "run/model.safetensors"),
    ),
    Bad("not trained to the end", "relabel stopped", "has not finished training"),
    Bad("not trained to the end, evaluate", "evaluate stopped", "has not finished training"),
    Bad("not trained to the end, export", "export stopped model.onnx", "has not finished training"),
    Bad("weights are gone", "evaluate run", "has not finished training", removed("run/model.safetensors")),
    # relabel
    Bad("relabel nothing", "relabel nowhere", "nowhere: not a run folder"),
    Bad("relabel a baseline", "relabel baseline", "its softmax has no organ-wise scores"),
    Bad("gamma above 1", "relabel run --gamma 1.5", "--gamma: 1.5 is not a share; give"),
    Bad("gamma below 0", "relabel run --gamma=-0.1", "--gamma: -0.1 is not a share; give"),
    Bad("gamma NaN", "relabel run --gamma nan", "--gamma: nan is not a share; give"),
    Bad("round 0", "relabel run --round 0", "--round: 0 is not the number of a round; give 1"),
    Bad("a round that exists", "relabel run --round 1", "has a round 1 already; drop it with --undo 0 first"),
    Bad(
        "a round beyond the curriculum", "relabel run", "has all 1 rounds of its curriculum; give --gamma for one more"
    ),
    Bad("undo with a share", "relabel run --undo 0 --gamma 0.5", "leave --round, --gamma and --scope out"),
    Bad("undo below 0", "relabel run --undo=-1", "--undo: -1 is not the number of a round; give 0"),
    Bad("relabel on no device", "relabel run --gamma 0.5 --device toaster", "--device: toaster is no device"),
    Bad(
        "rounds cannot be written",
        RELABEL,
        "cannot be written",
        lambda: (shutil.rmtree("run/rounds"), Path("run/rounds").touch()),
    ),
    # evaluate
    Bad("evaluate nothing", "evaluate store", "store: not a run folder"),
    Bad("no validation case", "evaluate run --split validation", "there is no validation case to evaluate"),
    Bad(
        "no held-out case",
        "evaluate run",
        "there is no test case to evaluate",
        config(lambda record: (record["splits"].update(test=[]), record["sources"].pop("test_0"))),
    ),
    Bad("tolerance", "evaluate run --nsd-tolerance=-1", "--nsd-tolerance: -1.0 was given"),
    Bad("no predictions", "evaluate run --predictions nowhere", "nowhere"),
    Bad("prediction is no image", "evaluate run --predictions .", "test_0.nii.gz", write("test_0.nii.gz")),
    # export
    Bad("export nothing", "export nowhere model.onnx", "nowhere: not a run folder, it has no config.json"),
    Bad("export into nowhere", "export run no/where.onnx", "no/where.onnx: cannot be written"),
    Bad(
        "export below a file", "export run run/config.json/model.onnx", "run/config.json/model.onnx: cannot be written"
    ),
    Bad("export into a folder", "export run store", "store: cannot be written"),
    Bad("export over the weights", "export run run/model.safetensors", "would overwrite the input"),
    # report
    Bad("report on nothing", "report nowhere", "nowhere"),
    Bad("report on a store", "report store -o page.html", "store: not a run folder"),
    Bad("report twice on one", "report run run", "run: given twice; name every run once"),
    Bad("report into nowhere", "report run -o no/page.html", "no/page.html: cannot be written"),
    Bad("report into a folder", "report run -o store", "store: cannot be written"),
    Bad("evaluation is damaged", "report run", "evaluation.json: damaged", write("run/evaluation.json", b"{}")),
    Bad("metrics are damaged", "report run", "metrics.jsonl", write("run/metrics.jsonl", b'{"iteration": 1}\n')),
    Bad("a round is damaged", "report run", "round.json", write("run/rounds/1/round.json", b"[]")),
    Bad("a round says nothing", "report run", "round.json", write("run/rounds/1/round.json", b'{"round": 1}')),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
@pytest.mark.usefixtures("work")
def test_bad_input_is_one_sentence(bad, capsys):
    bad.spoil()
    assert_refused(bad.command.split(), bad.message, capsys)


def nan_weights() -> None:
    model = Checkpoint.load(Path("run/model.safetensors"))
    for tensor in model.tensors["model"].values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    model.save(Path("run/model.safetensors"))


def test_weights_that_are_not_numbers_are_no_reason_to_crash(work, capsys):
    """NaN everywhere: nothing is found, nothing is selected, the scores say so."""
    nan_weights()
    assert main(["relabel", "run", "--gamma", "1"]) == 0
    record = json.loads(Path("run/rounds/2/round.json").read_text())
    assert {counts["selected"] for case in record["cases"].values() for counts in case.values()} == {0}
    assert main(["evaluate", "run", "--no-surface"]) == 0
    assert np.isclose(json.loads(Path("run/evaluation.json").read_text())["dice"], 0)
