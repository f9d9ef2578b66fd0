"""The air around the body: left out of patches, predictions and rounds exactly as production leaves it out."""

import numpy as np
import pytest

from smile_fast.data.store import Store
from smile_fast.evaluation.evaluate import evaluate_run
from smile_fast.exporter import Targets, export_run
from smile_fast.exporter.certificate import REQUIREMENTS, parity_samples
from smile_fast.exporter.precision import calibration_slices
from smile_fast.models import ModelConfig
from smile_fast.models.segmenter import AIR
from smile_fast.supervision import State
from smile_fast.training.batches import BatchSource
from smile_fast.training.config import TrainConfig
from smile_fast.training.inference import predict_labels, predict_logits
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round
from smile_fast.training.view import TrainingView
from smile_runtime.io.nifti import read_labels, write_image
from smile_runtime.label_map import VOID
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, body_box, to_slices, whole_box
from tests.runs import SHAPE, SPACING, make_run, make_store, truth

BODY = (slice(1, 5), slice(8, 24), slice(0, 24))


def small_body(seed=0):
    """A body that leaves half of the slice to the air, and the first and the last slice."""
    hu = np.full(SHAPE, -1000.0)
    hu[BODY] = 40
    return (hu + np.random.default_rng(seed).normal(0, 10, SHAPE)).astype(np.int16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("body") / "store"
    states = {("train_0", "pancreas"): State.MISSING}
    images = {"train_0": small_body(0), "test_0": small_body(1)}
    return make_store(path, {"train_0": truth() % 2, "test_0": truth()}, states, images=images)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("body") / "run", store)


@pytest.fixture
def box(store):
    found = store.body_box("test_0", BodyRule())
    assert found.pixels < 0.7 * np.prod(SHAPE)  # else the tests below would say little
    return found


def outside(box):
    mask = np.ones(SHAPE, bool)
    box.crop(mask)[list(box.slices)] = False
    return mask


def test_the_store_finds_the_box_of_production(store, box):
    assert box == body_box(store.read_image("test_0"), SPACING, BodyRule())
    assert store.body_box("test_0", None).pixels == np.prod(SHAPE)


def test_runs_crop_unless_it_is_switched_off(run):
    assert TrainConfig().body == BodyRule()
    assert TrainConfig(body_crop=False).body is None
    assert run.config.crop_size == 32  # the largest box, where a whole slice would need 64


def test_patches_come_from_within_the_box(store, box):
    settings = {"channels": 3, "crop_size": 64, "batch_size": 4, "organ_share": 0.5, "seed": 0, "round_number": 0}
    view = TrainingView(store, store.declarations(), ["test_0"], body=BodyRule())
    for step in range(4):
        batch = BatchSource(view, **settings).batch(step)
        seen = batch.labels != VOID
        assert seen.sum(axis=(1, 2)).tolist() == [box.size[0] * box.size[1]] * 4
        assert (batch.hu[:, 1][~seen] == AIR).all()


SETTINGS = {"channels": 1, "crop_size": 64, "batch_size": 4, "organ_share": 0.0, "seed": 0, "round_number": 0}


@pytest.mark.parametrize(
    ("bodies", "most", "patch"),
    [
        ([(32, 32), (33, 40), (40, 48)], 64, (40, 40)),  # the median, in multiples of 8
        ([(25, 41)], 64, (32, 48)),
        ([(40, 48)], 32, (32, 32)),
        ([(0, 0), (0, 0), (40, 48)], 64, (32, 32)),
    ],
)
def test_patches_are_as_large_as_bodies_are(tmp_path, monkeypatch, bodies, most, patch):
    cases = {f"train_{number}": truth() for number in range(len(bodies))}
    store = make_store(tmp_path / "store", cases)
    boxes = {
        case: BodyBox(SHAPE[0], (0, 1) if size[0] else (), slice(0, size[0]), slice(0, size[1]))
        for case, size in zip(cases, bodies, strict=True)
    }
    monkeypatch.setattr(Store, "body_box", lambda self, case, rule: boxes[case] if rule else whole_box(SHAPE))
    view = TrainingView(store, store.declarations(), list(cases), body=BodyRule())
    batch = BatchSource(view, **SETTINGS | {"crop_size": most}).batch(0)
    assert batch.hu.shape == (4, 1, *patch)
    assert batch.labels.shape == (4, *patch)
    for labels, case in zip(batch.labels, batch.cases, strict=True):
        size = bodies[case]
        assert (labels != VOID).sum() == min(size[0], patch[0]) * min(size[1], patch[1])  # of air alone: nothing
    all_of_it = TrainingView(store, store.declarations(), list(cases))
    assert BatchSource(all_of_it, **SETTINGS | {"crop_size": most}).batch(0).hu.shape == (4, 1, most, most)


@pytest.mark.parametrize(("output_stride", "patch"), [(8, (40, 48)), (16, (48, 48))])
def test_pixels_of_the_logits_cover_the_patch_as_they_cover_a_slice(tmp_path, monkeypatch, output_stride, patch):
    """The network pads to whole pixels of the logits and the losses stretch over the patch: with no rest they agree."""
    store = make_store(tmp_path / "store", {"train_0": truth()})
    box = BodyBox(SHAPE[0], (0, 1), slice(0, 34), slice(0, 41))
    monkeypatch.setattr(Store, "body_box", lambda self, case, rule: box)
    view = TrainingView(store, store.declarations(), ["train_0"], body=BodyRule())
    config = TrainConfig(ModelConfig(output_stride=output_stride), crop_size=64, organ_share=0.0)
    batch = BatchSource.of(config, view, 0).batch(0)
    assert batch.hu.shape[2:] == batch.labels.shape[1:] == patch
    assert [size % output_stride for size in patch] == [0, 0]


def test_a_network_sees_the_box_and_says_nothing_outside(store, run, box):
    model, image = run.load_model(), store.read_image("test_0")
    labels = predict_labels(model, image, box=box)
    assert labels.shape == SHAPE
    assert not labels[outside(box)].any()
    alone = predict_labels(model, np.ascontiguousarray(box.crop(image)))
    assert np.array_equal(box.crop(labels)[list(box.slices)], alone[list(box.slices)])
    assert labels.any()


def test_labels_outside_of_the_box_count_as_missed(store, run, box, monkeypatch):
    """A network that is right wherever it looks still misses what it does not look at."""
    liver = np.count_nonzero(truth() == 1)
    inside = np.count_nonzero(np.where(outside(box), 0, truth()) == 1)
    pancreas = np.count_nonzero(truth() == 2)
    pancreas_inside = np.count_nonzero(np.where(outside(box), 0, truth()) == 2)
    assert pancreas_inside < pancreas

    def perfect(model, image, box, spacing):
        return lambda: np.where(outside(box), 0, truth()).astype(np.uint8)

    monkeypatch.setattr("smile_fast.training.inference.queue_labels", perfect)
    pairs = {pair.organ: pair for pair in evaluate_run(run).pairs}
    assert pairs["liver"].dice == pytest.approx(2 * inside / (inside + liver))
    assert pairs["pancreas"].dice == pytest.approx(2 * pancreas_inside / (pancreas_inside + pancreas))


def test_a_round_looks_into_the_box_and_its_overlay_covers_the_volume(store, run, tmp_path):
    view = TrainingView(store, store.declarations(), ["train_0"], body=BodyRule())
    overlay = relabel(run.load_model(), view, tmp_path, Round(1, 1.0, "volume")).pseudo_labels("train_0")
    box = view.box("train_0")
    logits = predict_logits(run.load_model(), store.read_image("train_0"), box=box)
    positive = np.zeros(SHAPE, bool)
    scores = run.load_model().upsample(logits, box.size).numpy()
    box.crop(positive)[list(box.slices)] = scores[:, 1] > 0
    expected = positive & (view.visible_labels("train_0") == 0)
    assert overlay.shape == SHAPE
    assert np.array_equal(overlay > 0, expected)
    assert expected.any()


def test_a_case_of_air_gets_an_empty_overlay(tmp_path, run):
    labels, states = {"train_0": np.zeros(SHAPE, np.uint8)}, {("train_0", "liver"): State.MISSING}
    store = make_store(tmp_path / "store", labels, states, images={"train_0": np.full(SHAPE, -1000, np.int16)})
    view = TrainingView(store, store.declarations(), ["train_0"], body=BodyRule())
    written = relabel(run.load_model(), view, tmp_path / "rounds", Round(1, 1.0, "volume"))
    assert written.cases["train_0"]["liver"] == {"candidates": 0, "selected": 0, "kept": 0}
    assert not written.pseudo_labels("train_0").any()


def test_certificate_and_int8_scales_see_what_production_computes(store, run, box):
    """Beside the box one whole slice and a cut-out of odd size: the certificate speaks of them too."""
    image = store.read_image("test_0")
    cut, _, whole, odd = (sample.hu for sample in parity_samples(run, store, 1) if sample.case == "test_0")
    assert cut.shape[2:] == box.size
    assert [z for z in box.slices if (box.crop(image)[z] == cut[0, 0]).all()]
    np.testing.assert_array_equal(whole[0, 0], image[0])
    assert odd.shape[2:] not in (box.size, SHAPE[1:])
    seen = store.body_box("train_0", BodyRule())
    (slices,) = calibration_slices(store, ["train_0"], 1, BodyRule()).slices
    depth = len(seen.slices)
    expected = [seen.slices[z] for z in sorted({n * depth // 8 for n in (1, 3, 5, 7)})]
    np.testing.assert_array_equal(slices[:, 0], seen.crop(store.read_image("train_0"))[expected])


def test_a_case_of_air_calibrates_whole(tmp_path):
    air = {"train_0": np.full(SHAPE, -1000, np.int16)}
    store = make_store(tmp_path / "store", {"train_0": truth()}, images=air)
    (slices,) = calibration_slices(store, ["train_0"], 1, BodyRule()).slices
    assert slices.shape == (4, 1, *SHAPE[1:])


def test_production_segments_what_evaluation_scored(store, run, box, tmp_path):
    """From a scan's file to a label map's file: nothing but the model's card tells production of the box."""
    card = export_run(run, Targets(tmp_path / "model.onnx")).card
    assert card.body == BodyRule()
    image = store.read_image("test_0")
    affine = np.array(store.cases["test_0"].affine)
    write_image(tmp_path / "scan.nii.gz", np.asfortranarray(image.T), affine)
    prediction = Predictor(tmp_path / "model.onnx", threads=1).predict_file(
        tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    )
    assert prediction.box == box.to_json()
    labels, _ = to_slices(read_labels(tmp_path / "labels.nii.gz").data, affine)
    assert (labels == predict_labels(run.load_model(), image, box=box)).mean() >= REQUIREMENTS["fp32"].share
    assert labels.any()
