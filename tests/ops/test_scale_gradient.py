"""scale_gradient by every implementation, and what the losses' backward pass does with it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from smile_fast.ops import available, loss_autograd, masked_bce, masked_bce_upsampled, scale_gradient
from tests.ops.problems import problem, taken

IMPLEMENTATIONS = [name for name, usable, _ in available("scale_gradient", "cpu") if usable]
FACTORS = torch.tensor([[1.0, -0.5, 0.0], [1 + 1e-12, 1 / 3, torch.nan]], dtype=torch.float64)


def some_gradient(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 9, 37, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("implementation", "dtype"), taken("scale_gradient"), ids=str)
def test_every_channel_is_multiplied_by_its_factor_in_place(implementation: str, dtype: torch.dtype) -> None:
    gradient = some_gradient(dtype)
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (gradient.to(computed_in) * FACTORS.to(computed_in)[:, :, None, None]).to(dtype)
    before = gradient.data_ptr()
    scale_gradient(gradient, FACTORS, implementation=implementation)
    assert gradient.data_ptr() == before
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


def test_native_does_not_touch_what_is_multiplied_by_one() -> None:
    assert "native" in IMPLEMENTATIONS or available("scale_gradient", "cpu")[0][2]  # else the reason is given
    gradient = torch.full((1, 2, 5), torch.nan)
    gradient.view(torch.int32)[:] = 0x7FA00001  # a NaN that arithmetic would make quiet
    for implementation in set(IMPLEMENTATIONS) - {"reference"}:
        scale_gradient(gradient, torch.ones(1, 2, dtype=torch.float64), implementation=implementation)
    assert (gradient.view(torch.int32) == 0x7FA00001).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 3)])
def test_empty(implementation: str, shape: tuple[int, ...]) -> None:
    gradient = torch.ones(shape)
    scale_gradient(gradient, 2 * torch.ones(shape[:2], dtype=torch.float64), implementation=implementation)
    assert (gradient == 2).all()


def test_opcheck() -> None:
    op = torch.ops.smile_fast.scale_gradient
    for kernel in (op.default, *(getattr(op, name) for name in IMPLEMENTATIONS)):
        torch.library.opcheck(kernel, (some_gradient(), FACTORS))


def test_compiles_into_one_graph() -> None:
    def scaled(gradient: Tensor, factors: Tensor) -> Tensor:
        gradient = gradient + 1
        scale_gradient(gradient, factors)
        return gradient * 2

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    factors = FACTORS.nan_to_num(3.0)
    assert torch.equal(compiled(some_gradient(), factors), scaled(some_gradient(), factors))


@pytest.mark.parametrize("op", [masked_bce, masked_bce_upsampled])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_backward_scales_in_place_unless_the_graph_is_kept(
    op: Any, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    scaled: list[int] = []

    def spy(gradient: Tensor, factors: Tensor) -> None:
        scaled.append(gradient.data_ptr())
        scale_gradient(gradient, factors)

    def gradient(factor: float, keep: bool) -> Tensor:
        leaf = given.logits.clone().requires_grad_()
        loss = op(leaf, given.labels, given.table, reduction=reduction) * factor
        return torch.autograd.grad(loss, leaf, retain_graph=keep)[0]

    monkeypatch.setattr(loss_autograd, "scale_gradient", spy)
    kept = gradient(3.0, keep=True)
    assert scaled == []
    found = gradient(3.0, keep=False)
    assert scaled == [found.data_ptr()]
    assert torch.equal(found, kept)
    assert not torch.equal(found, gradient(1.0, keep=True))


GRADIENT = some_gradient()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"gradient": [1.0]}, TypeError, "gradient must be a tensor, got list"),
        ({"gradient": GRADIENT.int()}, TypeError, "gradient must have dtype .*, got torch.int32"),
        ({"gradient": GRADIENT[0, 0, 0]}, ValueError, r"gradient must have shape \[B, K, \*S\], got \[37\]"),
        ({"gradient": GRADIENT.transpose(2, 3)}, ValueError, r"gradient must be contiguous, got strides \(999"),
        ({"factors": FACTORS.float()}, TypeError, "factors must have dtype torch.float64, got torch.float32"),
        ({"factors": FACTORS[:1]}, ValueError, r"factors must have shape \[B, K\] = \[2, 3\], got \[1, 3\]"),
        ({"factors": FACTORS.to("meta")}, ValueError, "factors must be on cpu .*, got meta"),
        ({"implementation": "fast"}, ValueError, "implementation of scale_gradient must be .*, got 'fast'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"gradient": GRADIENT, "factors": FACTORS} | change
    with pytest.raises(kind, match=message):
        scale_gradient(**arguments)  # type: ignore[arg-type]


def test_float64_by_name_is_refused() -> None:
    reasons = {name: reason for name, _, reason in available("scale_gradient", "cpu")}
    message = reasons["native"] or "takes float32, bfloat16, float16 input, got torch.float64"
    with pytest.raises(ValueError, match=f"'native' of scale_gradient cannot be used: .*{re.escape(message)}"):
        scale_gradient(some_gradient(torch.float64), FACTORS, implementation="native")
