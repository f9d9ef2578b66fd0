import pickle

import numpy as np
import pytest

from smile_fast.models.segmenter import AIR
from smile_fast.supervision import State
from smile_fast.training.batches import BatchSource
from smile_fast.training.rounds import Round, open_round
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import PSEUDO_BIT, VOID
from tests.runs import SHAPE, ct, make_store, truth, writing_round
from tests.tolerances import share_of_draws

DEPTH, HEIGHT, WIDTH = SHAPE
LIVER, PANCREAS = 1, 2
CASES = ["a", "b"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """a: liver and pancreas. b: a pancreas in one slice only."""
    rare = np.zeros(SHAPE, np.uint8)
    rare[4, 30:36, 10:20] = PANCREAS
    return make_store(tmp_path_factory.mktemp("batches") / "store", {"a": truth(), "b": rare})


@pytest.fixture
def view(store):
    return TrainingView(store, store.declarations(), CASES)


def source(view, **changes):
    settings = {"channels": 3, "crop_size": 32, "batch_size": 4, "organ_share": 0.7, "seed": 0, "round_number": 0}
    return BatchSource(view, **{**settings, **changes})


def assert_same(one, other):
    for name in ("hu", "labels", "cases"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_shapes_and_types(view):
    batch = source(view, channels=5, crop_size=64).batch(0)
    assert (batch.hu.shape, batch.hu.dtype) == ((4, 5, 64, 64), np.int16)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, 64, 64), np.uint8)
    assert (batch.cases.shape, batch.cases.dtype) == ((4,), np.int64)


def test_a_batch_is_a_function_of_seed_round_and_step(view):
    first = source(view)
    forward = [first.batch(step) for step in range(6)]
    again = source(view)
    for step in (5, 0, 3):  # in another order, by another source
        assert_same(again.batch(step), forward[step])
    for other in (source(view, seed=1).batch(0), source(view, round_number=1).batch(0), forward[1]):
        assert not np.array_equal(other.hu, forward[0].hu)


def test_what_travels_to_a_process_counts_no_voxels(view):
    """They are the most of it: 8 bytes a slice and organ. The batches are the same, and the view here is left whole."""
    expected = source(view)
    sent = pickle.dumps(expected)
    for case in CASES:
        assert view.counts[case].tobytes() not in sent
    received = pickle.loads(sent)
    assert_same(received.batch(3), expected.batch(3))
    assert received.steps_per_epoch == expected.steps_per_epoch


def test_outside_of_a_slice_is_air_and_void(view):
    """A slice of 40 x 48 in a patch of 64 x 64: in the middle, with a frame that no loss sees."""
    batch = source(view, crop_size=64).batch(0)
    inner = (slice(12, 12 + HEIGHT), slice(8, 8 + WIDTH))
    for image in range(4):
        frame = np.ones((64, 64), bool)
        frame[inner] = False
        assert (batch.labels[image][frame] == VOID).all()
        assert (batch.hu[image][:, frame] == AIR).all()
        slices = [ct(int(batch.cases[image]))[z] for z in range(DEPTH)]
        matches = [z for z, hu in enumerate(slices) if np.array_equal(batch.hu[image, 1][inner], hu)]
        assert len(matches) == 1
        labels = view.labels(CASES[batch.cases[image]], matches)[0]
        np.testing.assert_array_equal(batch.labels[image][inner], labels)


def patches(view, steps=30, **changes):
    """(case, slice, row, column, hu, labels) of every image of some batches, found by comparison."""
    found = []
    for step in range(steps):
        batch = source(view, **changes).batch(step)
        for hu, labels, case in zip(batch.hu, batch.labels, batch.cases, strict=True):
            found.append((*locate(hu[hu.shape[0] // 2], ct(int(case))), CASES[case], hu, labels))
    return found


def locate(patch, volume):
    """Where a patch was cut out."""
    size = len(patch)
    for z in range(DEPTH):
        for row in range(HEIGHT - size + 1):
            for column in range(WIDTH - size + 1):
                if volume[z, row, column] == patch[0, 0] and np.array_equal(
                    volume[z, row : row + size, column : column + size], patch
                ):
                    return z, row, column
    raise AssertionError("the patch is not from this volume")


def test_image_neighbours_and_labels_come_from_the_same_place(view):
    seen = set()
    for z, row, column, case, hu, labels in patches(view, channels=5, steps=12):
        window = (slice(row, row + 32), slice(column, column + 32))
        volume = ct(CASES.index(case))
        for channel, offset in enumerate(range(-2, 3)):  # the volume's ends are repeated
            neighbour = min(max(z + offset, 0), DEPTH - 1)
            np.testing.assert_array_equal(hu[channel], volume[neighbour][window])
        np.testing.assert_array_equal(labels, view.labels(case, [z])[0][window])
        seen.add(z)
    assert {0, DEPTH - 1} <= seen  # the ends were looked at


def test_slices_are_drawn_organ_by_organ(view):
    """With a share of 1 every image shows an organ; three slices of pancreas come as often as four of liver."""
    drawn = [labels for *_, labels in patches(view, organ_share=1.0)]
    assert all(((labels == LIVER) | (labels == PANCREAS)).any() for labels in drawn)
    slices = [(case, z) for z, _, _, case, _, _ in patches(view, organ_share=1.0)]
    # Slices with both organs count for both; the liver alone is shown by slices 1 and 4 of a, half of its draws.
    liver_only = sum(slice_ in (("a", 1), ("a", 4)) for slice_ in slices) / len(slices)
    assert liver_only == pytest.approx(0.25, abs=share_of_draws(len(slices), 0.25))
    assert slices.count(("b", 4)) / len(slices) == pytest.approx(1 / 6, abs=share_of_draws(len(slices), 1 / 6))
    assert ("a", 0) not in slices


def test_other_slices_are_drawn_evenly(view):
    slices = [(case, z) for z, _, _, case, _, _ in patches(view, organ_share=0.0, steps=60)]
    shares = [slices.count((case, z)) / len(slices) for case in CASES for z in range(DEPTH)]
    assert min(shares) > 0.03
    assert max(shares) < 0.15  # 1/12 each


def test_a_patch_contains_the_voxel_that_it_was_cut_around(tmp_path):
    """Organs of one voxel in the corners and in the middle: each patch of 32 x 32 out of 40 x 48 holds one."""
    places = [(0, 0), (HEIGHT - 1, WIDTH - 1), (0, WIDTH - 1), (20, 24)]
    labels = {f"case {number}": np.zeros(SHAPE, np.uint8) for number in range(len(places))}
    for label, place in zip(labels.values(), places, strict=True):
        label[2][place] = PANCREAS
    store = make_store(tmp_path / "store", labels)
    view = TrainingView(store, store.declarations(), list(labels))
    for step in range(20):
        batch = source(view, organ_share=1.0, channels=1).batch(step)
        assert ((batch.labels == PANCREAS).sum(axis=(1, 2)) == 1).all()
    assert len({int(case) for step in range(20) for case in source(view, organ_share=1.0).batch(step).cases}) == 4


def test_an_organ_lies_anywhere_in_the_middle_of_its_patches(view):
    """Not always in the same place: the network must not learn that organs are in the centre."""
    columns = [
        np.nonzero(labels == PANCREAS)[1].mean()
        for z, _, _, case, _, labels in patches(view, organ_share=1.0)
        if (case, z) == ("b", 4)
    ]
    assert len(set(columns)) > 3
    assert max(columns) - min(columns) > 3


def test_pseudo_labels_are_drawn_like_organs(store, tmp_path):
    """A round's overlay makes its slices worth drawing, and patches are cut around its voxels."""
    declarations = store.declarations()
    for case in CASES:
        declarations[case]["pancreas"] = declarations[case]["liver"] = State.HIDDEN
    overlay = np.zeros(SHAPE, np.uint8)
    overlay[0, 39, 47] = PSEUDO_BIT | LIVER
    with writing_round(tmp_path, Round(1, 0.5, "volume"), store.organs) as written:
        written.add("b", overlay, {"liver": {"candidates": 2, "selected": 1, "kept": 1}})
    view = TrainingView(store, declarations, CASES, open_round(tmp_path, 1))
    batch = source(view, organ_share=1.0).batch(0)
    assert batch.cases.tolist() == [1] * 4
    assert ((batch.labels == PSEUDO_BIT | LIVER).sum(axis=(1, 2)) == 1).all()


def test_a_cohort_without_any_visible_organ_is_drawn_evenly(store):
    declarations = store.declarations()
    for case in CASES:
        declarations[case]["pancreas"] = declarations[case]["liver"] = State.HIDDEN
    batch = source(TrainingView(store, declarations, CASES), organ_share=1.0).batch(0)
    assert set(np.unique(batch.labels)) == {0}


def test_an_epoch_draws_as_many_slices_as_there_are(view):
    assert [source(view, batch_size=size).steps_per_epoch for size in (1, 4, 5, 12, 100)] == [12, 3, 3, 1, 1]
