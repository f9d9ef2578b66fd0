import math

import pytest
import torch

from smile_fast.models.segmenter import AIR, resample_slices
from tests.tolerances import RESAMPLED_PLACE


def test_slices_with_the_pixels_of_the_network_come_back_as_they_are():
    hu = torch.randint(-1000, 1000, (2, 3, 21, 34), dtype=torch.int16)
    assert resample_slices(hu, 8, 8) is hu


@pytest.mark.parametrize("scan_stride", [2, 4, 5, 7, 9, 11, 16, 23])
@pytest.mark.parametrize("size", [(64, 80), (61, 93)])
def test_a_pixel_of_the_logits_covers_as_many_pixels_of_the_scan(scan_stride, size):
    """A ramp keeps its place: where a pixel's centre lies in the scan, there is its value."""
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))  # row, column
    seen = resample_slices(ramps[None], scan_stride, 8)[0]
    assert seen.shape[1:] == tuple(math.ceil(n / scan_stride) * 8 for n in size)
    inside = [slice(8, int(n / scan_stride * 8) - 8) for n in size]  # edges repeat, and behind them is air
    places = [
        ((torch.arange(n) + 0.5) * scan_stride / 8 - 0.5)[part] for n, part in zip(seen.shape[1:], inside, strict=True)
    ]
    wanted = torch.stack(torch.meshgrid(*places, indexing="ij"))
    assert wanted.numel() > 6
    torch.testing.assert_close(seen[:, inside[0], inside[1]], wanted, **RESAMPLED_PLACE)


def test_behind_a_slice_is_air():
    seen = resample_slices(torch.full((1, 1, 17, 40), 50, dtype=torch.int16), 16, 8)[0, 0]
    assert seen.shape == (16, 24)
    assert (seen[:8, :19] == 50).all()
    assert (seen[10:] == AIR).all()
    assert (seen[:, 22:] == AIR).all()


def test_smaller_slices_show_the_mean_of_what_a_pixel_covers():
    """Noise of a fine scan is averaged, not sampled."""
    noise = torch.randn((1, 1, 256, 256), generator=torch.Generator().manual_seed(0)) * 100
    seen = resample_slices(noise, 32, 8)  # 4 x 4 pixels in one, with a triangle's weights
    assert 15 < seen.std() < 25
