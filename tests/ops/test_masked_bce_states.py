"""What the states of organs mean for loss and gradient: missing, hidden, absent, void, and all of them annotated."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import masked_bce
from smile_fast.supervision import Policy, State, build_tables
from smile_runtime.label_map import VOID
from tests.ops.problems import IMPLEMENTATIONS, gradient

A, M, X, H = State.ANNOTATED, State.MISSING, State.ABSENT, State.HIDDEN


@pytest.fixture(params=IMPLEMENTATIONS["masked_bce"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def organs_case(states: list[State], policy: Policy = Policy.SMILE) -> tuple[Tensor, Tensor, Tensor]:
    """One image of 16 x 16 with a square per organ, its logits and its table."""
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    for organ in range(len(states)):
        labels[0, 2 * organ : 2 * organ + 3, 4:9] = organ + 1
    labels[0, 15, 15] = VOID
    logits = torch.randn(1, len(states), 16, 16, generator=torch.Generator().manual_seed(1)) * 3
    return logits, labels, build_tables([states], policy)


@pytest.mark.parametrize("state", [M, H])
def test_organ_that_is_not_drawn_gets_no_gradient_on_background(implementation: str, state: State) -> None:
    logits, labels, table = organs_case([A, state, A])
    _, grad = gradient(lambda z: masked_bce(z, labels, table, implementation=implementation), logits)
    background = (labels == 0) | ((labels == 2) & (state is H))
    assert torch.equal(grad[:, 1][background], torch.zeros(int(background.sum())))
    assert (grad[:, 0][background] > 0).all()
    assert (grad[:, 2][background] > 0).all()


def test_voxels_of_drawn_organs_are_certain_negatives_of_the_missing_one(implementation: str) -> None:
    logits, labels, table = organs_case([A, M, A])
    _, grad = gradient(lambda z: masked_bce(z, labels, table, reduction="sum", implementation=implementation), logits)
    drawn = (labels == 1) | (labels == 3)
    torch.testing.assert_close(grad[:, 1][drawn], torch.sigmoid(logits[:, 1][drawn]))
    assert (grad[:, 1][labels == 2] < 0).all()  # what was drawn of a partially drawn organ is positive


def test_hidden_organ_is_the_same_as_one_that_was_never_drawn(implementation: str) -> None:
    logits, labels, table = organs_case([A, H, A])
    erased = torch.where(labels == 2, 0, labels)
    never_drawn = build_tables([[A, M, A]], Policy.SMILE)
    hidden = gradient(lambda z: masked_bce(z, labels, table, implementation=implementation), logits)
    missing = gradient(lambda z: masked_bce(z, erased, never_drawn, implementation=implementation), logits)
    assert torch.equal(hidden[0], missing[0])
    assert torch.equal(hidden[1], missing[1])


def test_void_voxels_and_absent_organs(implementation: str) -> None:
    logits, labels, table = organs_case([A, X])
    labels = torch.where(labels == 2, 0, labels)
    _, grad = gradient(lambda z: masked_bce(z, labels, table, implementation=implementation), logits)
    assert torch.equal(grad[:, :, 15, 15], torch.zeros(1, 2))
    assert (grad[:, 1][labels != VOID] > 0).all()


def test_all_annotated_smile_is_plain_multi_label_training_bit_for_bit(implementation: str) -> None:
    logits, labels, smile = organs_case([A, A, A])
    _, _, naive = organs_case([A, A, A], Policy.NAIVE)
    ours = gradient(lambda z: masked_bce(z, labels, smile, implementation=implementation), logits)
    plain = gradient(lambda z: masked_bce(z, labels, naive, implementation=implementation), logits)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])

    inside = labels != VOID
    target = torch.stack([labels == organ + 1 for organ in range(3)], dim=1).float()
    pick = inside[:, None].expand_as(logits)
    theirs = gradient(lambda z: F.binary_cross_entropy_with_logits(z[pick], target[pick]), logits)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("organs", [3, 32])
def test_adding_a_missing_organ_changes_nothing_for_the_others(implementation: str, organs: int) -> None:
    states = [A, M, X] * (organs // 3) + [A] * (organs % 3)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, organs + 1, 20, 21, generator=generator) * 3
    labels = torch.randint(0, organs + 1, (2, 20, 21), dtype=torch.uint8, generator=generator)

    def by_channel(count: int, states: list[State]) -> tuple[Tensor, Tensor]:
        table = build_tables([states] * 2, Policy.SMILE)
        leaf = logits[:, :count].clone().requires_grad_()
        losses = masked_bce(leaf, labels, table, reduction="none", implementation=implementation)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]

    before = by_channel(organs, states)
    after = by_channel(organs + 1, [*states, M])
    assert torch.equal(after[0][:, :organs], before[0])
    assert torch.equal(after[1][:, :organs], before[1])
