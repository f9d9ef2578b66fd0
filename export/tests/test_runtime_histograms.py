import numpy as np
import pytest

from smile_runtime.volume.histograms import slice_histograms


@pytest.mark.parametrize("values", [[0, 1, 127, 255], [0, 1, 2, 16], [0, 1, 17], [3], [0]])
def test_values_are_counted_slice_by_slice(values):
    labels = np.random.default_rng(0).choice(values, (4, 5, 6)).astype(np.uint8)
    found = slice_histograms(labels)
    assert (found.shape, found.dtype) == ((4, 256), np.int64)
    for value in range(256):
        assert (found[:, value] == (labels == value).sum(axis=(1, 2))).all()
    assert (slice_histograms(np.asfortranarray(labels)) == found).all()
    assert slice_histograms(labels[:0]).shape == (0, 256)
