"""The drawing of a report's curves and pictures, without a run."""

import base64
import io

import numpy as np
from PIL import Image

from smile_fast.report.collect import curves_of
from smile_fast.report.figures import training_chart
from smile_fast.report.palette import PSEUDO, organ_colours, rgb
from smile_fast.report.pictures import PICTURE_WIDTH, SMALL_WIDTH, Layer, draw, frame_of, informative_slice
from tests.runs import ORGANS
from tests.tolerances import GREY_LEVELS

WINDOW = (-160.0, 240.0)
COLOURS = organ_colours(ORGANS)


def picture(uri):
    """RGB array of a PNG data URI."""
    head, content = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


def test_curves_follow_the_records():
    lines = [
        {"iteration": 10, "round": 0, "loss": 2.0, "loss_per_organ": {"liver": 1.0}, "seconds": 3.0},
        {"iteration": 10, "round": 0, "validation": {"liver": 0.5}},
        {"iteration": 20, "round": 1, "loss": 1.0, "loss_per_organ": {}, "seconds": 2.0},
        {"iteration": 30, "round": 1, "loss": 0.5, "loss_per_organ": {"pancreas": 0.1}, "seconds": 4.0},
    ]
    curves = curves_of(lines, ORGANS)
    assert (curves.loss.iterations, curves.loss.values) == ([10, 20, 30], [2.0, 1.0, 0.5])
    assert curves.organ_loss["pancreas"].iterations == [30]
    assert curves.validation["liver"].values == [0.5]
    assert (curves.round_starts, curves.iterations, curves.seconds) == ({1: 20}, 30, 7.0)
    assert training_chart(curves_of([], ORGANS), ORGANS, COLOURS) is None


def test_picture_is_radiological_and_windowed():
    hu = np.full((40, 60), 40, np.int16)  # half of the window
    hu[:, :10] = 2000  # the patient's right
    hu[:5] = -150  # anterior
    frame = frame_of(hu, (1.0, 1.0), panels=3)
    shown = picture(draw(hu, WINDOW, frame))
    assert shown.shape == (round(PICTURE_WIDTH * 40 / 60), PICTURE_WIDTH, 3)
    assert shown[-1, 0].tolist() == [255, 255, 255]
    assert shown[0, -1].max() < 15
    assert abs(int(shown[-1, -1, 0]) - 255 * 0.5) < 2


def test_layers_fill_and_outline_in_their_colours():
    hu = np.full((40, 40), 40, np.int16)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 20:30] = True
    frame = frame_of(hu, (1.0, 1.0), panels=3)
    shown = picture(draw(hu, WINDOW, frame, [Layer(mask, fill="#0072B2"), Layer(mask, outline=PSEUDO)]))
    scale = PICTURE_WIDTH / 40
    inside = shown[int(15 * scale), int(25 * scale)]
    np.testing.assert_allclose(inside, 0.55 * 127.5 + 0.45 * np.array(rgb("#0072B2")), **GREY_LEVELS)
    edge = shown[int(15 * scale), int(20 * scale) + 1]
    np.testing.assert_allclose(edge, rgb(PSEUDO), **GREY_LEVELS)
    outside = shown[int(15 * scale), int(10 * scale)]
    assert outside.tolist() == [outside[0]] * 3


def test_frame_follows_the_body_and_the_spacing():
    hu = np.full((100, 100), -1000, np.int16)
    hu[20:60, 30:80] = 0
    hu[95:98, 10:90] = 0  # the table
    frame = frame_of(hu, (2.0, 1.0), panels=4)
    assert (frame.rows, frame.columns) == (slice(19, 61), slice(29, 81))
    assert (frame.width, frame.height) == (SMALL_WIDTH, round(SMALL_WIDTH * 42 * 2 / 52))
    air = frame_of(np.full((10, 20), -1000, np.int16), (1.0, 1.0), panels=1)
    assert (air.rows, air.columns) == (slice(0, 10), slice(0, 20))


def test_the_shown_slice_is_where_most_organs_are_large():
    counts = np.array([[900, 0], [800, 0], [700, 20], [100, 18], [0, 0]])
    assert informative_slice(counts) == 2
    assert informative_slice(np.zeros((9, 2), int)) == 4
