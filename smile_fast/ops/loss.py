"""What the two losses share: the fake kernel, the autograd formula and the reduction."""

from typing import Any

import torch
from torch import Tensor

from smile_fast.ops.reference import compute_dtype


def fake(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return results of the right shapes and dtypes: sums [B, K], counts [B, K], grad like logits or [0]."""
    pairs = logits.shape[:2]
    return (
        logits.new_empty(pairs, dtype=torch.float64),
        logits.new_empty(pairs, dtype=torch.int64),
        logits.new_empty(logits.shape if with_grad else (0,)),
    )


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep the gradient that the forward made; counts and the gradient itself are constants to autograd."""
    _, counts, grad = output
    ctx.with_grad = inputs[-1]
    ctx.mark_non_differentiable(counts, grad)
    ctx.save_for_backward(grad)


def backward(
    ctx: Any,
    grad_sums: Tensor,  # [B, K]
    grad_counts: Tensor | None,
    grad_grad: Tensor | None,
) -> tuple[Tensor, None, None, None]:
    """Scale d sums / d logits by what arrives for the sums, one factor an (image, organ) plane."""
    if not ctx.with_grad:
        raise RuntimeError("the loss was computed with with_grad=False: it has no gradient for its logits")
    if torch.is_grad_enabled() and grad_sums.requires_grad:
        raise RuntimeError("the loss has no second derivative: call backward without create_graph")
    (grad,) = ctx.saved_tensors  # [B, K, *S]
    scale = grad_sums.to(compute_dtype(grad.dtype)).reshape(grad_sums.shape + (1,) * (grad.ndim - 2))
    return (grad * scale).to(grad.dtype), None, None, None


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
