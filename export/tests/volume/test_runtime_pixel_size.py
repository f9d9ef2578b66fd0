import json
from dataclasses import asdict

import pytest

from smile_runtime.volume.pixel_size import LARGEST_SCAN_STRIDE, PixelSpace, cohort_pixel_size, scan_stride


@pytest.mark.parametrize(
    ("pixels", "stride"),
    [
        ((2.0, 2.0), 8),  # the network's own
        ((1.9, 1.9), 8),  # near enough to them
        ((1.0, 1.0), 16),
        ((1.5, 1.5), 11),
        ((3.0, 3.0), 5),
        ((4.0, 4.0), 4),
        ((1.0, 4.0), 8),  # as large as a pixel of the network
        ((16 / 8.5, 16 / 8.5), 8),  # a half goes to the even number
        ((0.01, 0.01), LARGEST_SCAN_STRIDE),
        ((100.0, 100.0), 2),  # a wrong header must not ask for slices of any size
    ],
)
def test_a_pixel_of_the_logits_covers_whole_pixels_of_the_scan(pixels, stride):
    assert scan_stride(pixels, 2.0, 8) == stride
    assert PixelSpace(2.0, 8, (2.0, 2.0), (3.0, 3.0), 0.15).scan_stride(pixels) == stride


def test_a_network_without_a_pixel_size_takes_every_pixel():
    assert {scan_stride((side, side), None, 16) for side in (0.01, 0.8, 100.0)} == {16}


def test_what_the_network_sees_is_near_its_pixel_size():
    """Within half a pixel of the scan for each pixel of the logits."""
    for side in (0.5 + n / 100 for n in range(300)):
        pixel_of_logits = scan_stride((side, side), 1.5, 8) * side  # mm
        assert abs(pixel_of_logits - 8 * 1.5) <= side / 2 * (1 + 1e-12), side


def test_the_pixel_size_of_a_cohort_is_its_median():
    assert cohort_pixel_size([(5, 0.6, 0.6), (1, 0.7, 0.7), (3, 2.2, 2.2)]) == 0.7
    assert cohort_pixel_size([(5, 0.6, 0.6), (1, 0.8, 0.8)]) == 0.7
    assert cohort_pixel_size([(1, 0.50004, 2.0)]) == 1.0  # the side of a square of that size, to three digits
    assert cohort_pixel_size([(1, 1e-5, 1e-5)]) == 0.01  # and never nothing


SPACE = PixelSpace(0.8, 8, (0.6, 0.9), (1.0, 5.0), 0.15)


@pytest.mark.parametrize(
    ("spacing", "channels", "warnings"),
    [
        ((9.0, 0.6, 0.9), 1, []),  # one slice has no distance
        ((9.0, 0.52, 1.03), 1, []),  # as far as the augmentation went
        (
            (1.0, 0.5, 0.5),
            3,
            [
                "pixels of 0.5 mm are unlike those of the training, 0.6 to 0.9 mm, brought to 0.8 mm; "
                "look at the labels before they are used"
            ],
        ),
        (
            (6.0, 0.8, 0.8),
            3,
            ["slices 6 mm apart are unlike those of the training, 1 to 5 mm; look at the labels before they are used"],
        ),
    ],
)
def test_what_was_never_trained_is_warned_of(spacing, channels, warnings):
    assert SPACE.warnings(spacing, channels) == warnings


def test_each_side_of_a_pixel_is_looked_at():
    assert len(SPACE.warnings((1.0, 0.3, 2.0), 1)) == 2
    assert len(SPACE.warnings((9.0, 0.3, 2.0), 3)) == 3


def test_training_scans_are_like_themselves():
    for spacing in ((1.0, 0.5, 2.0), (3.0, 0.7, 0.7)):
        assert PixelSpace.of(None, 8, [spacing], 0.0).warnings(spacing, 3) == []


def test_a_card_keeps_it():
    for space in (SPACE, PixelSpace(None, 16, (0.7, 0.7), (2.0, 2.0), 0.0)):
        assert PixelSpace.from_json(json.loads(json.dumps(asdict(space)))) == space
    assert PixelSpace.from_json(None) is None
    assert str(SPACE) == "brought to 0.8 mm, trained on scans of 0.6 to 0.9 mm"
    assert str(PixelSpace(None, 8, (0.7, 0.7), (2.0, 2.0), 0.1)) == "every scan's own, trained on scans of 0.7 mm"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pixel_size", 0),
        ("pixel_size", 1e308),
        ("pixel_size", float("nan")),
        ("pixel_size", "0.8"),
        ("pixel_size", True),
        ("output_stride", 8.0),
        ("output_stride", 0),
        ("output_stride", 128),
        ("trained_pixels", [0.6]),
        ("trained_pixels", [0.9, 0.6]),
        ("trained_pixels", [0.0, 0.6]),
        ("trained_slices", [1.0, float("inf")]),
        ("trained_slices", None),
        ("tolerance", 1),
        ("tolerance", -0.1),
        ("tolerance", "0"),
    ],
)
def test_a_wrong_number_is_named(name, value):
    entry = json.loads(json.dumps(asdict(SPACE))) | {name: value}
    with pytest.raises(ValueError, match=rf"^pixels\.{name} is .* wanted$"):
        PixelSpace.from_json(entry)


@pytest.mark.parametrize("entry", [[], 3, {}, {"pixel_size": 1.0}, asdict(SPACE) | {"more": 1}])
def test_something_else_is_refused(entry):
    with pytest.raises(ValueError, match="pixels is neither null nor an object of pixel_size, output_stride"):
        PixelSpace.from_json(entry)
