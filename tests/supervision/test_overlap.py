import numpy as np
import pytest

from smile_fast.supervision.overlap import dice, joint_histogram, organ_dice


def test_the_joint_histogram_counts_every_voxel_once():
    rng = np.random.default_rng(0)
    first, second = (rng.choice([0, 1, 2, 254, 255], (3, 5, 4)).astype(np.uint8) for _ in range(2))
    joint = joint_histogram(first, second)
    assert joint.shape == (256, 256)
    assert joint.sum() == first.size
    for one in (0, 1, 2, 254, 255):
        for other in (0, 1, 2, 254, 255):
            assert joint[one, other] == ((first == one) & (second == other)).sum()
    assert (joint_histogram(np.asfortranarray(first), second) == joint).all()


def test_dice_of_an_organ():
    first, second = np.zeros((2, 1, 2, 6), np.uint8)
    first[0, 0, :4], second[0, 0, 2:5], second[0, 1, 0] = 1, 1, 3
    joint = joint_histogram(first, second)
    assert organ_dice(joint, 1) == 2 * 2 / (4 + 3)
    assert organ_dice(joint, 3) == 0  # in one of the two only
    assert organ_dice(joint, 2) is None  # in neither: nothing to measure, neither right nor wrong
    assert organ_dice(joint_histogram(first, first), 1) == 1


def test_dice_of_many_sets():
    found = dice(np.array([[1, 0], [0, 3]]), np.array([[2, 0], [1, 3]]), np.array([2, 0]))
    np.testing.assert_array_equal(found, [[0.5, np.nan], [0, 2]])
    assert dice(2**53, 2**53, 2**53) == 1
    with pytest.raises(ValueError, match="broadcast"):
        dice(np.zeros(2), np.zeros(2), np.zeros(3))
