"""scale_gradient in Triton: the backward pass that scales a saved gradient where it is."""

import pytest
import torch

from smile_fast.ops import masked_bce, scale_gradient
from tests.ops.problems import problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_channels_are_scaled_by_their_factor(dtype: torch.dtype) -> None:
    gradient = torch.randn(2, 3, 9, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    factors = torch.tensor([[1.0, -0.5, 0.0], [1 + 1e-12, 2.0, torch.nan]], dtype=torch.float64)
    expected = gradient * factors[:, :, None, None].to(dtype)
    scale_gradient(gradient, factors, implementation="triton")
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


def test_a_factor_of_one_touches_nothing() -> None:
    gradient = torch.full((1, 2, 5), torch.nan)
    gradient.view(torch.int32)[:] = 0x7FA00001  # a NaN that arithmetic would make quiet
    scale_gradient(gradient, torch.ones(1, 2, dtype=torch.float64), implementation="triton")
    assert (gradient.view(torch.int32) == 0x7FA00001).all()


def test_empty() -> None:
    for shape in ((0, 3, 4), (2, 3, 0)):
        factors = torch.ones(shape[:2], dtype=torch.float64)
        gradient = torch.empty(shape)
        scale_gradient(gradient, factors, implementation="triton")
        assert gradient.shape == shape


def test_backward_by_name_is_scaled() -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    gradients = []
    for keep in (True, False):
        leaf = given.logits.clone().requires_grad_()
        loss = masked_bce(leaf, given.labels, given.table, implementation="triton") * 3.0
        gradients.append(torch.autograd.grad(loss, leaf, retain_graph=keep)[0])
    assert torch.equal(*gradients)


def test_opcheck() -> None:
    arguments = (torch.randn(2, 3, 5), torch.rand(2, 3, dtype=torch.float64))
    torch.library.opcheck(torch.ops.smile_fast.scale_gradient.triton, arguments)
