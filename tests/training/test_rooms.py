"""The rooms of organs against a plain walk over cells, and in both ways to select pseudo-labels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from smile_fast.ops import label_map_upsampled
from smile_fast.ops.reference import scores_by_stride
from smile_fast.training.curriculum.limits import Limits
from smile_fast.training.curriculum.rooms import background_beyond_rooms
from smile_fast.training.curriculum.selection import braked_pseudo_labels
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_runtime.label_map import PSEUDO_BACKGROUND


def bumps(depth=6, size=12):
    """Logits [D, 3, h, w] of three round organs, each most likely at a place of its own."""
    z, y, x = np.meshgrid(np.arange(depth), np.arange(size), np.arange(size), indexing="ij")
    places = ((2, 3, 4), (3, 8, 8), (4, 5, 9))
    far = [np.sqrt((z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2) for at in places]
    return torch.tensor(np.stack([3.0 - each for each in far], axis=1), dtype=torch.float32)


def beyond_rooms(logits, labels, organs, rooms, stride):
    overlay = torch.zeros_like(labels)
    background_beyond_rooms(overlay, logits, labels, organs, rooms, stride)
    assert set(overlay.unique().tolist()) <= {0, PSEUDO_BACKGROUND}
    return overlay == PSEUDO_BACKGROUND


def test_a_room_is_what_is_likeliest_and_as_much_as_there_is_room_for():
    logits, room = bumps(), 2000
    labels = torch.zeros((6, 48, 48), dtype=torch.uint8)
    labels[:, :, :16] = 2  # a human drew something here
    outside = beyond_rooms(logits, labels, [0], [room], 4)
    free, scores = labels == 0, scores_by_stride(logits[:, 0], labels.shape, 4)
    inside = free & ~outside
    assert scores[inside].min() > scores[outside].max()
    assert 0.9 * room < int(inside.sum()) < 1.1 * room
    assert not outside[labels > 0].any()
    assert not beyond_rooms(logits, labels, [0], [labels.numel()], 4).any()


def test_what_any_missing_organ_has_room_for_is_no_background_and_an_undrawn_one_keeps_its_candidates():
    logits, labels = bumps(), torch.zeros((6, 48, 48), dtype=torch.uint8)
    alone = [beyond_rooms(logits, labels, [organ], [room], 4) for organ, room in ((0, 700), (2, None))]
    assert torch.equal(alone[1], scores_by_stride(logits[:, 2], labels.shape, 4) <= 0)
    assert torch.equal(beyond_rooms(logits, labels, [0, 2], [700, None], 4), alone[0] & alone[1])


def large_bumps(steps=0.0, size=(30, 29)):
    """As `bumps`, in enough cells that a CPU samples them; with steps, many cells are equal."""
    z, y, x = torch.meshgrid(torch.arange(12), *(torch.arange(side) for side in size), indexing="ij")
    far = [((z - 6) ** 2 + (y - row) ** 2 + (x - column) ** 2).sqrt() for row, column in ((9, 8), (15, 20), (20, 9))]
    logits = 8.0 - torch.stack(far, dim=1)
    return (logits / steps).round() * steps if steps else logits


def edge_by_walking(logits, labels, organ, room, stride):
    """The logit of the first cell that does not fit, from the likeliest cell on; what is outside has no voxel."""
    cells = F.interpolate(logits[:, organ : organ + 1], scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
    depth, height, width = (size // part for size, part in zip(cells.shape, (1, 2, 2), strict=True))
    free = np.zeros((depth, height * stride, width * stride), np.int64)
    free[:, : labels.shape[1], : labels.shape[2]] = labels == 0
    low = free.reshape(depth, height, stride, width, stride).sum(axis=(2, 4))
    voxels = low.repeat(2, axis=1).repeat(2, axis=2).ravel() / 4
    found = 0.0
    for cell in cells.flatten().argsort(descending=True).tolist():
        found += voxels[cell]
        if found > room:
            return cells.flatten()[cell]
    return cells.min() - 1


@pytest.mark.parametrize("steps", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("room", [1, 400, 9000, 10**6])
def test_the_edge_is_the_first_cell_that_does_not_fit_whatever_a_sample_says(steps, room):
    logits, labels = large_bumps(steps), torch.zeros((12, 118, 115), dtype=torch.uint8)
    labels[:, 20:50, 30:40], labels[3, 7:9] = 5, 255
    edge = edge_by_walking(logits, labels, 1, room, 4)
    wanted = (labels == 0) & (label_map_upsampled(logits[:, 1:2] - edge, 118, 115, 4) == 0)
    assert torch.equal(beyond_rooms(logits, labels, [1], [room], 4), wanted)


def test_a_logit_that_is_no_number_is_below_every_edge():
    logits, labels = large_bumps(), torch.zeros((12, 120, 116), dtype=torch.uint8)
    wanted = beyond_rooms(logits, labels, [0], [2000], 4)
    logits[11, 0, 20:, 20:] = torch.nan
    assert torch.equal(beyond_rooms(logits, labels, [0], [2000], 4), wanted)


@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("captured", [False, True])
def test_the_fused_operator_with_rooms_gives_what_organ_by_organ_does(scope, captured):
    logits, labels = large_bumps(), torch.zeros((12, 118, 115), dtype=torch.uint8)
    labels[:, 20:50, 30:40] = 3

    def capture(work):  # as a graph: the same memory each time
        results = work()

        def replay():
            for kept, new in zip(results, work(), strict=True):
                kept.copy_(new)

        return results, replay

    labeller = PseudoLabeller(capture if captured else None)
    for rooms in ([900, None, 4000], [30, 2000, 10**6], [900, None, 4000]):
        found = labeller(logits, labels, [0, 1, 2], 0.4, 4, scope, rooms)
        wanted = braked_pseudo_labels(
            logits, labels, [0, 1, 2], 0.4, 4, scope, limits=[Limits()] * 3, positions=np.arange(12), rooms=rooms
        )
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert labeller.captured == captured
    assert (found[0] == PSEUDO_BACKGROUND).any()
    assert (found[0] > PSEUDO_BACKGROUND).any()
