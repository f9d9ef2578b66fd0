"""What the two losses share: the fake kernel, the autograd formula and the reduction."""

from typing import Any

import torch
from torch import Tensor

from smile_fast.ops.native import scale_gradient as native
from smile_fast.ops.native_cuda import masked_bce as native_cuda
from smile_fast.ops.reference import compute_dtype
from smile_fast.ops.triton_kernels import core as triton

UNIT_FACTOR = 1e-9  # a factor this near to 1 changes no float32, bfloat16 or float16 gradient


def fake(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return results of the right shapes and dtypes: sums [B, K], counts [B, K], grad like logits or [0]."""
    pairs = logits.shape[:2]
    return (
        logits.new_empty(pairs, dtype=torch.float64),
        logits.new_empty(pairs, dtype=torch.int64),
        logits.new_empty(logits.shape if with_grad else (0,)),
    )


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep the gradient that the forward made; counts and the gradient itself are constants to autograd."""
    _, _, _, ctx.with_grad, *mean = inputs
    ctx.mean, ctx.inputs = mean == [True], len(inputs)
    ctx.set_materialize_grads(False)  # no zeros of the size of `grad` for the results that have no gradient
    _, counts, grad = output
    ctx.mark_non_differentiable(counts, grad)
    ctx.save_for_backward(counts, grad)


def backward(
    ctx: Any,
    grad_sums: Tensor | None,  # [B, K]
    grad_counts: Tensor | None,
    grad_grad: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Scale d sums / d logits by what arrives for the sums, one factor an (image, organ) plane."""
    if not ctx.with_grad:
        raise RuntimeError("the loss was computed with with_grad=False: it has no gradient for its logits")
    counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
    arrived = None if grad_sums is None else scaled(grad, grad_sums, counts, ctx.mean)
    return arrived, *[None] * (ctx.inputs - 1)


def scaled(grad: Tensor, grad_sums: Tensor, counts: Tensor, mean: bool) -> Tensor:
    """Return the gradient that the forward made times what arrives for the sums.

    Args:
        grad: [B, K, *S], d sums / d logits; with `mean`, over the number of known pairs.
        grad_sums: [B, K], what arrives.
        counts: [B, K], known voxels.
        mean: whether `grad` is divided already. After `loss.backward()` every factor is 1 then, and `grad` itself is
            the result, unless the graph is kept: a second backward pass must find it unchanged. Else it is scaled
            where it is, by a kernel that reads the factors and leaves planes alone whose factor is 1.
    """
    if torch.is_grad_enabled() and grad_sums.requires_grad:
        raise RuntimeError("the loss has no second derivative: call backward without create_graph")
    factors = grad_sums * counts.sum().clamp(min=1) if mean else grad_sums
    # Only a plain tensor on the CPU can be asked: a traced one has no values, and a GPU would have to be waited for.
    if type(factors) is Tensor and factors.device.type == "cpu" and bool(((factors - 1).abs() < UNIT_FACTOR).all()):
        return grad.clone() if _graph_is_kept() else grad
    if type(factors) is Tensor and not _graph_is_kept():
        for core in (native, native_cuda):
            if core.can_scale(grad):
                core.scale_gradient(grad, factors)
                return grad
        if triton.scales_in_place(grad):
            triton.scale_gradient(grad, factors.double())
            return grad
    factors = factors.to(compute_dtype(grad.dtype)).reshape(factors.shape + (1,) * (grad.ndim - 2))
    return (grad * factors).to(grad.dtype)


def _graph_is_kept() -> bool:
    """Return whether the running backward pass was asked to retain_graph; true as well if torch cannot tell."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return bool(asked())


def needs_grad(logits: Tensor) -> bool:
    """Return whether the forward has to make the gradient."""
    return torch.is_grad_enabled() and logits.requires_grad


def reduce(
    sums: Tensor,  # [B, K] float64
    counts: Tensor,  # [B, K] int64
    reduction: str,
    dtype: torch.dtype,
) -> Tensor:
    """Reduce per-plane sums to the loss.

    Args:
        sums: sum of w * BCE per (image, organ).
        counts: number of known voxels per (image, organ).
        reduction: mean divides by the number of known pairs; the loss is 0 when there are none.
        dtype: of the logits; the loss is float64 for float64 logits and float32 otherwise.
    """
    if reduction == "mean":
        loss = sums.sum() / counts.sum().clamp(min=1)
    elif reduction == "sum":
        loss = sums.sum()
    else:
        loss = sums
    return loss.to(compute_dtype(dtype))
