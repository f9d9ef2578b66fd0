import json

import numpy as np

from bench.prepare_scale import base_volumes, extrapolated, first_cases, make_cohort, measure_shards
from smile_fast.data.dataset import RawDataset
from smile_runtime.io.nifti import read_image, read_labels


def test_volumes_are_of_the_size_alike_and_not_the_same(tmp_path):
    make_cohort(tmp_path / "cohort", 4, size=40, slices=9)
    cases = RawDataset.open(tmp_path / "cohort").cases
    images = [read_image(case.image).data for case in cases]
    assert {image.shape for image in images} == {(40, 40, 9)}
    assert len({image.tobytes() for image in images}) == 4
    assert all(set(np.unique(read_labels(case.label).data)) == {0, 1, 2, 3} for case in cases)
    part = first_cases(tmp_path / "cohort", tmp_path / "part", 2)
    assert RawDataset.open(part).names() == ["case_0000", "case_0001"]


def test_a_large_base_is_a_doubled_phantom():
    for image, labels in base_volumes(256, 17)[:1]:
        assert image.shape == labels.shape == (17, 256, 256)
        assert np.array_equal(labels[:16:2, ::2, ::2], labels[1:16:2, 1::2, 1::2])


def test_shards_are_measured_against_one_process(tmp_path):
    make_cohort(tmp_path / "cohort", 2, size=32, slices=8)
    found = measure_shards(tmp_path / "cohort", tmp_path, 2)
    assert found["ratio"] > 0
    assert json.dumps(found)
    assert not (tmp_path / "store").exists()


def test_the_extrapolation_is_a_line_through_the_last_two():
    growth = {"1": {"seconds": 9.0}, "10": {"seconds": 6.0}, "20": {"seconds": 11.0}}
    assert extrapolated(growth, [1, 10, 20], to=100) == {"seconds": 51.0}
