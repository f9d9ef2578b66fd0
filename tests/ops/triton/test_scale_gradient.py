"""The backward pass that scales a saved gradient where it is."""

import pytest
import torch

from smile_fast.ops import masked_bce
from smile_fast.ops.native import scale_gradient as native
from smile_fast.ops.triton_kernels import core
from smile_fast.ops.triton_kernels.scale_gradient import scale_gradient
from tests.ops.problems import problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_planes_are_scaled_by_their_factor(dtype: torch.dtype) -> None:
    gradient = torch.randn(2, 3, 9, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    factors = torch.tensor([[1.0, -0.5, 0.0], [1 + 1e-12, 2.0, torch.nan]], dtype=torch.float64)
    expected = gradient * factors[:, :, None, None].to(dtype)
    scale_gradient(gradient, factors)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


def test_a_factor_of_one_touches_nothing() -> None:
    gradient = torch.full((1, 2, 5), torch.nan)
    gradient.view(torch.int32)[:] = 0x7FA00001  # a NaN that arithmetic would make quiet
    scale_gradient(gradient, torch.ones(1, 2, dtype=torch.float64))
    assert (gradient.view(torch.int32) == 0x7FA00001).all()


def test_empty() -> None:
    scale_gradient(torch.empty(0, 3, 4), torch.empty(0, 3, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_backward_scales_in_place_unless_the_graph_is_kept(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    scaled: list[int] = []

    def spy(gradient: torch.Tensor, factors: torch.Tensor) -> None:
        scaled.append(gradient.data_ptr())
        scale_gradient(gradient, factors)

    def gradients(factor: float, keep: bool) -> torch.Tensor:
        leaf = given.logits.clone().requires_grad_()
        loss = masked_bce(leaf, given.labels, given.table, reduction=reduction, implementation="triton") * factor
        return torch.autograd.grad(loss, leaf, retain_graph=keep)[0]

    expected = gradients(3.0, keep=False)
    monkeypatch.setattr(native, "can_scale", lambda gradient: False)  # as on a GPU
    monkeypatch.setattr(core, "can_scale", lambda gradient: True)
    monkeypatch.setattr(core, "scale_gradient", spy)
    assert torch.equal(gradients(3.0, keep=True), expected)
    assert scaled == []
    found = gradients(3.0, keep=False)
    assert scaled == [found.data_ptr()]
    assert torch.equal(found, expected)


def test_only_plain_gradients_on_a_gpu_are_scaled_in_place() -> None:
    assert not core.can_scale(torch.ones(1, 1, 4))
    assert not core.can_scale(torch.ones(1, 1, 4, device="meta"))
