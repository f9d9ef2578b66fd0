"""The native kernels where it is about size or luck: a thousand repeats, and more than 2^31 elements."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smile_fast.ops import (
    label_map_upsampled,
    masked_bce,
    masked_bce_upsampled,
    pseudo_labels_upsampled,
    select_top_fraction,
)
from tests.ops.problems import IMPLEMENTATIONS, problem
from tests.tolerances import LOSS_RELATIVE_LARGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("native" not in IMPLEMENTATIONS["masked_bce"], reason="the native core is not built"),
]


def losses(dtype: torch.dtype) -> list[Callable[[], tuple[Tensor, ...]]]:
    """Loss and gradient of both losses; the gradient of masked_bce is large enough to be stored past the caches."""
    plain, upsampled = problem(2, 5, (500, 512), dtype), problem(2, 5, (25, 38), dtype)
    labels = problem(2, 5, (199, 301), dtype).labels

    def of_masked_bce() -> tuple[Tensor, ...]:
        leaf = plain.logits.detach().requires_grad_()
        loss = masked_bce(leaf, plain.labels, plain.table)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def of_masked_bce_upsampled() -> tuple[Tensor, ...]:
        leaf = upsampled.logits.detach().requires_grad_()
        loss = masked_bce_upsampled(leaf, labels, upsampled.table)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    return [of_masked_bce, of_masked_bce_upsampled]


def selections(dtype: torch.dtype) -> list[Callable[[], tuple[Tensor, ...]]]:
    """Selection, label map and pseudo-labels, with ties."""
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(100_000, generator=random).to(dtype)
    candidates = torch.rand(100_000, generator=random) < 0.3
    segments = torch.tensor([0, 40_000, 40_100, 100_000])
    logits = torch.randn((3, 4, 9, 12), generator=random).to(dtype)
    labels = torch.zeros((3, 70, 91), dtype=torch.uint8)
    return [
        lambda: (select_top_fraction(scores, candidates, 0.33, segments),),
        lambda: (label_map_upsampled(logits, 70, 91, 8),),
        lambda: pseudo_labels_upsampled(logits, labels, [0, 2, 3], 0.4, 8),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_thousand_times_the_same_bits(dtype: torch.dtype) -> None:
    for call in losses(dtype) + selections(dtype):
        expected = call()
        for repeat in range(1000):
            torch.set_num_threads((1, 2, 3, 8)[repeat % 4])
            for found, wanted in zip(call(), expected, strict=True):
                assert torch.equal(found, wanted)


def test_losses_of_more_than_two_to_the_31_elements() -> None:
    """In place on 4.3 GB: the end of every channel is that of a small problem, and nothing else is known."""
    voxels, end = 2**30 + 1000, 4096
    given = problem(1, 2, (end,), torch.bfloat16)
    logits = torch.zeros((1, 2, voxels), dtype=torch.bfloat16)
    labels = torch.full((1, voxels), 255, dtype=torch.uint8)  # void
    logits[..., -end:], labels[..., -end:] = given.logits, given.labels
    table = given.table.clone()
    table[:, 255] = 0
    small = given.logits.detach().clone()
    expected = torch.ops.smile_fast.masked_bce_in_place(small, given.labels, table, False)
    found = torch.ops.smile_fast.masked_bce_in_place(logits, labels, table, False)
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1], expected[1], rtol=LOSS_RELATIVE_LARGE, atol=0)
    assert torch.equal(logits[..., -end:], small)
    assert not logits[..., :-end].any()
