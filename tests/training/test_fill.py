"""Missing organs that another model has labelled before the training."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from smile_fast.evaluation.verify import verify_run
from smile_fast.supervision import Policy, State
from smile_fast.training.execution import DEFAULT_EXECUTION
from smile_fast.training.loop import train
from smile_fast.training.relabel import weights_digest
from smile_fast.training.rounds import open_round
from smile_fast.training.run import Run
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT
from tests.runs import make_store, truth
from tests.trainings import CPU

LIVER, PANCREAS = 1, 2
TRAIN = (
    "--backbone resnet18 --width 8 --crop-size 32 --batch-size 2 --epochs 0.3 --rates 1 --optimizer sgd --lr 0.3 "
    "--device cpu --no-body-crop"
).split()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    hidden = {("train_0", "pancreas"): State.HIDDEN, ("train_1", "liver"): State.HIDDEN}
    return make_store(tmp_path / "store", {f"train_{n}": truth() for n in range(3)} | {"test_0": truth()}, hidden)


def write_maps(folder: Path, store: Store, labels: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for case, each in labels.items():
        nib.save(
            nib.Nifti1Image(each.transpose(2, 1, 0), np.array(store.cases[case].affine)), folder / f"{case}.nii.gz"
        )
    return folder


def maps_of_a_tool() -> dict[str, np.ndarray]:
    """The pancreas of train_0 and the liver of train_1 where another model sees them, each over a drawn corner, too."""
    found = {}
    for case, value in (("train_0", PANCREAS), ("train_1", LIVER)):
        labels = np.zeros_like(truth())
        labels[:, 2:6, 2:6] = value
        found[case] = labels
    return found


def test_labels_of_a_tool_fill_missing_organs_and_all_else_is_background(store: Store, tmp_path: Path) -> None:
    maps = maps_of_a_tool()
    folder = write_maps(tmp_path / "maps", store, maps)
    assert main(["train", str(store.path), str(tmp_path / "run"), "--fill", str(folder), *TRAIN]) == 0
    run = Run.open(tmp_path / "run", store)
    view = run.first_view()
    human = run.view("train").visible_labels("train_0")
    labels = view.labels("train_0")
    np.testing.assert_array_equal(labels[human > 0], human[human > 0])
    free, found = human == 0, maps["train_0"] == PANCREAS
    assert (labels[free & found] == (PSEUDO_BIT | PANCREAS)).all()
    assert (labels[free & ~found] == PSEUDO_BACKGROUND).all()
    np.testing.assert_array_equal(view.labels("train_2"), truth())
    known = view.tables(Policy.SMILE, pseudo_negative=view.filled)[0, :, 0, 0]  # [256], of train_0
    values = torch.tensor(np.unique(labels)).long()
    assert (known[values] & 0b11 == 0b11).all()  # no voxel is in doubt for any of two organs
    assert verify_run(run.path).faults == []
    assert run.load_model() is not None


def test_labels_of_a_run_are_those_that_it_predicts(store: Store, tmp_path: Path) -> None:
    assert main(["train", str(store.path), str(tmp_path / "teacher"), *TRAIN]) == 0
    filled = ["train", str(store.path), str(tmp_path / "run"), "--fill", str(tmp_path / "teacher"), *TRAIN]
    assert main(filled) == 0
    run = Run.open(tmp_path / "run", store)
    teacher = Run.open(tmp_path / "teacher", store).load_model()
    assert open_round(run.fill_path, 0).weights == weights_digest(teacher)
    human = run.view("train").visible_labels("train_0")
    overlay = open_round(run.fill_path, 0).pseudo_labels("train_0")
    assert set(np.unique(overlay[human == 0])) <= {PSEUDO_BACKGROUND, PSEUDO_BIT | PANCREAS}
    assert (overlay[human > 0] == 0).all()


def test_a_softmax_cannot_fill(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(store.path), str(tmp_path / "teacher"), *TRAIN, "--method", "baseline"]) == 0
    assert main(["train", str(store.path), str(tmp_path / "run"), "--fill", str(tmp_path / "teacher"), *TRAIN]) == 2
    assert "which has no probability of each organ" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_goes_on_with_the_same_labels(store: Store, tmp_path: Path) -> None:
    folder = write_maps(tmp_path / "maps", store, maps_of_a_tool())
    assert main(["train", str(store.path), str(tmp_path / "run"), "--fill", str(folder), *TRAIN]) == 0
    whole = Run.open(tmp_path / "run", store)
    bits = whole.model_path.read_bytes()
    whole.model_path.unlink()
    whole.checkpoint_path.unlink()
    train(Run.open(tmp_path / "run", store), resume=True, device=CPU, execution=DEFAULT_EXECUTION)
    assert whole.model_path.read_bytes() == bits


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("", ["--method", "smiler"], "--fill: smiler has a rule of its own for missing organs"),
        ("gone", [], "has no label map of 1 of 2 cases in which an organ was not drawn, train_1.nii.gz for one"),
        ("value", [], "holds label 9, the run knows 1 to"),
        ("grid", [], "lies on another grid than case train_0"),
    ],
)
def test_what_cannot_fill_is_one_sentence_and_leaves_no_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, options: list[str], message: str
) -> None:
    maps = maps_of_a_tool()
    if change == "gone":
        del maps["train_1"]
    if change == "value":
        maps["train_0"][0, 0, 0] = 9
    if change == "grid":
        maps["train_0"] = maps["train_0"][:-1]
    folder = write_maps(tmp_path / "maps", store, maps)
    assert main(["train", str(store.path), str(tmp_path / "run"), "--fill", str(folder), *TRAIN, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
