"""The same anatomy in pixels of several sizes: training and prediction see it alike, labels stay on the scan's grid."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from smile_fast.cli.main import main
from smile_fast.supervision import State
from smile_fast.training.batches import BatchSource
from smile_fast.training.inference import predict_labels
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round
from smile_fast.training.view import TrainingView
from smile_runtime.volume.pixel_size import scan_stride
from tests.runs import make_run, make_store
from tests.tolerances import AREA_OF_DISC, BRIGHT_DISC_DICE, CENTRE_OF_DISC, MEAN_CENTRE_OF_DISC

EXTENT = 96.0  # mm
CENTRE, RADIUS = (40.3, 55.1), 18.0  # mm
PIXELS = {"a": 1.0, "b": 0.5, "c": 2.0, "d": 0.75, "e": 1.5}  # mm


def scene(pixel):
    """Two slices [2, H, W] of a bright disc in soft tissue, with their labels."""
    size = round(EXTENT / pixel)
    y, x = np.meshgrid(*((np.arange(size) + 0.5) * pixel,) * 2, indexing="ij")
    distance = np.hypot(y - CENTRE[0], x - CENTRE[1]) - RADIUS
    hu = 40 + 200 / (1 + np.exp(distance / 0.7))  # blurred by about a mm, as a scanner does
    return np.stack([hu.round()] * 2).astype(np.int16), np.stack([distance < 0] * 2).astype(np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    scenes = {case: scene(pixel) for case, pixel in PIXELS.items()}
    return make_store(
        tmp_path_factory.mktemp("pixels") / "store",
        {case: labels for case, (_, labels) in scenes.items()},
        organs=("liver",),
        images={case: hu for case, (hu, _) in scenes.items()},
        spacings={case: (3.0, pixel, pixel) for case, pixel in PIXELS.items()},
    )


def source(store, case, pixel_mm, **changes):
    view = TrainingView(store, store.declarations(), [case])
    settings = {"channels": 1, "crop_size": 96, "batch_size": 4, "organ_share": 0.0, "seed": 0, "round_number": 0}
    return BatchSource(view, pixel_mm=pixel_mm, **settings | changes)


def disc(shown):
    """Area and centre of what is shown [P, Q], pixels."""
    rows, columns = np.nonzero(shown)
    return len(rows), (rows.mean() + 0.5, columns.mean() + 0.5)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("case", PIXELS)
def test_a_patch_shows_the_anatomy_at_the_size_of_the_network(store, case):
    """Image and labels alike, where it was; what is seen of a pixel is within the rule of the scan stride."""
    shown = PIXELS[case] * scan_stride((PIXELS[case],) * 2, 1.0, 8) / 8  # mm of a pixel of the network
    for step in range(3):
        batch = source(store, case, 1.0, crop_size=128).batch(step)
        assert batch.hu.shape == (4, 1, 128, 128)
        for hu, labels in zip(batch.hu[:, 0], batch.labels, strict=True):
            for found in (hu > 140, labels == 1):
                area, centre = disc(found)
                assert area == pytest.approx(math.pi * (RADIUS / shown) ** 2, **AREA_OF_DISC)
                for found_at, wanted in zip(centre, CENTRE, strict=True):
                    assert found_at == pytest.approx(64 + (wanted - EXTENT / 2) / shown, **CENTRE_OF_DISC)


def test_labels_are_not_moved_on_average(store):
    """Of two pixels as near, one is taken for a whole patch, at random."""
    centres = []
    for step in range(30):
        for labels in source(store, "b", 1.0, crop_size=96).batch(step).labels:
            centres.append(disc(labels == 1)[1])
    rows, columns = np.array(centres).T
    assert min(rows.std(), columns.std()) > 0.1
    assert rows.mean() == pytest.approx(CENTRE[0], **MEAN_CENTRE_OF_DISC)
    assert columns.mean() == pytest.approx(CENTRE[1], **MEAN_CENTRE_OF_DISC)


def test_cases_with_the_pixels_of_the_network_are_not_touched(store):
    for step in range(3):
        native, brought = (source(store, "a", pixel, crop_size=64).batch(step) for pixel in (None, 1.03))
        np.testing.assert_array_equal(native.hu, brought.hu)
        np.testing.assert_array_equal(native.labels, brought.labels)


class Bright(torch.nn.Module):
    """A network of stride 8 that calls what is bright an organ."""

    def __init__(self, pixel_mm):
        super().__init__()
        stride = {"scan_stride": lambda spacing: scan_stride(spacing[1:], pixel_mm, 8)}
        self.config = SimpleNamespace(channels=1, output_stride=8, head="sigmoid", **stride)
        self.threshold = torch.nn.Parameter(torch.tensor(140.0))

    def forward(self, hu):
        return F.avg_pool2d(hu.float(), 8) - self.threshold


@pytest.mark.parametrize("case", PIXELS)
def test_a_label_map_lies_on_the_grid_of_its_scan(store, case):
    hu, truth = scene(PIXELS[case])
    labels = predict_labels(Bright(1.0), hu, spacing=(3.0, PIXELS[case], PIXELS[case]))
    assert labels.shape == truth.shape
    assert dice(labels > 0, truth > 0) > BRIGHT_DISC_DICE
    for found, wanted in zip(disc(labels[0])[1], CENTRE, strict=True):
        assert found * PIXELS[case] == pytest.approx(wanted, **CENTRE_OF_DISC)


@pytest.mark.parametrize("case", PIXELS)
def test_pseudo_labels_lie_on_the_grid_of_their_scan(store, case, tmp_path):
    declared = {name: {"liver": State.HIDDEN} for name in PIXELS}
    view = TrainingView(store, declared, [case])
    overlay = relabel(Bright(1.0), view, tmp_path, Round(1, 1.0, "volume")).pseudo_labels(case)
    truth = store.read_labels(case)
    assert overlay.shape == truth.shape
    assert dice(overlay > 0, truth > 0) > BRIGHT_DISC_DICE


def test_a_run_says_which_pixels_it_sees(store, tmp_path):
    expected = {"auto": 1.0, "native": None, "0.8": 0.8}
    for text, pixel in expected.items():
        run = make_run(tmp_path / text, store, trained=False, pixel_size=text)
        assert run.config.model.pixel_mm == pixel
        record = json.loads((run.path / "config.json").read_text())
        assert record["settings"]["pixel_size"] == text
        assert record["pixels"]["pixel_size"] == pixel
        assert record["pixels"]["trained_pixels"] == [0.5, 2.0]
        assert record["pixels"]["trained_slices"] == [3.0, 3.0]


@pytest.mark.parametrize(("text", "status"), [("0.5", 0), ("4", 0), ("0.49", 2), ("4.1", 2)])
def test_all_cases_must_be_brought_to_it(store, tmp_path, capsys, text, status):
    """At most four times enlarged, the coarsest, and eight times reduced, the finest."""
    options = ["--pixel-size", text, "--backbone", "resnet18", "--width", "8", "--epochs", "0.01", "--batch-size", "2"]
    assert main(["train", str(store.path), str(tmp_path / "run"), "--crop-size", "32", *options]) == status
    if status:
        said = f"error: --pixel-size: the pixels of the training cases, 0.5 to 2 mm, cannot all be brought to {text} mm"
        assert capsys.readouterr().err == f"{said}; give 0.5 to 4, or native\n"
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["0", "-1", "median", "nan", "inf", "1e308", "1e-9"])
def test_no_pixel_size(tmp_path, capsys, text):
    assert main(["train", str(tmp_path / "store"), str(tmp_path / "run"), f"--pixel-size={text}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --pixel-size: '{text}' cannot be used; give auto, native or ")
