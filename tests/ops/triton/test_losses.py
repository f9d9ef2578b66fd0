"""masked_bce and masked_bce_upsampled in Triton against float64."""

import pytest
import torch
from torch import Tensor

from smile_fast.ops import masked_bce, masked_bce_upsampled
from smile_fast.ops.triton_kernels.core import LARGEST_AXIS
from smile_fast.supervision import Policy, State, build_tables
from tests.ops.problems import exact, problem
from tests.ops.test_masked_bce_upsampled import exact_upsampled
from tests.tolerances import (
    GRADIENT_ULPS,
    LOSS_RELATIVE,
    SCALED_FLOAT32,
    TIMES_TRUNCATED,
    gradient_ulps,
    upsampled_gradient_error,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Integer and odd ratios, no change, one axis that shrinks, one low pixel, more voxels a cell than factors of a product.
SIZES = [((4, 5), (32, 40)), ((5, 7), (17, 23)), ((6, 6), (6, 6)), ((9, 8), (4, 11)), ((1, 1), (2, 70))]
VOLUMES = [((2, 3, 4), (5, 6, 9)), ((4, 2, 3), (4, 5, 3))]
A, M = State.ANNOTATED, State.MISSING


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("organs", [1, 3, 13, 64, 65, 128])
def test_masked_bce(organs: int, dtype: torch.dtype) -> None:
    for size in [(7,), (9, 15), (3, 5, 6)] if organs <= 13 else [(11, 13)]:
        given = problem(2, organs, size, dtype, seed=organs)
        arguments = (given.logits, given.labels, given.table)
        sums, counts, grad = torch.ops.smile_fast.masked_bce.triton(*arguments, True, False)
        exact_sums, exact_gradient = exact(given)
        torch.testing.assert_close(sums, exact_sums, rtol=LOSS_RELATIVE, atol=0)
        assert torch.equal(counts, given.known.flatten(2).sum(2))
        assert gradient_ulps(grad, exact_gradient) <= GRADIENT_ULPS[dtype]
        in_place = given.logits.clone()
        again, _ = torch.ops.smile_fast.masked_bce_in_place.triton(in_place, *arguments[1:], False)
        assert torch.equal(again, sums)
        assert torch.equal(in_place, grad)


def test_gradient_of_the_mean() -> None:
    given = problem(2, 5, (9, 15), torch.float32)
    logits = given.logits.clone().requires_grad_()
    loss = masked_bce(logits, given.labels, given.table, implementation="triton")
    (grad,) = torch.autograd.grad(loss, logits)
    exact_sums, exact_gradient = exact(given)
    pairs = given.known.sum()
    torch.testing.assert_close(loss.detach().double(), exact_sums.sum() / pairs, rtol=LOSS_RELATIVE, atol=0)
    torch.testing.assert_close(grad.double(), exact_gradient / pairs, **SCALED_FLOAT32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("low", "size"), SIZES + VOLUMES, ids=str)
def test_masked_bce_upsampled(low: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_upsampled(2, 3, low, size, dtype)


@pytest.mark.parametrize("organs", [1, 13, 33, 128])
def test_masked_bce_upsampled_of_many_organs(organs: int) -> None:
    assert_upsampled(1, organs, (3, 4), (7, 9), torch.float32)


def test_masked_bce_upsampled_of_many_tiles() -> None:
    assert_upsampled(1, 1, (40, 23), (41, 47), torch.float32)
    assert_upsampled(1, 1, (7, 6, 9), (7, 12, 9), torch.float32)


def assert_upsampled(batch: int, organs: int, low: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype) -> None:
    given = problem(batch, organs, size, dtype, low=low)
    run = torch.ops.smile_fast.masked_bce_upsampled.triton
    sums, counts, grad = run(given.logits, given.labels, given.table, True)
    exact_sums, exact_gradient, magnitude = exact_upsampled(given)
    torch.testing.assert_close(sums, exact_sums, rtol=LOSS_RELATIVE, atol=0)
    assert torch.equal(counts, given.known.flatten(2).sum(2))
    error = upsampled_gradient_error(grad, exact_gradient, magnitude, given.logits.abs().max().item())
    assert error <= (TIMES_TRUNCATED if dtype == torch.bfloat16 else 1)
    alone, _, nothing = run(given.logits, given.labels, given.table, False)
    assert torch.equal(alone, sums)
    assert nothing.shape == (0,)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poison_where_nothing_is_known_never_leaks(dtype: torch.dtype, poison: float) -> None:
    given = problem(2, 5, (12, 13), dtype)
    poisoned = torch.where(given.known, given.logits, poison)
    run = torch.ops.smile_fast.masked_bce.triton
    clean, found = (run(logits, given.labels, given.table, True, True) for logits in (given.logits, poisoned))
    for expected, actual in zip(clean, found, strict=True):
        assert torch.equal(expected, actual)


def test_poison_of_a_node_without_known_voxels_never_leaks() -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[:, :6, :6] = 1
    logits = torch.ones(1, 2, 6, 6)
    poisoned = logits.clone()
    poisoned[0, 1, 3:, 3:] = torch.nan  # the voxels around these are unlabelled, and organ 1 is missing
    run = torch.ops.smile_fast.masked_bce_upsampled.triton
    table = build_tables([[A, M]], Policy.SMILE)
    clean, found = run(logits, labels, table, True), run(poisoned, labels, table, True)
    for expected, actual in zip(clean, found, strict=True):
        assert torch.equal(expected, actual)
    assert (found[2][0, 1, :2, :2] > 0).all()


def test_known_poison_is_not_swallowed() -> None:
    given = problem(1, 2, (8, 8), torch.float32)
    everything = given._replace(table=torch.full_like(given.table, -1))
    for run, extra in (
        (torch.ops.smile_fast.masked_bce.triton, (False,)),
        (torch.ops.smile_fast.masked_bce_upsampled.triton, ()),
    ):
        logits = given.logits.clone()
        logits[0, 0, 3, 3] = torch.nan
        sums, _, _ = run(logits, everything.labels, everything.table, True, *extra)
        assert torch.equal(sums.isnan(), torch.tensor([[True, False]]))


@pytest.mark.parametrize("name", ["masked_bce", "masked_bce_upsampled"])
def test_nothing_known_is_exactly_zero(name: str) -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    table = build_tables([[M, M]] * 2, Policy.SMILE)
    logits = torch.full((2, 2, 8, 8), torch.nan, requires_grad=True)
    op = masked_bce if name == "masked_bce" else masked_bce_upsampled
    loss = op(logits, labels, table, implementation="triton")
    assert loss.item() == 0.0
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad, torch.zeros_like(logits))


@pytest.mark.parametrize("low", [(), (4, 5)])
def test_memory_layout_does_not_matter(low: tuple[int, ...]) -> None:
    given = problem(2, 3, (8, 10), torch.float32, low=low)
    op = torch.ops.smile_fast.masked_bce_upsampled.triton if low else torch.ops.smile_fast.masked_bce.triton
    extra = (True,) if low else (True, False)
    labels = given.labels.transpose(1, 2).contiguous().transpose(1, 2)
    table = given.table.repeat_interleave(2, dim=1)[:, ::2]
    logits = given.logits.to(memory_format=torch.channels_last)
    assert not any(tensor.is_contiguous() for tensor in (logits, labels, table))
    expected = op(given.logits, given.labels, given.table, *extra)
    for wanted, found in zip(expected, op(logits, labels, table, *extra), strict=True):
        assert torch.equal(wanted, found)
    in_place = logits.clone()
    if not low:
        torch.ops.smile_fast.masked_bce_in_place.triton(in_place, labels, table, False)
        assert torch.equal(in_place, expected[2])


@pytest.mark.parametrize(("size", "batch"), [((0, 4), 1), ((4, 4), 0)])
def test_empty(size: tuple[int, ...], batch: int) -> None:
    given = problem(batch, 2, size, torch.float32)
    for results in (
        torch.ops.smile_fast.masked_bce.triton(given.logits, given.labels, given.table, True, True),
        torch.ops.smile_fast.masked_bce_upsampled.triton(torch.ones(batch, 2, 2, 2), given.labels, given.table, True),
    ):
        assert not any(result.any() for result in results)


def test_opcheck() -> None:
    given = problem(2, 3, (8, 9), torch.float32, low=(3, 4))
    arguments = (given.logits.clone().requires_grad_(), given.labels, given.table, True)
    torch.library.opcheck(torch.ops.smile_fast.masked_bce_upsampled.triton, arguments)
    given = problem(2, 3, (8, 9), torch.float32)
    arguments = (given.logits.clone().requires_grad_(), given.labels, given.table, True)
    torch.library.opcheck(torch.ops.smile_fast.masked_bce.triton, (*arguments, True))


def refused(op: str, *arguments: Tensor) -> str:
    run = {"masked_bce": masked_bce, "masked_bce_upsampled": masked_bce_upsampled}[op]
    with pytest.raises(ValueError, match=f"'triton' of {op} cannot be used") as failure:
        run(*arguments, implementation="triton")
    return str(failure.value)


def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    given = problem(1, 1, (4, 4), torch.float64)
    assert "takes float32, bfloat16, float16 input" in refused("masked_bce", given.logits, given.labels, given.table)
    assert "takes float32" in refused("masked_bce_upsampled", given.logits, given.labels, given.table)
    labels = torch.zeros(1, 1, LARGEST_AXIS + 1, dtype=torch.uint8)
    message = refused("masked_bce_upsampled", given.logits.float(), labels, given.table)
    assert "axes and strides of up to 32000 pixels, got 32001" in message
