"""Padding is read as air, and nothing else is ever changed."""

import json
import tracemalloc

import numpy as np
import pytest
from nifti_files import AFFINE, write
from tolerances import PADDING_FOUND

from smile_runtime.io.nifti import read_image
from smile_runtime.predict.cli import main
from smile_runtime.volume.hounsfield import range_hu, range_warning
from smile_runtime.volume.padding import AIR_HU, padding_to_air
from smile_runtime.volume.preprocessing import slice_geometry, slices_view

SHAPE = (12, 96, 80)
CONSTANTS = [0, 40, 1000, 3071, -500, -2000, -2048, -3024, -32768]


def patient(seed=0, shape=SHAPE):
    """[D, H, W] HU: noisy air with a noisy body that touches the lower edge of the slices, as a couch does."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    body = np.hypot((y - 0.65 * shape[1]) / shape[1], (x - 0.5 * shape[2]) / shape[2]) < 0.37
    return (np.where(body, 0, -1000) + rng.normal(0, 12, shape)).clip(-1024, None).astype(np.int16)


def beyond(radius, centre=(0.5, 0.5), shape=SHAPE):
    """[H, W] outside of a circle, in shares of the slice."""
    y, x = ((np.arange(size) + 0.5) / size - middle for size, middle in zip(shape[1:], centre, strict=True))
    return np.hypot(y[:, None], x[None, :]) > radius


def turned(degrees, shape=SHAPE):
    """[H, W] outside of a rectangle that was turned."""
    y, x = np.mgrid[: shape[1], : shape[2]] - np.array(shape[1:])[:, None, None] / 2
    angle = np.radians(degrees)
    return (
        np.maximum(
            abs(x * np.cos(angle) + y * np.sin(angle)) / shape[2], abs(y * np.cos(angle) - x * np.sin(angle)) / shape[1]
        )
        > 0.47
    )


OUTSIDE = {
    "circle": lambda z: beyond(0.5),
    "circle cut by the edges": lambda z: beyond(0.6),
    "circle off centre, two corners": lambda z: beyond(0.62, (0.5, 0.4)),
    "turned": lambda z: turned(20),
    "bands": lambda z: np.arange(SHAPE[1])[:, None] * np.ones(SHAPE[2]) < 9,
    "whole slices": lambda z: beyond(0.5 if z > 2 else 0.0),
    "half of the slices": lambda z: beyond(0.5 if z % 2 else 9.0),
}


@pytest.mark.parametrize("hu", CONSTANTS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_padding_becomes_air_and_all_else_stays(name, hu):
    outside = np.stack([OUTSIDE[name](z) for z in range(SHAPE[0])])
    scan = patient()
    expected, padded = np.where(outside, AIR_HU, scan), np.where(outside, hu, scan).astype(np.int16)
    padding = padding_to_air(padded)
    assert (padding.hu, padding.voxels, padding.lowest_hu) == (hu, outside.sum(), scan[~outside].min())
    assert np.array_equal(padded, expected)


def test_padding_that_differs_from_slice_to_slice_is_found_nearly_all():
    outside = np.stack([turned(15 + z) for z in range(SHAPE[0])])
    padded = np.where(outside, 0, patient()).astype(np.int16)
    assert padding_to_air(padded).voxels > PADDING_FOUND * outside.sum()
    changed = (padded != patient()) & ~outside
    assert (patient()[changed] == 0).all()
    assert changed.sum() < (1 - PADDING_FOUND) / 10 * changed.size


def test_it_works_in_the_order_of_axes_of_any_file():
    outside = np.stack([beyond(0.5)] * SHAPE[0])
    stored = np.asfortranarray(np.where(outside, 0, patient()).astype(np.int16).transpose(1, 2, 0)[::-1])
    padding_to_air(stored[::-1].transpose(2, 0, 1))
    assert np.array_equal(stored[::-1].transpose(2, 0, 1), np.where(outside, AIR_HU, patient()))


UNTOUCHED = {
    "a patient in air": patient(),
    "air that was cut off": patient().clip(-1000, None),
    "padding that is air": np.where(beyond(0.5), -1024, patient()).astype(np.int16),
    "tissue up to all edges": np.random.default_rng(1).normal(40, 10, SHAPE).astype(np.int16),
    "tissue and a constant voxel in each corner": np.pad(
        patient()[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1)), constant_values=0
    )[:, 1:-1, 1:-1],
    "cut off at -100, where fat begins": patient().clip(-100, None),
    "not HU: 0 is its air": (patient() + 1024).clip(0, None).astype(np.int16),
    "noise that air has with thin slices": np.random.default_rng(2).normal(-950, 90, SHAPE).astype(np.int16),
    "whole slices alone": np.full(SHAPE, -1000, np.int16) + np.int16(1040) * (np.arange(12) // 3 == 1)[:, None, None],
    "nothing at all": np.zeros(SHAPE, np.int16),
    "too small for corners": np.zeros((3, 5, 9), np.int16),
    "bone in a corner, cut off at 240": np.where(
        np.outer(np.arange(96) < 6, np.arange(80) < 6), 240, patient().clip(-1000, 240)
    ).astype(np.int16),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_no_padding_is_left_alone(name):
    scan = UNTOUCHED[name].copy()
    assert padding_to_air(scan) is None
    assert np.array_equal(scan, UNTOUCHED[name])


def test_tissue_of_the_value_of_the_padding_stays_where_it_touches_the_circle():
    """Rows of a body that begins right at the circle, with every tenth voxel at 0 HU: no chance joins the padding."""
    rng = np.random.default_rng(3)
    shape = (30, 96, 96)
    scan = np.where(rng.random(shape) < 0.1, 0, rng.normal(40, 12, shape)).astype(np.int16)
    scan[0, 45:50] = -900
    outside = np.stack([beyond(0.5, shape=shape)] * shape[0])
    padded = np.where(outside, 0, scan).astype(np.int16)
    padding_to_air(padded)
    assert np.array_equal(padded, np.where(outside, AIR_HU, scan))


def test_without_padding_four_voxels_a_slice_are_looked_at_and_with_it_the_volume_is_not_copied():
    scan = patient(shape=(16, 256, 256))
    padded = np.where(beyond(0.5, shape=scan.shape), 0, scan).astype(np.int16)
    peaks = []
    for volume in (scan, padded):
        tracemalloc.start()
        padding_to_air(volume)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 8 * 1024
    assert peaks[1] < scan[0].nbytes * 4


def test_padding_below_all_hu_does_not_hide_that_there_is_no_air(tmp_path):
    scan = np.where(beyond(0.5), -2000, patient() + 1024).astype(np.int16)
    data = np.asfortranarray(scan[:, ::-1, ::-1].transpose(2, 1, 0))
    volume = read_image(write(tmp_path / "a.nii", data))
    padding = padding_to_air(slices_view(volume.data, slice_geometry(volume.affine, volume.data.shape)))
    assert range_hu(volume, padding)[0] == scan[:, ~beyond(0.5)].min() > -200
    assert range_warning(range_hu(volume, padding)) is not None


def test_a_padded_scan_gets_the_labels_of_the_scan_in_air_and_the_report_says_so(tmp_path, threshold_model):
    """The model calls 500 HU metal: outside of the circle it must see none, and no body there either."""
    found, report = {}, tmp_path / "run.json"
    for name, hu in (("padded", 500), ("air", AIR_HU)):
        scan = np.where(beyond(0.5), hu, patient()).astype(np.int16)
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.nii.gz", np.asfortranarray(scan.transpose(2, 1, 0)), AFFINE * [-1, -1, 1, 1])
        arguments = ["-o", str(tmp_path / f"{name}-out"), "--report", str(report), "--continue"]
        for _ in range(2):
            assert main([str(threshold_model), str(tmp_path / name), *arguments]) == 0
            (file,) = json.loads(report.read_text())["files"]
            found.setdefault(name, []).append(file)
    outside = int(beyond(0.5).sum()) * SHAPE[0]
    assert [file["padding"] for file in found["padded"]] == [{"hu": 500, "voxels": outside}] * 2
    assert [file["padding"] for file in found["air"]] == [None] * 2
    for file, in_air in zip(found["padded"], found["air"], strict=True):
        assert (file["volumes_ml"], file["computed"]) == (in_air["volumes_ml"], in_air["computed"])


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["ct_thorax_512", "ct_spleen_512", "ct_abdomen_3mm"])
def test_real_scans_are_left_alone_and_padding_in_them_is_found_to_the_voxel(real_data, folder):
    volume = read_image(real_data / folder / "ct.nii.gz")
    scan = slices_view(volume.data, slice_geometry(volume.affine, volume.data.shape))
    before = scan.copy()
    assert padding_to_air(scan) is None
    assert np.array_equal(scan, before)
    outside = beyond(0.5, shape=scan.shape)
    for hu in (0, -3024):
        scan[...] = np.where(outside, hu, before)
        assert padding_to_air(scan).voxels == outside.sum() * len(scan)
        assert np.array_equal(scan, np.where(outside, AIR_HU, before))
