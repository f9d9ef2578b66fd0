from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import masked_bce, masked_bce_upsampled, masked_bce_upsampled_stats
from smile_fast.supervision import Policy, State, build_tables
from tests.ops.problems import DTYPES, Problem, exact, plain_torch, problem
from tests.tolerances import LOSS_RELATIVE, UPSAMPLED_GRADIENT_RELATIVE, assert_no_worse_than_torch

A, M = State.ANNOTATED, State.MISSING
# Integer and odd ratios, no change, a size that shrinks, one low-resolution row, and volumes.
SIZES = [
    ((4, 5), (32, 40)),
    ((5, 7), (17, 23)),
    ((6, 6), (6, 6)),
    ((9, 8), (4, 11)),
    ((1, 3), (8, 9)),
    ((2, 3, 4), (5, 6, 9)),
]


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    leaf = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad


def sum_loss(given: Problem, implementation: str | None = None) -> Callable[[Tensor], Tensor]:
    return lambda logits: masked_bce_upsampled(
        logits, given.labels, given.table, reduction="sum", implementation=implementation
    )


def upsample(logits: Tensor, given: Problem) -> Tensor:
    mode = "bilinear" if logits.ndim == 4 else "trilinear"
    return F.interpolate(logits, size=tuple(given.labels.shape[1:]), mode=mode, align_corners=False)


def exact_upsampled(given: Problem) -> tuple[Tensor, Tensor]:
    """Sums and gradient in float64; autograd transposes the interpolation."""
    leaf = given.logits.double().requires_grad_()
    fine = upsample(leaf, given)
    sums, gradient = exact(given._replace(logits=fine.detach()))
    (coarse,) = torch.autograd.grad(fine, leaf, gradient)
    return sums, coarse


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("coarse", "size"), SIZES, ids=str)
def test_sums_counts_and_gradients(coarse: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype) -> None:
    given = problem(2, 3, size, dtype, coarse=coarse)
    leaf = given.logits.clone().requires_grad_()
    sums, counts = masked_bce_upsampled_stats(leaf, given.labels, given.table)
    (grad,) = torch.autograd.grad(sums.sum(), leaf)
    exact_sums, exact_gradient = exact_upsampled(given)
    torch.testing.assert_close(sums.detach(), exact_sums, rtol=LOSS_RELATIVE, atol=0)
    assert torch.equal(counts, given.known.flatten(2).sum(2))
    assert grad.dtype == dtype
    allowed = UPSAMPLED_GRADIENT_RELATIVE[dtype] * exact_gradient.abs().max()
    assert (grad.double() - exact_gradient).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(dtype: torch.dtype) -> None:
    given = problem(2, 5, (64, 65), dtype, coarse=(8, 9))
    exact_sum = exact_upsampled(given)[0].sum().item()
    plain = plain_torch(upsample(given.logits, given), given).sum().item()
    assert_no_worse_than_torch(sum_loss(given)(given.logits).item(), plain, exact_sum)


def test_many_organs() -> None:
    given = problem(1, 65, (9, 10), torch.float64, coarse=(4, 4))
    exact_sums, exact_gradient = exact_upsampled(given)
    loss, grad = gradient(sum_loss(given), given.logits)
    torch.testing.assert_close(loss, exact_sums.sum())
    torch.testing.assert_close(grad, exact_gradient)


def test_same_size_equals_masked_bce() -> None:
    given = problem(2, 3, (6, 7), torch.float32)
    ours = gradient(sum_loss(given), given.logits)
    theirs = gradient(
        lambda z: masked_bce(z, given.labels, given.table, reduction="sum", implementation="reference"), given.logits
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("coarse", "size"), [((2, 3), (5, 4)), ((2, 2, 2), (3, 5, 3))])
def test_gradcheck(coarse: tuple[int, ...], size: tuple[int, ...]) -> None:
    given = problem(2, 2, size, torch.float64, coarse=coarse)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: masked_bce_upsampled(z, given.labels, given.table, reduction=r),
            given.logits.requires_grad_(),
        )


def test_all_annotated_smile_is_plain_multi_label_training_bit_for_bit() -> None:
    labels = torch.randint(0, 4, (2, 24, 25), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    smile, naive = (build_tables([[A, A, A]] * 2, policy) for policy in (Policy.SMILE, Policy.NAIVE))
    ours = gradient(lambda z: masked_bce_upsampled(z, labels, smile), logits)
    plain = gradient(lambda z: masked_bce_upsampled(z, labels, naive), logits)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])

    target = torch.stack([labels == organ + 1 for organ in range(3)], dim=1).float()

    def multi_label(z: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(F.interpolate(z, size=(24, 25), mode="bilinear"), target)

    torch.testing.assert_close(ours, gradient(multi_label, logits))


def test_adding_a_missing_organ_changes_nothing_for_the_others() -> None:
    labels = torch.randint(0, 3, (1, 24, 25), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    two, three = (build_tables([states], Policy.SMILE) for states in ([A, A], [A, A, M]))

    def planes(logits: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        losses = masked_bce_upsampled(leaf, labels, table, reduction="none")
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]

    before, after = planes(logits[:, :2], two), planes(logits, three)
    assert torch.equal(after[0][:, :2], before[0])
    assert torch.equal(after[1][:, :2], before[1])
    assert (after[1][:, 2] > 0).any()  # drawn voxels are its negatives


def test_missing_organ_gets_no_gradient_from_background() -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[:, 8:12, 8:12] = 1
    table = build_tables([[A, M]], Policy.SMILE)
    _, grad = gradient(lambda z: masked_bce_upsampled(z, labels, table), torch.ones(1, 2, 6, 6))
    reached = grad[0, 1] != 0
    assert reached[2, 2]  # fine voxels 8..11 lie in coarse cell 2, and read cells 1 to 3
    reached[1:4, 1:4] = False
    assert not reached.any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_poison_reaches_only_known_voxels_that_read_it(poison: float) -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[:, 8:12, 8:12] = 1
    table = build_tables([[A, M]], Policy.SMILE)
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    poisoned = logits.clone()
    poisoned[0, 1, 5, :] = poison  # organ 1 is known on the square alone, far from here
    clean = gradient(lambda z: masked_bce_upsampled(z, labels, table), logits)
    found = gradient(lambda z: masked_bce_upsampled(z, labels, table), poisoned)
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1], clean[1])

    poisoned[0, 0, 5, 5] = torch.nan  # organ 0 is known here
    planes = masked_bce_upsampled(poisoned, labels, table, reduction="none")
    assert torch.equal(planes.isnan(), torch.tensor([[True, False]]))
    _, grad = gradient(lambda z: masked_bce_upsampled(z, labels, table), poisoned)
    assert torch.equal(grad[0, 1], clean[1][0, 1])
    assert torch.equal(grad[0, 0, :4, :4], clean[1][0, 0, :4, :4])
    assert grad[0, 0, 5, 5].isnan()


def test_nothing_known_is_exactly_zero() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    table = build_tables([[M, M]] * 2, Policy.SMILE)
    loss, grad = gradient(lambda z: masked_bce_upsampled(z, labels, table), torch.full((2, 2, 3, 3), torch.nan))
    assert loss.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_gradient_that_arrives_scales_every_plane() -> None:
    given = problem(2, 2, (6, 7), torch.float32, coarse=(3, 3))
    leaf = given.logits.clone().requires_grad_()
    planes = masked_bce_upsampled(leaf, given.labels, given.table, reduction="none")
    arriving = torch.tensor([[1.0, -2.5], [0.0, 7.0]])
    (ones,) = torch.autograd.grad(planes.sum(), leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad(planes, leaf, arriving)
    assert torch.equal(scaled, ones * arriving[:, :, None, None])


def test_memory_layout_does_not_matter() -> None:
    given = problem(2, 3, (8, 10), torch.float32, coarse=(4, 5))
    expected = gradient(sum_loss(given), given.logits)
    strided = given._replace(labels=given.labels.transpose(1, 2).contiguous().transpose(1, 2))
    for logits in (
        given.logits.to(memory_format=torch.channels_last),
        given.logits.repeat_interleave(2, dim=3)[..., ::2],
    ):
        assert not logits.is_contiguous()
        found = gradient(sum_loss(strided), logits)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("coarse", "size", "batch"), [((2, 2), (4, 4), 0), ((2, 2), (0, 4), 1), ((0, 0), (0, 0), 1)])
def test_empty(coarse: tuple[int, ...], size: tuple[int, ...], batch: int) -> None:
    given = problem(batch, 2, size, torch.float32)
    logits = torch.ones(batch, 2, *coarse)
    loss, grad = gradient(sum_loss(given), logits)
    assert loss.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(logits))


def test_opcheck_and_compile() -> None:
    given = problem(2, 3, (8, 9), torch.float32, coarse=(4, 4))
    for kernel in (
        torch.ops.smile_fast.masked_bce_upsampled.default,
        torch.ops.smile_fast.masked_bce_upsampled.reference,
    ):
        torch.library.opcheck(kernel, (given.logits, given.labels, given.table, False))
        torch.library.opcheck(kernel, (given.logits.clone().requires_grad_(), given.labels, given.table, True))
    compiled = torch.compile(sum_loss(given, "reference"), fullgraph=True, backend="aot_eager")
    found, expected = gradient(compiled, given.logits), gradient(sum_loss(given), given.logits)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


GOOD = problem(2, 3, (8, 9), torch.float32, coarse=(4, 5))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a float tensor, got list"),
        ({"logits": GOOD.logits[0]}, ValueError, r"logits must have shape \[B, K, h, w\] or .*, got \[3, 4, 5\]"),
        ({"logits": GOOD.logits[:, :, :0]}, ValueError, r"no empty spatial axis, got \[2, 3, 0, 5\]"),
        ({"labels": GOOD.labels.int()}, TypeError, "labels must have dtype torch.uint8, got torch.int32"),
        ({"labels": GOOD.labels[0]}, ValueError, r"labels must have shape .* B = 2 and 2 spatial axes, got \[8, 9\]"),
        ({"labels": GOOD.labels[:1]}, ValueError, r"labels must have shape .* B = 2 .*, got \[1, 8, 9\]"),
        ({"table": GOOD.table[:1]}, ValueError, r"table must have shape .* = \[2, 256, 2, 1\], got \[1, 256, 2, 1\]"),
        ({"table": 3}, TypeError, "table must be a tensor of torch.int32, got int"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of mean, sum, none, got 'batchmean'"),
        ({"implementation": "native!"}, ValueError, "must be None or one of .*, got 'native!'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"logits": GOOD.logits, "labels": GOOD.labels, "table": GOOD.table} | change
    with pytest.raises(kind, match=message):
        masked_bce_upsampled(**arguments)  # type: ignore[arg-type]
