import numpy as np
import pytest

from smile_fast.data.phantom.fields import (
    FAR,
    Grid,
    Space,
    cover,
    curve,
    ellipsoid,
    smooth_noise,
    tube,
    tube_box,
    union,
    warp,
)
from tests.tolerances import FIELD_MM, VOXELS_ON_A_SURFACE

GRID = Grid((20, 40, 50), (3.0, 2.0, 2.0))


def straight(grid: Grid = GRID) -> Space:
    z, y, x = np.meshgrid(*grid.axes, indexing="ij")
    return Space(x, y, z, grid.axes, 0.0)


def test_a_ball_is_where_it_should_be():
    space = straight()
    distance = ellipsoid(space, (6, -4, 3), (15, 15, 15))
    exact = np.sqrt((space.x - 6) ** 2 + (space.y + 4) ** 2 + (space.z - 3) ** 2) - 15
    assert np.abs(distance - exact).max() < FIELD_MM


def test_a_turned_ellipsoid_keeps_its_axes():
    space = straight()
    flat = ellipsoid(space, (0, 0, 0), (30, 10, 10)) < 0
    turned = ellipsoid(space, (0, 0, 0), (10, 30, 10), tilt=np.pi / 2) < 0
    assert (flat != turned).mean() < VOXELS_ON_A_SURFACE
    assert np.ptp(space.x[flat]) > 2 * np.ptp(space.y[flat])
    leaning = space.x[ellipsoid(space, (0, 0, 0), (30, 10, 5), lean=0.5) < 0]
    up = space.z[ellipsoid(space, (0, 0, 0), (30, 10, 5), lean=0.5) < 0]
    assert np.corrcoef(leaning, up)[0, 1] > 0.5


def test_a_tube_is_the_union_of_its_spheres_and_far_beyond():
    space = straight()
    path = curve([(-20, 0, -10, 6), (0, 10, 0, 8), (25, 0, 5, 5)], 15)
    distance = tube(space, path)
    exact = np.min(
        [np.sqrt((space.x - x) ** 2 + (space.y - y) ** 2 + (space.z - z) ** 2) - r for x, y, z, r in path], axis=0
    )
    near = exact < 0.9 * FAR
    assert near.any()
    assert (~near).any()
    assert np.abs(distance - exact)[near].max() < FIELD_MM
    assert distance[~near].min() > 0.8 * FAR


def test_the_block_of_a_tube_holds_it_under_deformation():
    space = warp(np.random.default_rng(0), GRID, 4.0, 40.0)
    path = curve([(-20, 0, -10, 6), (25, 0, 5, 5)], 12)
    box = tube_box(space, path)
    inside = tube(space, path) < 0
    assert inside.any()
    assert inside[box].sum() == inside.sum()
    assert inside[box].size < inside.size


def test_a_block_beside_the_grid_is_one_voxel_wide():
    box = straight().box((500, -5, -5), (600, 5, 5))
    assert straight().x[box].shape[2] == 1


def test_noise_is_smooth_and_has_unit_variance():
    rng = np.random.default_rng(0)
    fields = np.array([smooth_noise(rng, GRID, 20.0) for _ in range(100)])
    assert 0.9 < fields.std() < 1.1
    assert abs(fields.mean()) < 0.1
    # 2 mm apart at control points every 20 mm: neighbours agree.
    assert np.abs(np.diff(fields, axis=3)).mean() < 0.2 * np.abs(fields).mean()


def test_noise_does_not_depend_on_what_is_drawn_later():
    first = smooth_noise(np.random.default_rng(3), GRID, 30.0)
    again = smooth_noise(np.random.default_rng(3), GRID, 30.0)
    assert (first == again).all()


def test_cover_is_linear_across_the_surface():
    distance = np.array([-9, -1, 0, 1, 9], np.float32)
    assert cover(distance, 4.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("blend", [1.0, 20.0])
def test_union_never_loses_volume(blend):
    space = straight()
    a, b = ellipsoid(space, (-12, 0, 0), (14, 14, 14)), ellipsoid(space, (12, 0, 0), (14, 14, 14))
    joined = union(a, b, blend)
    assert (joined <= np.minimum(a, b)).all()
    assert (joined < 0).sum() >= ((a < 0) | (b < 0)).sum()
