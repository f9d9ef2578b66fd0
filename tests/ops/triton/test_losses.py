"""masked_bce_upsampled in Triton against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from smile_fast.ops import masked_bce_upsampled
from smile_fast.ops.triton_kernels import known_counts
from smile_fast.ops.triton_kernels import masked_bce_upsampled as kernels
from smile_fast.ops.triton_kernels.core import LARGEST_AXIS
from smile_fast.supervision import Policy, State, build_tables
from tests.ops.problems import NoAtenKernels, problem
from tests.ops.test_masked_bce_upsampled import exact_upsampled
from tests.tolerances import (
    LOSS_RELATIVE,
    SCALED_FLOAT32,
    TIMES_TRUNCATED,
    upsampled_gradient_error,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Integer and odd ratios, no change, one axis that shrinks, one low pixel, more voxels a cell than factors of a product.
SIZES = [((4, 5), (32, 40)), ((5, 7), (17, 23)), ((6, 6), (6, 6)), ((9, 8), (4, 11)), ((1, 1), (2, 70))]
VOLUMES = [((2, 3, 4), (5, 6, 9)), ((4, 2, 3), (4, 5, 3))]
A, M = State.ANNOTATED, State.MISSING
RUN = torch.ops.smile_fast.masked_bce_upsampled.triton


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
    loss, sums, counts, grad = RUN(given.logits, given.labels, given.table, True, False)
    exact_sums, exact_gradient, magnitude = exact_upsampled(given)
    torch.testing.assert_close(sums, exact_sums, rtol=LOSS_RELATIVE, atol=0)
    torch.testing.assert_close(loss, exact_sums.sum().float(), rtol=LOSS_RELATIVE, atol=0)
    assert torch.equal(counts, given.known.flatten(2).sum(2))
    error = upsampled_gradient_error(grad, exact_gradient, magnitude, given.logits.abs().max().item())
    assert error <= (TIMES_TRUNCATED if dtype == torch.bfloat16 else 1)
    alone, *others, nothing = RUN(given.logits, given.labels, given.table, False, False)
    assert all(torch.equal(*pair) for pair in zip((alone, *others), (loss, sums, counts), strict=True))
    assert nothing.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mean_is_divided(dtype: torch.dtype) -> None:
    given = problem(2, 3, (17, 23), dtype, low=(5, 7))
    _, sums, counts, grad = RUN(given.logits, given.labels, given.table, True, False)
    loss, same_sums, same_counts, divided = RUN(given.logits, given.labels, given.table, True, True)
    assert torch.equal(sums, same_sums)
    assert torch.equal(counts, same_counts)
    torch.testing.assert_close(loss.double(), sums.sum() / counts.sum(), rtol=LOSS_RELATIVE, atol=0)
    pairs = 1 if dtype == torch.float16 else counts.sum()  # there, 1 / N underflows: the backward pass divides
    tolerance = SCALED_FLOAT32 if dtype == torch.float32 else {"rtol": torch.finfo(dtype).eps, "atol": 0}
    torch.testing.assert_close(divided.double(), grad.double() / pairs, **tolerance)


def test_loss_and_gradient_take_two_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    for module, name in ((known_counts, "count_known_kernel"), (kernels, "masked_bce_upsampled_kernel")):
        kernel = getattr(module, name)

        class Counted:
            def __getitem__(self, grid: tuple[int, ...], kernel: Any = kernel, name: str = name) -> Any:
                launched.append(name)
                return kernel[grid]

        monkeypatch.setattr(module, name, Counted())
    given = problem(2, 3, (16, 16), torch.float32, low=(2, 2))
    logits = given.logits.clone().requires_grad_()
    masked_bce_upsampled(logits, given.labels, given.table, implementation="reference").backward()  # makes the 1 once
    logits.grad = None
    with NoAtenKernels():
        masked_bce_upsampled(logits, given.labels, given.table, implementation="triton").backward()
    assert launched == ["count_known_kernel", "masked_bce_upsampled_kernel"]
    assert logits.grad is not None


def test_poison_of_a_node_without_known_voxels_never_leaks() -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[:, :6, :6] = 1
    logits = torch.ones(1, 2, 6, 6)
    poisoned = logits.clone()
    poisoned[0, 1, 3:, 3:] = torch.nan  # the voxels around these are unlabelled, and organ 1 is missing
    table = build_tables([[A, M]], Policy.SMILE)
    clean, found = RUN(logits, labels, table, True, True), RUN(poisoned, labels, table, True, True)
    for expected, actual in zip(clean, found, strict=True):
        assert torch.equal(expected, actual)
    assert (found[3][0, 1, :2, :2] > 0).all()


def test_known_poison_is_not_swallowed() -> None:
    given = problem(1, 2, (8, 8), torch.float32)
    everything = given._replace(table=torch.full_like(given.table, -1))
    logits = given.logits.clone()
    logits[0, 0, 3, 3] = torch.nan
    loss, sums, _, _ = RUN(logits, everything.labels, everything.table, True, True)
    assert torch.equal(sums.isnan(), torch.tensor([[True, False]]))
    assert loss.isnan()


def test_nothing_known_is_exactly_zero() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    table = build_tables([[M, M]] * 2, Policy.SMILE)
    logits = torch.full((2, 2, 8, 8), torch.nan, requires_grad=True)
    loss = masked_bce_upsampled(logits, labels, table, implementation="triton")
    assert loss.item() == 0.0
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad, torch.zeros_like(logits))


def test_memory_layout_does_not_matter() -> None:
    given = problem(2, 3, (8, 10), torch.float32, low=(4, 5))
    labels = given.labels.transpose(1, 2).contiguous().transpose(1, 2)
    table = given.table.repeat_interleave(2, dim=1)[:, ::2]
    logits = given.logits.to(memory_format=torch.channels_last)
    assert not any(tensor.is_contiguous() for tensor in (logits, labels, table))
    expected = RUN(given.logits, given.labels, given.table, True, True)
    for wanted, found in zip(expected, RUN(logits, labels, table, True, True), strict=True):
        assert torch.equal(wanted, found)


@pytest.mark.parametrize(("size", "batch"), [((0, 4), 1), ((4, 4), 0)])
def test_empty(size: tuple[int, ...], batch: int) -> None:
    given = problem(batch, 2, size, torch.float32)
    results = RUN(torch.ones(batch, 2, 2, 2), given.labels, given.table, True, True)
    assert not any(result.any() for result in results)


def test_opcheck() -> None:
    given = problem(2, 3, (8, 9), torch.float32, low=(3, 4))
    arguments = (given.logits.clone().requires_grad_(), given.labels, given.table, True, True)
    torch.library.opcheck(RUN, arguments)


def refused(*arguments: Tensor) -> str:
    with pytest.raises(ValueError, match="'triton' of masked_bce_upsampled cannot be used") as failure:
        masked_bce_upsampled(*arguments, implementation="triton")
    return str(failure.value)


def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    given = problem(1, 1, (4, 4), torch.float64)
    assert "takes float32, bfloat16, float16 input" in refused(given.logits, given.labels, given.table)
    labels = torch.zeros(1, 1, LARGEST_AXIS + 1, dtype=torch.uint8)
    message = refused(given.logits.float(), labels, given.table)
    assert "axes and strides of up to 32000 pixels, got 32001" in message
