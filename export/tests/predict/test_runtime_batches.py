"""Batches on a GPU: few sizes, real pixels, and the labels of the box alone."""

import numpy as np
import pytest
from nifti_files import random_hu
from tiny_models import threshold_labels

from smile_runtime.errors import AllocationError
from smile_runtime.predict.batches import seen_box
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.body import BodyBox


def box(rows, columns, slices=range(7), depth=9):
    return BodyBox(depth, tuple(slices), slice(*rows), slice(*columns))


@pytest.mark.parametrize(
    ("rows", "extent", "seen"),
    [
        ((0, 64), 512, (0, 64)),
        ((10, 75), 512, (10, 138)),
        ((400, 512), 512, (384, 512)),
        ((1, 500), 500, (0, 500)),
        ((3, 40), 50, (0, 50)),
        ((0, 449), 500, (0, 500)),
    ],
)
def test_a_gpu_sees_whole_multiples_of_64_pixels_of_the_scan(rows, extent, seen):
    found = seen_box(box(rows, (0, 64)), (9, extent, 64), "cuda")
    assert (found.rows, found.columns) == (slice(*seen), slice(0, 64))
    assert seen_box(box(rows, (0, 64)), (9, extent, 64), "cpu") == box(rows, (0, 64))
    assert seen_box(box((0, 0), (0, 0), ()), (9, extent, 64), "cuda").size == (0, 0)


@pytest.fixture
def device(threshold_model, monkeypatch, request):
    """A predictor that takes its CPU for a GPU, and the shapes that its session gets."""
    predictor = Predictor(threshold_model, batch=getattr(request, "param", 4))
    predictor.provider = "cuda"
    shapes, real = [], predictor.model.labels

    def labels(hu, pixel_spacing):
        shapes.append(hu.shape)
        return real(hu, pixel_spacing)

    monkeypatch.setattr(predictor.model, "labels", labels)
    return predictor, shapes


def test_a_gpu_labels_the_box_alone_in_batches_of_one_size(device):
    predictor, shapes = device
    hu = random_hu((9, 100, 150))
    labels = predictor.predict(hu, box=box((10, 90), (30, 70), (0, 1, 3, 4, 5, 7, 8)))
    expected = np.zeros_like(labels)
    kept = np.ix_((0, 1, 3, 4, 5, 7, 8), range(10, 90), range(30, 70))
    expected[kept] = threshold_labels(hu)[kept]
    assert np.array_equal(labels, expected)
    assert shapes == [(4, 1, 100, 64)] * 2


def test_scans_with_boxes_of_many_sizes_have_few_shapes(device):
    predictor, shapes = device
    hu = random_hu((9, 200, 200))
    for size in range(70, 128, 3):
        predictor.predict(hu, box=box((20, 20 + size), (50, 50 + size)))
    assert set(shapes) == {(4, 1, 128, 128)}


@pytest.mark.parametrize("device", [100], indirect=True)
def test_a_scan_of_few_slices_is_filled_up_to_a_power_of_two(device):
    predictor, shapes = device
    hu = random_hu((3, 20, 20))
    assert np.array_equal(predictor.predict(hu), threshold_labels(hu))
    assert shapes == [(4, 1, 20, 20)]


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_a_batch_is_halved_until_it_fits(threshold_model, monkeypatch, provider):
    predictor = Predictor(threshold_model, batch=8)
    predictor.provider = provider
    real, seen = predictor.model.labels, []

    def labels(hu, pixel_spacing):
        seen.append(len(hu))
        if len(hu) > 3:
            raise AllocationError("no")
        return real(hu, pixel_spacing)

    monkeypatch.setattr(predictor.model, "labels", labels)
    hu = random_hu((7, 20, 20))
    assert np.array_equal(predictor.predict(hu), threshold_labels(hu))
    assert seen == ([7, 3, 3, 1] if provider == "cpu" else [8, 4, 2, 2, 2, 2])
    monkeypatch.setattr(predictor.model, "labels", lambda hu, _: (_ for _ in ()).throw(AllocationError("no")))
    with pytest.raises(AllocationError):
        predictor.predict(hu)
