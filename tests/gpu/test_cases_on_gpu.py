"""Whole cases on the device: label maps without a stop, rounds and the certificate where the network runs."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from smile_fast.exporter.certificate import REQUIREMENTS, Sample, certify
from smile_fast.exporter.graph import fold_batchnorm, to_onnx
from smile_fast.exporter.onnx_file import serialize
from smile_fast.models import ModelConfig, Segmenter
from smile_fast.ops import label_map_upsampled
from smile_fast.pipeline import Here
from smile_fast.supervision import State
from smile_fast.training import relabel as module
from smile_fast.training.inference import iterate_logits, queue_labels
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round
from smile_fast.training.validation import validate
from smile_fast.training.view import TrainingView
from smile_runtime.model.exported import Model, ModelCard
from smile_runtime.volume.preprocessing import BodyBox
from tests.cohorts import tree
from tests.exports import random_hu, tiny_network
from tests.gpu.calls import DEVICE, REHEARSAL, no_host_synchronisation
from tests.runs import ORGANS, SHAPE, SPACING, balance, ct, make_store, truth


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(ModelConfig(ORGANS, "resnet18", width=16, rates=(1,))).eval()
    balance(model, ct()[:, None])
    return model.to(DEVICE)


def in_turn(model: Segmenter, image: np.ndarray, box: BodyBox | None) -> np.ndarray:
    """A label map, batch by batch, each taken from the device before the next."""
    labels = np.zeros(image.shape, np.uint8)
    target = labels if box is None else box.crop(labels)
    for shown, logits in iterate_logits(model, image, 4, box):
        target[shown] = label_map_upsampled(logits, *target.shape[1:], model.config.output_stride, False).cpu().numpy()
    return labels


def test_two_cases_are_queued_before_the_first_is_asked_for(model: Segmenter) -> None:
    boxes = [None, BodyBox(SHAPE[0], (1, 2, 4), slice(3, 37), slice(5, 44))]
    expected = [in_turn(model, ct(seed), box) for seed, box in enumerate(boxes)]
    with no_host_synchronisation():  # raises on a GPU
        queued = [queue_labels(model, ct(seed), 4, box=box) for seed, box in enumerate(boxes)]
    for wanted, found in zip(expected, queued, strict=True):
        np.testing.assert_array_equal(found(), wanted)
        assert len(np.unique(wanted)) == 3


def test_a_round_and_a_validation_are_the_same_side_by_side(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"train_{number}" for number in range(4)]
    states = {(name, "pancreas"): State.MISSING for name in names}
    store = make_store(tmp_path / "store", dict.fromkeys(names, truth()), states)
    view = TrainingView(store, store.declarations(), names)
    relabel(model, view, tmp_path / "side by side", Round(1, 0.5, "volume"))
    dice = validate(model, view)
    monkeypatch.setattr(module, "worker_thread", lambda name: nullcontext(Here()))
    monkeypatch.setattr(module, "in_order", lambda function, items, executor, ahead: map(function, items))
    relabel(model, view, tmp_path / "in turn", Round(1, 0.5, "volume"))
    assert tree(tmp_path / "side by side") == tree(tmp_path / "in turn") != {}
    assert dice == validate(model, view) != {}


def test_the_certificate_is_made_where_the_network_runs(tmp_path: Path) -> None:
    network = tiny_network("sigmoid")
    path = tmp_path / "model.onnx"
    card = ModelCard(ORGANS, 1, (-160.0, 240.0), "sigmoid")
    path.write_bytes(serialize(to_onnx(fold_batchnorm(network)), card))
    samples = [Sample("a", random_hu((2, *SHAPE[1:]), 1, seed), SPACING) for seed in range(5)]
    samples.append(Sample("b", ct()[:, None], SPACING))
    allowed = torch.backends.cudnn.allow_tf32
    found = certify(network.to(DEVICE), Model(path), samples)
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert found["network_on"] == ("cpu" if REHEARSAL else torch.cuda.get_device_name())
    assert found["slices"] == 16
    assert found["identical_share"] >= REQUIREMENTS["fp32"].share
