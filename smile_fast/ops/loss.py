"""What the two losses share: the fake kernel, the autograd formula and the reduction."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from smile_fast.ops.native import scale_gradient as native
from smile_fast.ops.native_cuda import masked_bce as native_cuda
from smile_fast.ops.reference import compute_dtype
from smile_fast.ops.triton_kernels import core as triton

NO_SECOND_DERIVATIVE = "the loss has no second derivative: call backward without create_graph"


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
    if torch.is_grad_enabled() and grad_sums is not None and grad_sums.requires_grad:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
    arrived = None if grad_sums is None else _product(grad, _factors(grad_sums, counts, ctx.mean))
    return arrived, *[None] * (ctx.inputs - 1)


class OwnGradient(torch.autograd.Function):
    """The loss as autograd sees it outside of torch.compile: nobody else holds the gradient that its forward made.

    So the backward pass may give it away, or scale it where it is. The registered formula of an op may not: there, the
    gradient is one of the op's results. The reduction is done here, too: as operations of their own, its few numbers
    would take autograd a tenth of a millisecond a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        compute: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
        reduction: str | None,
        mean: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return what `loss_and_counts` does; compute: detached logits to sums, counts and gradient."""
        sums, counts, grad = compute(logits.detach())
        ctx.divides = reduction == "mean" and not mean
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(counts)
        ctx.save_for_backward(counts, grad)
        return reduce(sums, counts, reduction, logits.dtype), counts

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        """Scale the gradient, if by something other than 1, in place unless the graph is kept."""
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
        factors = arriving[0]  # [] or [B, K]
        if factors is None:
            return None, None, None, None
        if ctx.divides:
            factors = factors.to(torch.float64) / counts.sum().clamp(min=1)
        return _scaled(grad, factors, counts.shape), None, None, None


def loss_and_counts(
    logits: Tensor,  # [B, K, *S]
    compute: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    reduction: str | None,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the loss, which is differentiable, and the counts, [B, K].

    Args:
        logits: what the loss is differentiated for.
        compute: logits to sums, counts and gradient, as the ops do.
        reduction: see `reduce`.
        mean: whether that gradient was divided by the number of known pairs; for the reduction "mean" alone.
    """
    if torch.compiler.is_compiling() or not needs_grad(logits):
        sums, counts, _ = compute(logits)
        return reduce(sums, counts, reduction, logits.dtype), counts
    return cast(
        tuple[Tensor, Tensor],
        OwnGradient.apply(logits, compute, reduction, mean),  # type: ignore[no-untyped-call]
    )


def _factors(grad_sums: Tensor, counts: Tensor, mean: bool) -> Tensor:
    """Return [B, K] float64, by what to multiply; `mean`: the gradient was divided by the number of known pairs."""
    return grad_sums * counts.sum().clamp(min=1) if mean else grad_sums


def _scaled(
    grad: Tensor,  # [B, K, *S]
    factors: Tensor,  # [] or [B, K]
    planes: torch.Size,
) -> Tensor:
    """Return the product; the gradient itself, overwritten if need be, unless a second backward pass will want it."""
    kept = _graph_is_kept()
    # Only on the CPU can be asked: a GPU would have to be waited for.
    if factors.device.type == "cpu" and _are_one(factors):
        return grad.clone() if kept else grad
    factors = factors.to(torch.float64).expand(planes)
    if not kept:
        for core in (native, native_cuda, triton):
            if core.can_scale(grad):
                core.scale_gradient(grad, factors)
                return grad
    return _product(grad, factors)


def _are_one(factors: Tensor) -> bool:
    return factors.item() == 1 if factors.ndim == 0 else bool((factors == 1).all())


def _product(grad: Tensor, factors: Tensor) -> Tensor:
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
    reduction: str | None,
    dtype: torch.dtype,
) -> Tensor:
    """Reduce per-plane sums to the loss.

    Args:
        sums: sum of w * BCE per (image, organ).
        counts: number of known voxels per (image, organ).
        reduction: mean divides by the number of known pairs; the loss is 0 when there are none. None: the sums as they
            are.
        dtype: of the logits; a loss is float64 for float64 logits and float32 otherwise.
    """
    if reduction is None:
        return sums
    if reduction == "mean":
        loss = sums.sum() / counts.sum().clamp(min=1)
    elif reduction == "sum":
        loss = sums.sum()
    else:
        loss = sums
    return loss.to(compute_dtype(dtype))
