"""masked_bce(overwrite_logits=True)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from smile_fast.ops import masked_bce
from tests.ops.problems import IMPLEMENTATIONS, problem, taken


@pytest.fixture(params=IMPLEMENTATIONS["masked_bce"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Made(torch.autograd.Function):
    """An operation that makes logits and keeps nothing, as a convolution does."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


@pytest.mark.parametrize(("implementation", "dtype"), taken("masked_bce"), ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_overwriting_the_logits_changes_nothing_else(implementation: str, reduction: str, dtype: torch.dtype) -> None:
    given = problem(2, 3, (9, 10), dtype)
    results = []
    for overwrite in (False, True):
        leaf = given.logits.clone().requires_grad_()
        logits = Made.apply(leaf)  # type: ignore[no-untyped-call]
        loss = masked_bce(
            logits,
            given.labels,
            given.table,
            reduction=reduction,
            overwrite_logits=overwrite,
            implementation=implementation,
        )
        assert torch.equal(logits, leaf) != overwrite
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_overwritten_logits_hold_the_gradient(implementation: str) -> None:
    given = problem(2, 3, (9, 10), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    logits = Made.apply(leaf)  # type: ignore[no-untyped-call]
    arguments = (given.labels, given.table)
    masked_bce(logits, *arguments, overwrite_logits=True, implementation=implementation).backward()
    assert torch.equal(logits, leaf.grad)
    with torch.no_grad():
        logits = Made.apply(leaf)  # type: ignore[no-untyped-call]
        masked_bce(logits, *arguments, overwrite_logits=True, implementation=implementation)
        assert torch.equal(logits, leaf)  # no gradient is made, so nothing is overwritten


def test_overwritten_logits_that_are_needed_are_an_error() -> None:
    given = problem(1, 2, (5, 6), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    for logits, message in (
        (leaf, "an operation has made"),
        (leaf.view(1, 2, 5, 6), "an operation has made"),
        (Made.apply(leaf).transpose(2, 3), "contiguous"),  # type: ignore[no-untyped-call]
    ):
        labels = given.labels if logits.shape[2] == 5 else given.labels.transpose(1, 2)
        with pytest.raises(ValueError, match=message):
            masked_bce(logits, labels, given.table, overwrite_logits=True)
    probabilities = leaf.sigmoid()  # its backward reads its own result
    masked_bce(probabilities, given.labels, given.table, overwrite_logits=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        probabilities.sum().backward()
