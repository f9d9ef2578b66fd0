"""Bad input to train: one sentence, exit status 2, nothing half-written."""

import math
import os
import pickle
import sys
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from tests.cli.spoiling import (
    Bad,
    annotations,
    assert_refused,
    copy,
    cut,
    foreign,
    index,
    other_organs,
    removed,
    write,
)
from tests.cohorts import tree
from tests.training.test_config import WRONG

TRAIN = "train store new --backbone resnet18 --width 8 --rates 1 --crop-size 32 --batch-size 2 --epochs 0.2"
RESUME = "train store stopped --resume"


def nothing_annotated() -> None:
    """other.csv: the run's annotations, of which training may see none."""
    text = Path("run/annotations.csv").read_text()
    Path("other.csv").write_text(text.replace("annotated", "hidden").replace("missing", "hidden"))


BAD = [
    # train: the store
    Bad("no store", TRAIN.replace("store", "nowhere"), "nowhere: no store, it has no index.json; make one with"),
    Bad("store is a file", TRAIN.replace("store", "other.csv"), "other.csv", write("other.csv")),
    Bad(
        "store is unfinished",
        TRAIN,
        "store: an unfinished store, it has no index.json, and 4 of its 4 cases are missing; finish it with",
        removed("store/index.json"),
    ),
    Bad("index is no JSON", TRAIN, "index.json: damaged", write("store/index.json")),
    Bad(
        "index of another version",
        TRAIN,
        "is of schema 9, this version reads 4",
        index(lambda found: found.update(schema=9)),
    ),
    Bad(
        "no training case",
        TRAIN,
        "has no training case",
        index(lambda found: [case.update(split="test") for case in found["cases"]]),
    ),
    Bad(
        "image is damaged",
        TRAIN,
        "damaged or replaced, ",
        cut(*(f"store/cases/train_{n}/image-*.b2nd" for n in range(3)), keep=40),
    ),
    Bad(
        "labels are gone",
        TRAIN,
        "there is no such file; run 'smile-fast prepare --rehash' again",
        removed(*(f"store/cases/train_{n}/labels-*.b2nd" for n in range(3))),
    ),
    # train: the run folder
    Bad("run exists", TRAIN.replace("new", "run"), "run: holds a run already; give a new folder, or --resume"),
    Bad(
        "run below a file",
        TRAIN.replace("new", "other.csv/new"),
        "other.csv/new: the run folder cannot be made",
        write("other.csv"),
    ),
    Bad("run is a file", TRAIN.replace("new", "other.csv"), "other.csv: already exists", write("other.csv")),
    Bad("run where nothing can be made", TRAIN.replace("new", "/proc/new"), "/proc/new: the run folder cannot be made"),
    # train: what else it is given
    Bad("no annotations", f"{TRAIN} --annotations nowhere.csv", "nowhere.csv: there is no such file"),
    Bad(
        "unknown state", f"{TRAIN} --annotations other.csv", "unknown state 'drawn'", annotations("annotated", "drawn")
    ),
    *(
        Bad(
            f"nothing annotated for {method}",
            f"{TRAIN} --annotations other.csv --method {method}",
            "store: nothing is annotated, the 3 training cases show no voxel of an organ that training may learn from",
            nothing_annotated,
        )
        for method in ("baseline", "smile", "smiler")
    ),
    Bad(
        "a row is gone",
        f"{TRAIN} --annotations other.csv",
        "no row for 1 of the 8",
        annotations("train_1,liver,missing\n", ""),
    ),
    Bad(
        "absent but drawn",
        f"{TRAIN} --annotations other.csv",
        "is declared absent, but the store has voxels",
        annotations("train_0,liver,annotated", "train_0,liver,absent"),
    ),
    Bad(
        "annotations are no text", f"{TRAIN} --annotations other.csv", "not a text file", write("other.csv", b"\xff\0")
    ),
    Bad("weights of a folder that is no run", f"{TRAIN} --weights store", "store: not a run folder"),
    Bad(
        "weights of a run that was stopped",
        f"{TRAIN} --weights stopped",
        "stopped: the run has no final weights to start from",
    ),
    Bad(
        "no weights",
        f"{TRAIN} --weights nowhere.safetensors",
        "nowhere.safetensors: there is no such file or folder; name a run",
    ),
    Bad(
        "weights are a pickle",
        f"{TRAIN} --weights w.pt",
        "w.pt: cannot be read as a safetensors file",
        write("w.pt", pickle.dumps({"w": 1})),
    ),
    Bad(
        "weights are cut off",
        f"{TRAIN} --weights run/model.safetensors",
        "cannot be read as a safetensors file",
        cut("run/model.safetensors"),
    ),
    Bad(
        "no weight fits",
        f"{TRAIN} --weights w.safetensors",
        "holds no tensor that fits a resnet18",
        foreign("w.safetensors", "visual.proj"),
    ),
    Bad(
        "weights are NaN",
        f"{TRAIN} --weights w.safetensors",
        "holds NaN or infinite values in layer1.0.bn1.weight",
        foreign("w.safetensors", "layer1.0.bn1.weight", math.nan),
    ),
    Bad("no CUDA", f"{TRAIN} --device cuda", "torch sees no CUDA device"),
    Bad("no device", f"{TRAIN} --device toaster", "--device: toaster is no device"),
    Bad("a device of another maker", f"{TRAIN} --device mps", "--device: mps is not supported"),
    Bad("threads", f"{TRAIN} --threads -2", "--threads: -2 cannot be used; give 0 or more"),
    Bad("a brake without rounds", f"{TRAIN} --method smile --score confidence", "--score: smile has no relabelling ro"),
    Bad("brakes without a method", f"{TRAIN} --stop --negatives 0", "--negatives: smile has no relabelling rounds; "),
    Bad("more folds than cases", f"{TRAIN} --folds 4", "4 folds need at least as many training cases, the store has 3"),
    Bad("loss is lost", f"{TRAIN} --optimizer sgd --lr 1e30 --epochs 1", "new: the loss became"),
    Bad("no tensorboard", f"{TRAIN} --tensorboard", "the package tensorboard is not installed"),
    # train --resume
    Bad("resume without a run", "train store nowhere --resume", "nowhere: not a run folder"),
    Bad("resume in a folder that is none", "train store store --resume", "store: not a run folder"),
    Bad(
        "resume with no store",
        "train nowhere stopped --resume",
        "nowhere: there is no store here; say with --store where that of the run stopped",
    ),
    Bad(
        "resume with another store", "train store stopped --resume", "has the organs liver, pancreas, spl", other_organs
    ),
    Bad(
        "resume with weights",
        "train store stopped --resume --weights w.safetensors",
        "leave --weights, --annotations, --splits and --fill out",
    ),
    Bad(
        "resume with splits",
        "train store stopped --resume --splits splits.csv",
        "leave --weights, --annotations, --splits and --fill out",
    ),
    Bad(
        "splits that are not there",
        "train store new --splits splits.csv",
        "splits.csv: there is no such file",
    ),
    Bad(
        "resume with annotations",
        "train store stopped --resume --annotations other.csv",
        "leave --weights, --annotations, --splits and --fill out",
    ),
    Bad("resume with other settings", "train store stopped --resume --lr 1 --epochs 9", "leave --epochs, --lr out"),
    Bad(
        "resume from a damaged checkpoint",
        RESUME,
        "damaged, it cannot be read as a checkpoint",
        cut("stopped/checkpoint.safetensors"),
    ),
    Bad("resume from nothing", RESUME, "damaged", write("stopped/checkpoint.safetensors", b"")),
    Bad(
        "resume from a foreign checkpoint",
        RESUME,
        "not a smile-fast checkpoint",
        foreign("stopped/checkpoint.safetensors"),
    ),
    Bad(
        "resume from another run's checkpoint",
        RESUME,
        "does not hold the weights of this network",
        copy("baseline/checkpoint.safetensors", "stopped/checkpoint.safetensors"),
    ),
    Bad(
        "resume from a checkpoint without average",
        RESUME,
        "does not fit the settings",
        copy("run/checkpoint.safetensors", "stopped/checkpoint.safetensors"),
    ),
    Bad(
        "resume from final weights",
        RESUME,
        "does not say where training stood",
        copy("run/model.safetensors", "stopped/checkpoint.safetensors"),
    ),
    Bad("resume after the store changed", RESUME, "has the organs liver, pancreas, spleen", other_organs),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
@pytest.mark.usefixtures("work")
def test_bad_input_is_one_sentence(bad, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    bad.spoil()
    assert_refused(bad.command.split(), bad.message, capsys)


# Three numbers, and a minus sign that looks like an option, are stopped by the parser already; pixel_mm is no option.
SETTINGS = [
    (name, value)
    for name, value in WRONG
    if name not in ("window", "pixel_mm") or (name == "window" and len(value) == 2 and value[0] != -math.inf)
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=str)
@pytest.mark.usefixtures("work")
def test_a_setting_that_cannot_be_used(name, value, capsys):
    option = f"--{name.replace('_', '-')}"
    given = [option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]
    wanted = "is not a time such as" if name == "budget" else f"{option}: "
    assert_refused(["train", "store", "new", *given], wanted, capsys)


FULL_DISK = [
    TRAIN,
    RESUME,
    "relabel run --gamma 0.5",
    "evaluate run --no-surface",
    "report run -o page.html",
]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("command", FULL_DISK)
def test_a_full_disk_is_one_sentence(command, call, work, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = tree(Path())
    monkeypatch.setattr(os, call, full)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no space left on device" in errors[0].lower()
    assert "Traceback" not in out + err
    # A resumed training has gone on: its log tells so. Everything else is as it was.
    after, log = tree(Path()), "stopped/metrics.jsonl"
    assert {**after, log: b""} == {**before, log: b""}


def test_a_disk_that_fills_up_during_the_training_leaves_what_was_whole(work, capsys, monkeypatch):
    """The run folder could be made, the checkpoint at the round's end not: no half of it stays, the log does."""
    replace = os.replace

    def full(source, target, **options):
        if str(target).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    assert main(TRAIN.split()) == 2
    assert "no space left on device" in capsys.readouterr().err
    files = sorted(file.name for file in Path("new").iterdir())
    assert files == ["annotations.csv", "config.json", "environment.json", "metrics.jsonl"]
    monkeypatch.setattr(os, "replace", replace)
    assert main(["train", "store", "new", "--resume"]) == 0


def test_a_second_try_is_possible_after_a_mistake(work, capsys):
    """A run that never took a step does not stand in the way."""
    write("w.safetensors")()
    assert main([*TRAIN.split(), "--weights", "w.safetensors"]) == 2
    assert not Path("new").exists()
    assert main(TRAIN.split()) == 0
