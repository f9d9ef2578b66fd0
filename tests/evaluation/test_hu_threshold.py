import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from smile_fast.data.dataset import RawDataset
from smile_fast.data.phantom import PhantomOptions, write_cohort
from smile_fast.evaluation.hu_threshold import best_windows, hu_threshold
from smile_runtime.errors import InputError
from tests.cohorts import describe, make_cohort


def dice(prediction, truth):
    return 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())


def load(case):
    return np.asarray(nib.load(case.image).dataobj), np.asarray(nib.load(case.label).dataobj)


def paint(dataset, values):
    """Give the organs of every case their own HU, on a background around 0."""
    rng = np.random.default_rng(0)
    for case in dataset.cases:
        image, labels = load(case)
        image = rng.normal(0, 12, image.shape)
        for value, (mean, spread) in values.items():
            image[labels == value] = rng.normal(mean, spread, (labels == value).sum())
        nib.save(nib.Nifti1Image(np.rint(image).astype(np.int16), np.diag([1.5, 1.5, 3, 1])), case.image)


def test_finds_an_organ_that_only_its_hu_tells(tmp_path):
    dataset = RawDataset.open(make_cohort(tmp_path, train=3, test=2))
    paint(dataset, {1: (200, 10)})
    scores = best_windows(dataset)
    assert scores["liver"].dice > 0.97
    assert 36 < scores["liver"].low < 180
    assert not scores["liver"].smoothed
    assert scores["spleen"].dice < 0.6


def test_smoothing_finds_what_noise_hides(tmp_path):
    dataset = RawDataset.open(make_cohort(tmp_path, train=3, test=2))
    paint(dataset, {1: (25, 12)})
    score = best_windows(dataset)["liver"]
    assert score.smoothed
    assert score.dice > 0.75


def test_is_the_best_of_all_windows(tmp_path):
    dataset = RawDataset.open(make_cohort(tmp_path, train=2, test=1))
    paint(dataset, {1: (30, 14), 2: (60, 14), 3: (45, 14)})
    train = [load(case) for case in dataset.cases if case.split == "train"]
    test = [load(case) for case in dataset.cases if case.split == "test"]
    for value, organ in enumerate(dataset.organs, 1):
        score = best_windows(dataset)[organ]

        def mean_dice(cases, low, high, smoothed=score.smoothed, value=value):
            images = [
                ndimage.uniform_filter(i.astype(np.float32), 3, mode="nearest") if smoothed else i for i, _ in cases
            ]
            pairs = zip(images, cases, strict=True)
            return np.mean([dice((image >= low) & (image < high + 1), labels == value) for image, (_, labels) in pairs])

        best = mean_dice(train, score.low, score.high)
        grid = [(low, high - 1) for low in range(-40, 120, 10) for high in range(low + 2, 140, 10)]
        assert best >= max(mean_dice(train, low, high) for low, high in grid)
        assert score.dice == pytest.approx(mean_dice(test, score.low, score.high))


def test_a_case_without_the_organ_does_not_count(tmp_path):
    dataset = RawDataset.open(make_cohort(tmp_path, train=3, test=2, without={"case_04": ["liver"]}))
    paint(dataset, {1: (200, 10)})
    assert hu_threshold(dataset)["liver"] > 0.97


def test_void_voxels_are_no_organ(tmp_path):
    make_cohort(tmp_path, train=2, test=1)
    describe(tmp_path, {"background": 0, "liver": 1, "pancreas": 2, "spleen": 3, "void": 255}, 2)
    dataset = RawDataset.open(tmp_path)
    paint(dataset, {1: (200, 5)})
    for case in dataset.cases:
        _, labels = load(case)
        labels = labels.copy()
        labels[labels == 0] = 255
        nib.save(nib.Nifti1Image(labels, np.diag([1.5, 1.5, 3, 1])), case.label)
    assert hu_threshold(dataset)["liver"] > 0.97


def test_needs_held_out_cases(tmp_path):
    with pytest.raises(InputError, match="no test cases to score a window on"):
        hu_threshold(RawDataset.open(make_cohort(tmp_path, train=2)))


def test_no_window_finds_a_phantoms_organs(tmp_path):
    """What makes the phantom a task: HU alone does not tell its organs from muscle, spleen, bowel and blood."""
    write_cohort(tmp_path, PhantomOptions(train=10, test=5))
    scores = hu_threshold(RawDataset.open(tmp_path))
    assert scores.keys() == {"liver", "pancreas", "stomach"}
    assert max(scores.values()) < 0.5


def test_label_maps_in_another_order_of_axes_give_the_same_windows(tmp_path):
    dataset = RawDataset.open(make_cohort(tmp_path, train=2, test=1))
    paint(dataset, {1: (200, 10)})
    plain = best_windows(dataset)
    for case in dataset.cases:
        image = nib.load(case.label)
        nib.save(image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), case.label)
    assert best_windows(dataset) == plain
