"""A tilted gantry: voxels whose axes are not at right angles, against brute force and against a straight grid."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import surface_distance
from scipy.spatial.distance import cdist

from smile_fast.data.store import Store, write_index
from smile_fast.evaluation import NSD_TOLERANCE_MM, evaluate_run, score_case
from smile_fast.evaluation.surfaces import sheared_distances, surface_scores, upright_distances
from smile_fast.supervision import State
from tests.runs import ORGANS, make_run, make_store, truth
from tests.tolerances import BALL_ON_LATTICES, FLOAT64_DISTANCE, SURFACE_AREA

SIZES = (5.0, 1.5, 1.0)  # z, y, x mm, z at right angles to the slices
TILT = np.radians(25)
STEPS = np.diag(SIZES)
STEPS[1, 0] = SIZES[0] * np.tan(TILT)  # one slice further, the next one lies so much further back
LENGTHS = np.linalg.norm(STEPS, axis=0)
DIRECTIONS = STEPS / LENGTHS


def ball(centre, radius, steps, shape=(14, 60, 60)):
    """[D, H, W] bool: the voxels of a lattice in a ball; mm."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ steps.T
    middle = (np.array(shape) / 2) @ steps.T
    return np.linalg.norm(places - middle - centre, axis=-1) < radius


def score(label, prediction, steps, **options):
    lengths = np.linalg.norm(steps, axis=0)
    (found,) = score_case(
        "case",
        label.astype(np.uint8),
        prediction.astype(np.uint8),
        {"liver": State.ANNOTATED},
        ["liver"],
        tuple(lengths),
        directions=steps / lengths,
        **options,
    )
    return found


def corners_between(mask):
    """[n, 3] where eight voxels meet that are not all alike, one by one."""
    padded = np.pad(mask, 1)
    return np.array(
        [
            at
            for at in np.ndindex(*(n - 1 for n in padded.shape))
            if len(np.unique(padded[tuple(slice(i, i + 2) for i in at)])) == 2
        ]
    )


def test_distances_equal_those_of_all_pairs_by_the_metric_of_the_lattice():
    rng = np.random.default_rng(0)
    one, two = ball((0, 0, 0), 9, STEPS, (7, 16, 24)), ball((3, 4, -2), 8, STEPS, (7, 16, 24))
    two &= rng.random(two.shape) > 0.1
    found = sheared_distances(one, two, STEPS)
    metric = STEPS.T @ STEPS
    pairs = cdist(corners_between(one), corners_between(two), lambda a, b: np.sqrt((a - b) @ metric @ (a - b)))
    np.testing.assert_allclose(found["distances_gt_to_pred"], np.sort(pairs.min(axis=1)), **FLOAT64_DISTANCE)
    np.testing.assert_allclose(found["distances_pred_to_gt"], np.sort(pairs.min(axis=0)), **FLOAT64_DISTANCE)


def test_at_right_angles_it_is_what_the_library_gives():
    one, two = ball((0, 0, 0), 9, np.diag(SIZES), (7, 16, 24)), ball((3, 4, -2), 8, np.diag(SIZES), (7, 16, 24))
    with pytest.warns(DeprecationWarning, match="scipy"):
        expected = surface_distance.compute_surface_distances(one, two, SIZES)
    found = sheared_distances(one, two, np.diag(SIZES))
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(np.sort(found[name]), np.sort(values), **FLOAT64_DISTANCE)


@pytest.mark.parametrize(
    "sizes", [(2.5, 0.703125, 0.703125), (3.0, 0.7, 0.7), (1.0, 1.0, 1.0), (5.0, 0.62, 0.71)], ids=str
)
def test_at_right_angles_every_bit_is_the_library_s(sizes):
    """Ragged masks, whose elements are often equally near to several of the other's."""
    rng = np.random.default_rng(0)
    for radius in (4, 6, 9):
        one, two = (ball(at, radius, np.diag(sizes), (9, 30, 34)) for at in ((0, 0, 0), (1, 2.1, -1.4)))
        one[:, :2], two[0] = False, False
        two ^= rng.random(two.shape) < 0.01
        with pytest.warns(DeprecationWarning, match="scipy"):
            expected = surface_distance.compute_surface_distances(one, two, sizes)
        found = upright_distances(one, two, sizes)
        assert set(found) == set(expected)
        for name, values in expected.items():
            assert len(values) > 20
            assert found[name].tobytes() == values.tobytes()


def test_areas_are_those_of_the_sheared_triangles():
    """A slab across all slices: its large faces lie along the slices and along the tilt, areas by hand."""
    mask = np.zeros((12, 30, 30), bool)
    mask[1:-1, 1:-1, 1:-1] = True
    areas = sheared_distances(mask, mask, STEPS)["surfel_areas_gt"].sum()
    z, y, x = (step * (n - 2) for step, n in zip(STEPS.T, mask.shape, strict=True))
    faces = 2 * sum(np.linalg.norm(np.cross(one, two)) for one, two in ((z, y), (z, x), (y, x)))
    assert areas == pytest.approx(faces, **SURFACE_AREA)  # marching cubes cut edges and corners


@pytest.mark.parametrize("turn", [np.eye(3), np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]])
def test_a_ball_on_a_tilted_lattice_scores_as_on_a_fine_straight_one(turn):
    """Two balls of 30 and 33 mm, 5 mm apart: their scores belong to them, not to the lattice."""
    fine = np.eye(3)
    straight = [ball(np.array(at), radius, fine, (80, 80, 80)) for at, radius in (((0, 0, 0), 30), ((0, 4, 3), 33))]
    tilted = [
        ball(turn @ np.array(at), radius, turn @ STEPS, (18, 90, 80))
        for at, radius in (((0, 0, 0), 30), ((0, 4, 3), 33))
    ]
    expected, found = score(*straight, fine), score(*tilted, turn @ STEPS)
    assert found.truth_ml == pytest.approx(expected.truth_ml, **BALL_ON_LATTICES["ml"])
    assert found.predicted_ml == pytest.approx(expected.predicted_ml, **BALL_ON_LATTICES["ml"])
    assert found.truth_ml == pytest.approx(4 / 3 * np.pi * 30**3 / 1000, **BALL_ON_LATTICES["ml"])
    assert found.dice == pytest.approx(expected.dice, **BALL_ON_LATTICES["dice"])
    assert found.nsd == pytest.approx(expected.nsd, **BALL_ON_LATTICES["nsd"])
    assert found.hd95_mm == pytest.approx(expected.hd95_mm, **BALL_ON_LATTICES["hd95_mm"])
    by_lengths = np.prod(LENGTHS) / abs(np.linalg.det(STEPS))
    assert by_lengths == pytest.approx(1 / np.cos(TILT))  # what column lengths would add: 10%


def test_evaluate_scores_a_run_by_the_affine_of_its_cases(tmp_path):
    straight = make_store(tmp_path / "store", {"train_0": truth(), "test_0": truth()})
    affine = np.array(straight.cases["test_0"].affine)  # steps of 1, 2 and 4 mm
    affine[1, 2] = 4 * np.tan(TILT)
    spacing = (float(np.linalg.norm(affine[:3, 2])), 2.0, 1.0)
    rows = tuple(map(tuple, affine.tolist()))
    write_index(
        tmp_path / "store", ORGANS, [replace(info, affine=rows, spacing=spacing) for info in straight.cases.values()]
    )
    run = make_run(tmp_path / "run", Store.open(tmp_path / "store"))
    shifted = np.roll(truth(), 1, axis=0)  # by one slice: 4 / cos(25) mm along the tilt, 4 mm at right angles
    nib.save(nib.Nifti1Image(shifted.transpose(2, 1, 0), affine), tmp_path / "test_0.nii.gz")
    liver = next(pair for pair in evaluate_run(run, predictions=tmp_path).pairs if pair.organ == "liver")
    assert liver.truth_ml == pytest.approx(int((truth() == 1).sum()) * 8 / 1000)
    steps = np.array(affine)[:3, 2::-1]
    nsd, hd95 = surface_scores(truth() == 1, shifted == 1, steps, NSD_TOLERANCE_MM)
    assert (liver.nsd, liver.hd95_mm) == (pytest.approx(nsd), pytest.approx(hd95))
    assert 4 <= hd95 < 4.001 / np.cos(TILT)
