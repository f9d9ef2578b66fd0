"""A training that has nothing to learn from says so before its first step."""

import numpy as np
import pytest
import torch

from smile_fast.supervision import State
from smile_fast.training.config import TrainConfig
from smile_fast.training.learnable import check_learnable
from smile_fast.training.loop import train
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from tests.runs import SHAPE, make_store, truth
from tests.trainings import CPU, new_run, steps_of

A, M, H, X = State.ANNOTATED, State.MISSING, State.HIDDEN, State.ABSENT
CASES = ("train_0", "train_1")


def said(path, liver, pancreas, without=(), **settings):
    """What is said of two training cases in which the organs have these states; the held-out case is all drawn.

    Args:
        path: for the store. liver, pancreas: the states of the organ in both cases.
        without: organ values that are not drawn in the training cases.
        settings: of the training.
    """
    drawn = truth()
    states = {(case, "liver"): state for case, state in zip(CASES, liver, strict=True)}
    states |= {(case, "pancreas"): state for case, state in zip(CASES, pancreas, strict=True)}
    partial = np.where(np.isin(drawn, without), 0, drawn).astype(np.uint8)
    store = make_store(path / "store", {**dict.fromkeys(CASES, partial), "test_0": drawn}, states)
    view = TrainingView(store, store.declarations(), CASES)
    return [text.removeprefix(f"{store.path}: ") for text in check_learnable(view, TrainConfig.from_options(settings))]


UNSEEN = "the 2 training cases show no voxel of pancreas that training may learn from, so it cannot be found; annotate"
IN_PART = "is annotated in none of the 2 training cases, only drawn in part, so nothing but other organs is known not"
BOUNDLESS = "no voxel of the 2 training cases is known not to be liver, so everything will be called that; declare it"


def test_what_can_be_learned_is_not_spoken_of(tmp_path):
    assert said(tmp_path, [A, M], [H, A]) == []


@pytest.mark.parametrize("method", ["baseline", "marginal", "smile", "smiler"])
@pytest.mark.parametrize(
    ("liver", "pancreas", "without"),
    [([M, M], [M, M], (1, 2)), ([H, H], [H, H], ()), ([M, H], [X, M], (1, 2)), ([A, A], [A, A], (1, 2))],
    ids=["missing", "hidden", "mixed", "annotated-without-voxels"],
)
def test_nothing_annotated_is_refused(tmp_path, method, liver, pancreas, without):
    with pytest.raises(InputError, match="store: nothing is annotated, the 2 training cases show no voxel of an organ"):
        said(tmp_path, liver, pancreas, without, method=method)


@pytest.mark.parametrize("method", ["baseline", "marginal", "smile", "smiler"])
@pytest.mark.parametrize(
    ("pancreas", "without"),
    [([H, H], ()), ([M, M], (2,)), ([X, X], (2,)), ([A, A], (2,))],
    ids=["hidden", "missing", "absent", "annotated-without-voxels"],
)
def test_an_organ_that_is_annotated_nowhere_is_named(tmp_path, method, pancreas, without):
    (warning,) = said(tmp_path, [A, A], pancreas, without, method=method)
    assert warning.startswith(UNSEEN)


def test_a_partial_drawing_is_something_to_learn_from(tmp_path):
    (warning,) = said(tmp_path / "a", [A, A], [M, M])
    assert warning.startswith(f"pancreas {IN_PART}")
    assert said(tmp_path / "n", [A, A], [M, M], policy="naive") == []  # all the rest is its background
    assert said(tmp_path / "p", [A, A], [M, M], method="baseline") == []
    (warning,) = said(tmp_path / "m", [A, A], [M, M], method="marginal")  # background and it are not told apart
    assert warning.startswith(f"pancreas {IN_PART}")
    (warning,) = said(tmp_path / "b", [A, A], [M, M], policy="channel-drop")  # this policy looks at annotated ones only
    assert warning.startswith(UNSEEN)
    with pytest.raises(InputError, match="nothing is annotated"):
        said(tmp_path / "c", [M, M], [M, M], policy="channel-drop")


def test_an_organ_without_a_negative_is_named(tmp_path):
    """Every fifth slice of the liver, declared missing, and nothing else drawn: SMILE would call all of it liver."""
    first, second = said(tmp_path / "a", [M, M], [M, M], (2,))
    assert first.startswith(UNSEEN)
    assert second.startswith(BOUNDLESS)
    (in_part,) = said(tmp_path / "b", [M, M], [M, M])  # each organ's voxels are negatives of the other
    assert in_part.startswith(f"liver, pancreas {IN_PART}")
    (unseen,) = said(tmp_path / "d", [M, M], [M, M], (2,), method="baseline")  # to it all the rest is background
    assert unseen.startswith(UNSEEN)
    (unseen,) = said(tmp_path / "e", [M, M], [M, M], (2,), policy="naive")
    assert unseen.startswith(UNSEEN)


def test_only_the_cases_of_the_fold_count(tmp_path, capsys):
    """The pancreas is annotated in one of three cases; the fold that sets it aside cannot learn it."""
    torch.manual_seed(0)
    names = [f"train_{n}" for n in range(3)]
    states = {(case, "pancreas"): H for case in names[1:]}
    store = make_store(tmp_path / "store", dict.fromkeys(names, truth()), states)
    warned = []
    for fold in range(3):
        run = new_run(tmp_path / f"run_{fold}", store, folds=3, fold=fold, epochs=0.1)
        train(run, device=CPU)
        warned.append("warning: " in (err := capsys.readouterr().err))
        assert warned[-1] == (run.cases("validation") == ["train_0"]), err
        assert steps_of(run) > 0
    assert sum(warned) == 1


def test_void_slices_do_not_matter(tmp_path):
    labels = np.full(SHAPE, 255, np.uint8)
    labels[2:4] = truth()[2:4]
    store = make_store(tmp_path / "store", {"train_0": labels})
    view = TrainingView(store, store.declarations(), ["train_0"])
    assert check_learnable(view, TrainConfig.from_options({})) == []
