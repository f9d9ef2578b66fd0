"""What training minimises against plain formulas in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from smile_fast.supervision import Policy, State, build_tables
from smile_fast.training.objectives import MarginalSoftmax, MaskedHeads, MissingIsBackground
from smile_runtime.label_map import PSEUDO_BIT, VOID
from tests.tolerances import CROSS_ENTROPY_GRADIENT, FLOAT32_SUMS, LOSS_OF_HALF_LOGITS, LOSS_RELATIVE

CPU = torch.device("cpu")
A, M, H, X = State.ANNOTATED, State.MISSING, State.HIDDEN, State.ABSENT
STATES = [(A, A, A), (M, A, H), (X, M, M)]
SIZE = (16, 24)


def problem(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, channels, 2, 3, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (4, *SIZE), generator=generator, dtype=torch.uint8)
    labels[:, :2] = VOID
    cases = torch.tensor([2, 0, 1, 1])
    return logits, labels, cases


def upsampled(logits):
    return F.interpolate(logits.double(), size=SIZE, mode="bilinear", align_corners=False)


def heads(policy=Policy.SMILE):
    return MaskedHeads(build_tables(STATES, policy), CPU)


def test_masked_heads_take_each_images_own_table():
    """Equation 1, organ by organ and image by image."""
    logits, labels, cases = problem(3)
    labels[2][labels[2] == 3] = PSEUDO_BIT | 1
    loss, sums, counts = heads()(logits, labels, cases)
    expected_sums, expected_counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    for z, label, case in zip(upsampled(logits), labels, cases, strict=True):
        states = STATES[case]
        for k in range(3):
            human = torch.isin(label, torch.tensor([o for o in (1, 2, 3) if states[o - 1] is not H]))
            pseudo = (label == PSEUDO_BIT | (k + 1)) & (states[k] in (M, H))
            known = ((states[k] in (A, X)) | human | pseudo) & (label != VOID)
            positive = ((label == k + 1) & (states[k] is not H)) | pseudo
            bce = F.binary_cross_entropy_with_logits(z[k], positive.double(), reduction="none")
            expected_sums[k] += bce[known].sum().detach()
            expected_counts[k] += known.sum()
    assert counts.tolist() == expected_counts.tolist()
    torch.testing.assert_close(sums.double(), expected_sums, rtol=LOSS_RELATIVE, atol=0)
    expected = (expected_sums.sum() / expected_counts.sum()).item()
    assert loss.item() == pytest.approx(expected, rel=LOSS_RELATIVE)
    assert not sums.requires_grad
    loss.backward()
    assert logits.grad.abs().sum() > 0


def test_an_unannotated_organ_has_no_gradient_on_background():
    logits, labels, _ = problem(3)
    labels.zero_()
    heads()(logits, labels, torch.tensor([1, 1, 1, 1])).loss.backward()  # organs 1 missing, 2 annotated, 3 hidden
    assert logits.grad[:, [0, 2]].abs().max() == 0
    assert logits.grad[:, 1].abs().min() > 0


@pytest.mark.parametrize("method", ["smile", "baseline"])
def test_nothing_known_is_a_loss_of_zero(method):
    loss_of = heads() if method == "smile" else MissingIsBackground()
    logits, labels, cases = problem(3 if method == "smile" else 4)
    labels.fill_(VOID)
    loss, sums, counts = loss_of(logits, labels, cases)
    loss.backward()
    assert loss.item() == 0
    assert sums.tolist() == [0, 0, 0]
    assert counts.tolist() == [0, 0, 0]
    assert logits.grad.abs().max() == 0


def test_policies_are_those_of_the_tables():
    logits, labels, cases = problem(3)
    losses = {policy: heads(policy)(logits, labels, cases) for policy in Policy}
    smile, drop, naive = (losses[policy].counts.sum() for policy in (Policy.SMILE, Policy.CHANNEL_DROP, Policy.NAIVE))
    assert drop < smile < naive
    assert naive == 3 * (labels != VOID).sum()


def test_baseline_is_cross_entropy_with_missing_as_background():
    """What was not drawn is class 0, whatever was declared; void is left out."""
    logits, labels, cases = problem(4)
    loss, sums, counts = MissingIsBackground()(logits, labels, cases)
    target = torch.where(labels == VOID, -100, labels.long())
    expected = F.cross_entropy(upsampled(logits), target)
    assert loss.item() == pytest.approx(expected.item(), rel=LOSS_RELATIVE)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, exact, **CROSS_ENTROPY_GRADIENT)
    assert counts.tolist() == [(labels == organ).sum() for organ in (1, 2, 3)]
    each = F.cross_entropy(upsampled(logits), target, reduction="none")
    exact_sums = torch.stack([each[labels == organ].sum() for organ in (1, 2, 3)]).detach()
    torch.testing.assert_close(sums.double(), exact_sums, **FLOAT32_SUMS)
    assert torch.equal(MissingIsBackground()(logits, labels, cases.flip(0)).loss, loss)  # no case is special
    assert not sums.requires_grad


def test_baseline_learns_that_an_undrawn_organ_is_background():
    """The mistake that SMILE avoids: the gradient pushes a missing organ's own voxels to background."""
    logits, labels, cases = problem(4)
    labels.zero_()
    MissingIsBackground()(logits, labels, cases).loss.backward()
    assert logits.grad[:, 0].max() < 0
    assert logits.grad[:, 1:].min() > 0


def marginal(states=STATES):
    return MarginalSoftmax(torch.tensor([[state in (M, H) for state in case] for case in states]), CPU)


def test_marginal_softmax_is_the_formula_voxel_by_voxel():
    """Background or any missing organ at a 0; at an organ its own class, and none of the missing others."""
    logits, labels, cases = problem(4)
    probabilities, expected, known = upsampled(logits).softmax(dim=1), torch.zeros((), dtype=torch.float64), 0
    for p, label, case in zip(probabilities, labels, cases, strict=True):
        missing = [k + 1 for k in range(3) if STATES[case][k] in (M, H)]
        for value in range(4):
            here = p[:, label == value]  # [4, voxels]
            right = here[[0, *missing]].sum(dim=0) if value == 0 else here[value]
            wrong = [torch.log(1 + here[k]).sum() for k in missing if k != value and value > 0]
            expected = expected - right.log().sum() + sum(wrong)
            known += here.shape[1]
    loss, sums, counts = marginal()(logits, labels, cases)
    assert loss.item() == pytest.approx((expected / known).item(), rel=LOSS_RELATIVE)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(expected / known, logits)
    torch.testing.assert_close(gradient, exact, **CROSS_ENTROPY_GRADIENT)
    assert counts.tolist() == [(labels == organ).sum() for organ in (1, 2, 3)]
    assert not sums.requires_grad


def test_marginal_softmax_by_hand():
    """Two pixels with p = (1/2, 1/4, 1/4); organ 1 was drawn in both, organ 2 in none.

    Labelled 0: -log(1/2 + 1/4) = log 4/3. Labelled 1: -log 1/4 + log(1 + 1/4) = log 5. With q = 1/2 + 1/4 the
    gradient of the first is (1/2 - (1/2)/q, 1/4, 1/4 - (1/4)/q); that of the second is p - (0, 1, 0) and, of the
    exclusion, (1/4)/(1 + 1/4) ((0, 0, 1) - p).
    """
    logits = torch.tensor([0.5, 0.25, 0.25]).log().repeat(2, 1)[:, :, None, None].requires_grad_()  # [2, 3, 1, 1]
    labels = torch.tensor([0, 1], dtype=torch.uint8)[:, None, None]
    loss, sums, counts = marginal([(A, M)])(logits, labels, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(5)) / 2, rel=LOSS_RELATIVE)
    assert sums.tolist() == pytest.approx([math.log(5), 0], rel=LOSS_RELATIVE)
    assert counts.tolist() == [1, 0]
    loss.backward()
    expected = torch.tensor([[-1 / 6, 1 / 4, -1 / 12], [0.4, -0.8, 0.4]]) / 2
    torch.testing.assert_close(logits.grad[:, :, 0, 0], expected, **CROSS_ENTROPY_GRADIENT)


def test_marginal_softmax_of_complete_labels_is_the_baseline():
    logits, labels, cases = problem(4)
    ours = marginal([(A, X, A)] * 3)(logits, labels, cases).loss
    baseline = MissingIsBackground()(logits, labels, cases).loss
    assert ours.item() == pytest.approx(baseline.item(), rel=LOSS_RELATIVE)


def test_marginal_softmax_does_not_learn_that_an_undrawn_organ_is_background():
    """Where nothing is labelled, background and the missing organs are not told apart, but the annotated one falls."""
    logits, labels, cases = problem(4)
    with torch.no_grad():
        logits[:, 1:] = logits[:, :1]
    labels.zero_()
    marginal([(A, M, H)] * 3)(logits, labels, cases).loss.backward()
    assert logits.grad[:, 1].min() > 0
    assert logits.grad[:, [0, 2, 3]].max() < 0


def test_logits_in_half_precision_give_a_loss_in_full():
    logits, labels, cases = problem(4)
    for loss_of, channels in ((heads(), 3), (MissingIsBackground(), 4), (marginal(), 4)):
        half = logits[:, :channels].detach().bfloat16().requires_grad_()
        loss = loss_of(half, labels, cases).loss
        assert loss.dtype in (torch.float32, torch.float64)
        full = loss_of(half.detach().float(), labels, cases).loss
        assert loss.item() == pytest.approx(full.item(), **LOSS_OF_HALF_LOGITS)
        loss.backward()
        assert half.grad.dtype == torch.bfloat16
