import math

import pytest
import torch

from smile_fast.models.segmenter import AIR
from smile_fast.training.augment import Augmentation
from smile_runtime.label_map import PSEUDO_BIT, VOID
from smile_runtime.sharding import Shard
from tests.tolerances import AREA_OF_DISC, CENTRE_OF_DISC, RESAMPLED_HU, SAME_AFTER_RESAMPLING, share_of_draws

NOTHING = {"flip": 0.0, "rotate": 0.0, "scale": 0.0, "translate": 0.0, "intensity": 0.0, "noise": 0.0}
WINDOW = (-160.0, 240.0)
SIZE = 64


def augmentation(**changes):
    """As a step takes it: what is drawn from a seed is applied to a batch."""
    change = Augmentation(**{**NOTHING, **changes}, window=WINDOW)

    def apply(hu, labels, seed=0):
        generator = torch.Generator().manual_seed(seed)
        images, _, height, width = hu.shape
        return change(hu, labels, change.draw(images, (height, width), generator), generator)

    return apply


def batch(images=4, channels=3, width=SIZE):
    """A bright disc left above the middle, labelled 5, in soft tissue; values differ from slice to slice."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(width), indexing="ij")
    disc = ((rows - 24) ** 2 + (columns - 20) ** 2) < 81
    hu = torch.where(disc, 200, 40).to(torch.int16).expand(images, channels, SIZE, width).clone()
    hu += torch.arange(channels, dtype=torch.int16).view(1, channels, 1, 1) * 10
    labels = torch.where(disc, 5, 0).to(torch.uint8).expand(images, SIZE, width).clone()
    return hu, labels


def centre(mask):
    """Mean (row, column) of a mask, relative to the patch's middle."""
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return torch.stack([rows.float().mean(), columns.float().mean()]) - (torch.tensor(mask.shape) - 1) / 2


def test_nothing_changes_when_nothing_is_asked_for():
    hu = torch.randint(-1024, 3000, (4, 3, SIZE, SIZE), dtype=torch.int16)
    labels = torch.randint(0, 256, (4, SIZE, SIZE), dtype=torch.uint8)  # void and pseudo-labels, too
    changed, same = augmentation()(hu, labels, seed=1)
    torch.testing.assert_close(changed, hu.float(), **RESAMPLED_HU)
    assert torch.equal(same, labels)
    assert (changed.dtype, same.dtype) == (torch.float32, torch.uint8)


def test_the_same_seed_changes_a_batch_in_the_same_way():
    everything = augmentation(flip=0.5, rotate=20.0, scale=0.2, translate=0.1, intensity=0.1, noise=10.0)
    hu, labels = batch()
    one, same, other = (everything(hu, labels, seed) for seed in (3, 3, 4))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    for image in range(1, 4):  # every image has a draw of its own
        assert not torch.equal(one[1][0], one[1][image])


def test_nothing_is_drawn_from_torchs_own_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augmentation(rotate=10.0, noise=5.0)(*batch(), seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("change", [{"rotate": 30.0}, {"scale": 0.3}, {"translate": 0.2}, {"flip": 1.0}], ids=str)
def test_labels_and_all_slices_move_with_the_image(change):
    hu, labels = batch()
    moved, moved_labels = augmentation(**change)(hu, labels, seed=7)
    assert not torch.equal(moved_labels, labels)
    organ, tissue = moved_labels == 5, moved_labels == 0
    for channel in range(3):
        image = moved[:, channel] - 10 * channel
        # Nearest and bilinear agree but for a rim of a pixel around the disc and inside of the patch's edge.
        assert ((image > 120) == organ)[organ | (tissue & (image > 30))].float().mean() > SAME_AFTER_RESAMPLING
    assert set(moved_labels.unique().tolist()) <= {0, 5, VOID}


def test_a_flip_is_left_to_right():
    hu, labels = batch()
    moved, moved_labels = augmentation(flip=1.0)(hu, labels, seed=0)
    assert torch.equal(moved_labels, labels.flip(-1))
    torch.testing.assert_close(moved, hu.flip(-1).float(), **RESAMPLED_HU)
    half, _ = augmentation(flip=0.5)(*batch(images=400, channels=1), seed=0)
    flipped = (half[:, 0, 24, 20] < 100).float().mean()
    assert flipped.item() == pytest.approx(0.5, abs=share_of_draws(400, 0.5))


@pytest.mark.parametrize("width", [SIZE, 48, 56])
@pytest.mark.parametrize("seed", range(3))
def test_a_rotation_keeps_distances_and_stays_in_its_range(seed, width):
    hu, labels = batch(images=16, width=width)
    _, moved = augmentation(rotate=30.0)(hu, labels, seed)
    before = centre(labels[0] == 5)
    angles = []
    for image in moved:
        after = centre(image == 5)
        assert after.norm().item() == pytest.approx(before.norm().item(), **CENTRE_OF_DISC)
        turned = math.atan2(*after.tolist()) - math.atan2(*before.tolist())
        angles.append(math.degrees((turned + math.pi) % (2 * math.pi) - math.pi))
        assert (image == 5).sum().item() == pytest.approx((labels[0] == 5).sum().item(), **AREA_OF_DISC)
    assert max(map(abs, angles)) < 33
    assert max(angles) > 10
    assert min(angles) < -10


def test_scaling_changes_the_size_by_at_most_its_share():
    hu, labels = batch(images=32)
    _, moved = augmentation(scale=0.25)(hu, labels, seed=2)
    ratios = (moved == 5).flatten(1).sum(dim=1) / (labels[0] == 5).sum()
    assert ratios.min() > 0.75**2 - 0.08
    assert ratios.max() < 1.25**2 + 0.08
    assert ratios.min() < 0.8
    assert ratios.max() > 1.2


def test_translation_moves_by_at_most_its_share():
    hu, labels = batch(images=32)
    _, moved = augmentation(translate=0.2)(hu, labels, seed=2)
    shifts = torch.stack([centre(image == 5) - centre(labels[0] == 5) for image in moved])
    assert shifts.abs().max() <= 0.2 * SIZE + 0.5
    assert (shifts.abs().amax(dim=0) > 0.1 * SIZE).all()
    assert (shifts.amin(dim=0) < 0).all()
    assert (shifts.amax(dim=0) > 0).all()


def test_what_comes_from_outside_is_air_and_void():
    """A shift and a turn bring corners into the patch that the slice has not: no loss may see them."""
    hu = torch.full((8, 1, SIZE, SIZE), 40, dtype=torch.int16)
    labels = torch.full((8, SIZE, SIZE), PSEUDO_BIT | 3, dtype=torch.uint8)
    moved, moved_labels = augmentation(rotate=45.0, translate=0.3)(hu, labels, seed=1)
    assert set(moved_labels.unique().tolist()) == {PSEUDO_BIT | 3, VOID}
    void = moved_labels == VOID
    assert 0.05 < void.float().mean() < 0.6
    assert moved[:, 0][void].max() < 40  # at the edge air and tissue are mixed
    assert (moved[:, 0][void] == AIR).float().mean() > 0.8
    assert (moved[:, 0][~void] == 40).float().mean() > 0.8


def test_intensity_changes_contrast_and_brightness_within_bounds():
    hu = torch.tensor([-160, 40, 240], dtype=torch.int16).repeat_interleave(22)[:SIZE].expand(64, 2, SIZE, SIZE)
    labels = torch.zeros(64, SIZE, SIZE, dtype=torch.uint8)
    changed, same = augmentation(intensity=0.1)(hu.clone(), labels, seed=0)
    assert torch.equal(same, labels)
    assert torch.equal(changed[:, 0], changed[:, 1])  # the slices of an image change together
    low, middle, high = (changed[:, 0, 5, column] for column in (2, 32, 62))
    brightness, contrast = middle - 40, (high - low) / 400
    assert brightness.abs().max() <= 40.01  # a tenth of the window
    assert (contrast - 1).abs().max() <= 0.1001
    for change in (brightness / 40, (contrast - 1) / 0.1):
        assert change.min() < -0.5
        assert change.max() > 0.5
    assert torch.corrcoef(torch.stack([brightness, contrast]))[0, 1].abs() < 0.4  # two draws, not one


def test_noise_has_at_most_its_standard_deviation():
    hu, labels = torch.full((64, 1, SIZE, SIZE), 40, dtype=torch.int16), torch.zeros(64, SIZE, SIZE, dtype=torch.uint8)
    noisy, same = augmentation(noise=20.0)(hu, labels, seed=0)
    assert torch.equal(same, labels)
    deviations = noisy.flatten(1).std(dim=1)
    assert deviations.max() < 21
    assert deviations.min() < 5
    assert deviations.max() > 15
    assert (noisy - 40).mean().abs() < 0.5


@pytest.mark.parametrize("count", [2, 3])
def test_the_images_of_a_share_change_as_in_their_batch(count):
    """Noise included: it is drawn for all of them."""
    change = Augmentation(flip=0.5, rotate=20.0, scale=0.2, translate=0.1, intensity=0.1, noise=10.0, window=WINDOW)
    hu, labels = batch(images=5)
    generator = torch.Generator()
    drawn = change.draw(5, (SIZE, SIZE), generator.manual_seed(1))
    whole = change(hu, labels, drawn, generator.manual_seed(2))
    for number in range(1, count + 1):
        own = slice(number - 1, None, count)
        share = change(hu[own], labels[own], drawn[own], generator.manual_seed(2), 5, Shard(number, count))
        for found, expected in zip(share, whole, strict=True):
            assert torch.equal(found, expected[own])
