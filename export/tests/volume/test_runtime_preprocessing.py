import nibabel as nib
import numpy as np
import pytest
from nifti_files import orientations, rotation
from tolerances import AFFINE_RELATIVE, SAME_PLACE_MM

from smile_runtime.volume.preprocessing import (
    canonical_affine,
    context_index,
    from_slices,
    slice_context,
    slice_geometry,
    to_slices,
    turn_into_slices,
)

OBLIQUE = rotation(11, -7, 17)
TURNS = {"straight": np.eye(3), "oblique": OBLIQUE}
SHAPE, ZOOMS = (4, 5, 6), (0.7, 0.9, 2.5)


def reoriented(orientation, turn):
    """A volume whose voxels are numbered, and the same one in another axis order."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(ZOOMS)
    affine[:3, 3] = (-100, 20, 7)
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine)
    return image, image.as_reoriented(orientation)


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("orientation", list(orientations()), ids=str)
def test_every_orientation_gives_the_same_slices_and_comes_back_exactly(orientation, turn):
    image, other = reoriented(orientation, turn)
    slices, geometry = to_slices(other.dataobj, other.affine)
    expected = np.asarray(image.dataobj)[::-1, ::-1].T  # RAS -> LPS, [x, y, z] -> [z, y, x]
    assert np.array_equal(slices, expected)
    assert slices.flags.c_contiguous
    assert geometry.spacing == pytest.approx(ZOOMS[::-1], rel=AFFINE_RELATIVE)
    assert geometry.shape == other.shape
    assert geometry.slices_shape == slices.shape
    assert np.array_equal(from_slices(slices, geometry), np.asarray(other.dataobj))

    affine = canonical_affine(other.affine, other.shape)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    corners = np.array([[0, 0, 0], [SHAPE[0] - 1, SHAPE[1] - 1, SHAPE[2] - 1], [1, 2, 3]])
    for w, h, d in corners:  # the same voxel lies at the same place in the body
        i, j, k = np.argwhere(np.asarray(image.dataobj) == slices[d, h, w])[0]
        assert np.allclose(affine @ [w, h, d, 1], image.affine @ [i, j, k, 1], rtol=0, atol=SAME_PLACE_MM)


@pytest.mark.parametrize("depth", [1, 6, 7])
@pytest.mark.parametrize("orientation", list(orientations()), ids=str)
def test_turning_within_the_memory_gives_the_same_slices(orientation, depth):
    image, other = reoriented(orientation, OBLIQUE)
    image = nib.Nifti1Image(np.resize(np.asarray(image.dataobj), (*SHAPE[:2], depth)), image.affine)
    other = image.as_reoriented(orientation)
    expected, geometry = to_slices(other.dataobj, other.affine)
    data = np.asfortranarray(other.dataobj)
    slices, found = turn_into_slices(data.copy("F"), other.affine)
    assert np.array_equal(slices, expected)
    assert slices.flags.c_contiguous
    assert found == geometry
    if geometry.axes == (2, 1, 0):
        assert np.shares_memory(turn_into_slices(data, other.affine)[0], data)


def test_axis_codes_mean_what_they_say():
    """Without nibabel's help: a voxel that is right, anterior and superior has the highest RAS coordinates."""
    data = np.zeros((2, 3, 4), np.int16)
    data[1, 2, 3] = 1
    slices, _ = to_slices(data, np.eye(4))  # x to the right, y to the front, z up
    assert np.argwhere(slices).tolist() == [[3, 0, 0]]  # top slice, front row, right-hand column of the patient


def test_no_copy_where_none_is_needed():
    data = np.zeros((4, 5, 6), np.int16, order="F")
    slices, _ = to_slices(data, np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert np.shares_memory(slices, data)


@pytest.mark.parametrize(
    "affine",
    [np.diag([1.0, 1.0, 0.0, 1.0]), np.full((4, 4), np.nan), np.diag([np.inf, 1.0, 1.0, 1.0]), np.eye(3)],
)
def test_a_broken_affine_is_refused(affine):
    with pytest.raises(ValueError, match="affine"):
        to_slices(np.zeros((2, 2, 2)), affine)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        to_slices(np.zeros((2, 2)), np.eye(4))
    with pytest.raises(ValueError, match="shape"):
        from_slices(np.zeros((2, 3, 4)), slice_geometry(np.eye(4), (2, 3, 4)))


def test_slice_context_repeats_the_ends():
    slices = np.arange(4)[:, None, None] * np.ones((1, 2, 3), np.int16)
    context = slice_context(slices, [0, 2, 3], 3)
    assert context.shape == (3, 3, 2, 3)
    assert context[:, :, 0, 0].tolist() == [[0, 0, 1], [1, 2, 3], [2, 3, 3]]
    assert slice_context(slices, [1], 1)[:, :, 0, 0].tolist() == [[1]]
    assert slice_context(slices[:1], [0], 5)[:, :, 0, 0].tolist() == [[0] * 5]
    assert slice_context(slices, [], 3).shape == (0, 3, 2, 3)


@pytest.mark.parametrize("channels", [0, 2, -1])
def test_slice_context_needs_an_odd_number(channels):
    with pytest.raises(ValueError, match="odd"):
        slice_context(np.zeros((2, 2, 2)), [0], channels)


@pytest.mark.parametrize("index", [[-1], [2]])
def test_slice_context_does_not_wrap_around(index):
    with pytest.raises(IndexError, match="outside"):
        slice_context(np.zeros((2, 2, 2)), index, 1)


def test_context_index_is_the_rule_of_slice_context():
    slices = np.arange(7)[:, None, None] * np.ones((1, 1, 1), np.int16)
    for channels in (1, 3, 5, 9):
        numbers = context_index(range(7), channels, 7)
        assert (numbers.shape, numbers.dtype) == ((7, channels), np.int64)
        assert np.array_equal(slice_context(slices, range(7), channels)[:, :, 0, 0], numbers)
    assert context_index([0, 6], 5, 7).tolist() == [[0, 0, 0, 1, 2], [4, 5, 6, 6, 6]]
    with pytest.raises(ValueError, match="odd"):
        context_index([0], 2, 7)
    with pytest.raises(IndexError, match="outside"):
        context_index([7], 3, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_context_copied_into_a_buffer_is_that_of_a_new_array(channels):
    slices = np.random.default_rng(0).integers(-1000, 1000, (5, 7, 6), np.int16)[:, ::-1, 1:]
    buffer = np.full((4, channels, 7, 5), 99, np.int16)
    found = slice_context(slices, (0, 4, 2), channels, out=buffer[:3])
    assert np.array_equal(found, slice_context(slices, (0, 4, 2), channels))
    assert np.shares_memory(found, buffer)
    assert (buffer[3] == 99).all()
