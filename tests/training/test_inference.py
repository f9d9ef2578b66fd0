import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from smile_fast.models import ModelConfig, Segmenter
from smile_fast.supervision import State
from smile_fast.training.inference import iterate_logits, predict_labels, predict_logits
from smile_fast.training.validation import validate
from smile_runtime.label_map import VOID
from smile_runtime.volume.preprocessing import slice_context
from tests.runs import ORGANS, balance, ct, make_run, make_store, truth
from tests.tolerances import IDENTICAL_LABELS, LOGITS_OF_A_BATCH


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Segmenter(ModelConfig(ORGANS, "resnet18", channels=3, width=8, rates=(1,)))
    balance(model.eval(), slice_context(ct(), range(6), 3))
    return model


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_every_slice_once_and_in_order(model, batch_size):
    found = list(iterate_logits(model, ct(), batch_size))
    assert [z for slices, _ in found for z in slices] == list(range(6))
    with torch.inference_mode():
        expected = torch.cat([model(torch.from_numpy(slice_context(ct(), [z], 3))) for z in range(6)])
    torch.testing.assert_close(predict_logits(model, ct(), batch_size), expected, **LOGITS_OF_A_BATCH)
    labels = predict_labels(model, ct(), batch_size)
    assert (labels.shape, labels.dtype) == (ct().shape, np.uint8)
    assert (labels == model.label_map(expected, ct().shape[1:]).numpy()).mean() > IDENTICAL_LABELS
    assert len(np.unique(labels)) == 3


def test_a_compressed_array_is_read_like_any_other(model, store):
    case = store.read_image("train_1")
    np.testing.assert_array_equal(predict_labels(model, case), predict_labels(model, ct(1)))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_comes_back_in_the_mode_that_it_was_in(model, training):
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict_labels(model, ct())
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # BatchNorm, too
    iterator = iterate_logits(model, ct(), 1)
    next(iterator)
    iterator.close()  # left early
    assert model.training is training
    model.eval()


def test_validation_is_the_mean_dice_of_what_is_annotated_and_there(tmp_path, monkeypatch):
    """Three cases: one predicted well, one half, one with void; hidden and missing organs are not looked at."""
    labels = {name: truth() for name in ("a", "b", "c", "d")}
    labels["c"] = np.where(truth() == 2, 0, truth())
    labels["c"][5] = VOID
    store = make_store(tmp_path / "store", labels, {("a", "pancreas"): State.HIDDEN, ("b", "pancreas"): State.MISSING})
    run = make_run(tmp_path / "run", store, trained=False)
    run = replace(run, splits={"train": ["d"], "validation": ["a", "b", "c"], "test": []})
    half = np.where(truth() == 1, 1, 0)
    half[:3] = 0  # two of the liver's four slices
    noise_in_void = truth()
    noise_in_void[5] = 1
    predictions = iter([truth(), half, noise_in_void])
    monkeypatch.setattr(
        "smile_fast.training.validation.queue_labels", lambda model, image, **where: lambda: next(predictions)
    )
    dice = validate(None, run.view("validation"))
    assert dice == {"liver": pytest.approx((1 + 2 / 3 + 1) / 3)}  # the pancreas is nowhere annotated and there


def test_validation_reads_and_counts_beside_the_network(tmp_path, monkeypatch):
    """The first case is counted only when the second is predicted, the second predicted only when the third is read."""
    store = make_store(tmp_path / "store", {name: truth() for name in "abcd"})
    run = make_run(tmp_path / "run", store, trained=False)
    run = replace(run, splits={"train": ["d"], "validation": ["a", "b", "c"], "test": []})
    view, predicted, read = run.view("validation"), [threading.Event() for _ in "abc"], threading.Event()
    image, number = view.image, itertools.count()

    def read_image(case):
        if case == "c":
            read.set()
        return image(case)

    def queue_labels(model, image, **where):
        this = next(number)
        assert this != 1 or read.wait(60)  # only a defect takes that long
        predicted[this].set()

        def wait():
            assert predicted[min(this + 1, 2)].wait(60)
            return truth()

        return wait

    monkeypatch.setattr(view, "image", read_image)
    monkeypatch.setattr("smile_fast.training.validation.queue_labels", queue_labels)
    assert validate(None, view) == {"liver": 1.0, "pancreas": 1.0}
