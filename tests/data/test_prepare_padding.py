"""The store holds what production sees: padding is air in both."""

import json

import numpy as np

from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_runtime.io.nifti import read_image
from smile_runtime.volume.padding import AIR_HU, padding_to_air
from smile_runtime.volume.preprocessing import slice_geometry, slices_view
from tests.cohorts import SHAPE, annotate, make_cohort, write_nifti


def test_padding_is_air_in_the_store_and_in_production(tmp_path):
    cohort = make_cohort(tmp_path / "cohort", train=2)
    annotate(cohort)
    x, y = (np.abs(np.arange(size) - (size - 1) / 2) / size for size in SHAPE[:2])
    outside = np.hypot(x[:, None], y[None, :]) > 0.45  # [X, Y]
    scan = np.random.default_rng(1).normal(-500, 200, SHAPE).astype(np.int16)
    padded = np.where(outside[..., None], 0, scan).astype(np.int16)
    file = cohort / "imagesTr" / "case_01_0000.nii.gz"
    write_nifti(file, padded)
    for kept in (0, 2):
        done = prepare(RawDataset.open(cohort), tmp_path / "store", workers=1)
        assert (done.kept, done.padded) == (kept, ["case_01"])
    store = done.store
    stored = store.read_image("case_01")
    assert np.array_equal(stored, np.where(outside[..., None], AIR_HU, scan)[::-1, ::-1].transpose(2, 1, 0))
    produced = read_image(file)
    slices = slices_view(produced.data, slice_geometry(produced.affine, SHAPE))
    assert padding_to_air(slices).voxels == outside.sum() * SHAPE[2]
    assert np.array_equal(stored, slices)
    entry = json.loads((tmp_path / "store" / "cases" / "case_01" / "case.json").read_text())
    assert entry["padding"] == {"hu": 0, "voxels": int(outside.sum() * SHAPE[2])}
