"""The loss that goes backward: what autograd, hooks, files and in-place operations make of it."""

import copy
import io

import pytest
import torch

from smile_fast.ops import masked_bce
from tests.ops.problems import IMPLEMENTATIONS, NoAtenKernels, gradient, problem
from tests.tolerances import twice_rounded


@pytest.fixture(params=IMPLEMENTATIONS["masked_bce"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_plain_backward_computes_nothing(implementation: str, reduction: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    options = {"reduction": reduction, "implementation": implementation}
    masked_bce(leaf, given.labels, given.table, **options).backward()  # makes the 1 that all others start from
    expected, leaf.grad = leaf.grad, None
    loss = masked_bce(leaf, given.labels, given.table, **options)
    with NoAtenKernels():
        loss.backward()
    assert torch.equal(leaf.grad, expected)
    doubled = 2 * masked_bce(leaf, given.labels, given.table, **options)
    assert type(doubled) is torch.Tensor
    leaf.grad = None
    doubled.backward()
    torch.testing.assert_close(leaf.grad, 2 * expected, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_may_be_changed_in_place(implementation: str, reduction: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    options = {"reduction": reduction, "implementation": implementation}
    _, expected = gradient(lambda z: masked_bce(z, given.labels, given.table, **options).sum(), given.logits)
    leaf, penalty = given.logits.clone().requires_grad_(), torch.ones((), requires_grad=True)
    loss = masked_bce(leaf, given.labels, given.table, **options)
    loss /= 2
    loss += penalty
    loss.sum().backward()
    assert torch.equal(leaf.grad, expected / 2)
    assert penalty.grad == loss.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_hook_that_changes_what_goes_backward_changes_this_loss_alone(
    implementation: str, dtype: torch.dtype
) -> None:
    given = problem(2, 3, (5, 6), dtype)
    _, expected = gradient(
        lambda z: masked_bce(z, given.labels, given.table, implementation=implementation), given.logits
    )
    for factor in (4, 1):
        leaf = given.logits.clone().requires_grad_()
        loss = masked_bce(leaf, given.labels, given.table, implementation=implementation)
        if factor != 1:
            loss.register_hook(lambda arriving: arriving.mul_(4))
        loss.backward()
        torch.testing.assert_close(leaf.grad, factor * expected, **twice_rounded(dtype))


def test_a_saved_loss_is_a_plain_tensor(implementation: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    loss = masked_bce(given.logits.requires_grad_(), given.labels, given.table, implementation=implementation)
    file = io.BytesIO()
    torch.save({"loss": loss}, file)
    file.seek(0)
    found = torch.load(file)["loss"]
    assert type(found) is torch.Tensor
    assert torch.equal(found, loss.detach())


def test_loss_is_a_tensor_like_others(implementation: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    seen: list[float] = []
    loss = masked_bce(leaf, given.labels, given.table, implementation=implementation)
    loss.register_hook(lambda arriving: seen.append(arriving.item()))
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    loss.backward(torch.tensor(3.0))
    assert seen == [1.0, 3.0]
    torch.testing.assert_close(leaf.grad, 4 * first)
    assert type(loss.detach()) is torch.Tensor
    assert copy.deepcopy(loss.detach()) == loss
    assert "grad_fn" in repr(loss)
