"""What the two losses share: schema, launcher, the autograd formula, and the reduction to one number."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from smile_fast.ops.native.core import Core
from smile_fast.ops.reference import compute_dtype, known_pairs, scaled
from smile_fast.ops.registry import Formula
from smile_fast.ops.scale_gradient import scale_gradient

NO_SECOND_DERIVATIVE = "the loss has no second derivative: call backward without create_graph"

Results = tuple[Tensor, Tensor, Tensor]
"""Of a loss's op: sums [B, K] float64, counts [B, K] int64, gradient of the sums or of the mean, like the logits."""


class LossStats(NamedTuple):
    """A loss and what it was reduced from.

    Attributes:
        loss: [] or, for the reduction "none", [B, K]; differentiable. float64 for float64 logits, else float32.
        sums: [B, K] float64, sum over voxels of w * BCE; detached.
        counts: [B, K] int64, number of known voxels. The mean loss is `sums.sum() / counts.sum().clamp(min=1)`.
    """

    loss: Tensor
    sums: Tensor
    counts: Tensor


def fake(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool = False) -> Results:
    """Return results of the right shapes and dtypes: sums [B, K], counts [B, K], grad like logits or [0]."""
    return *_new_sums(logits), logits.new_empty(logits.shape if with_grad else (0,))


def _new_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums [B, K] float64 and counts [B, K] int64 with unspecified contents."""
    pairs = logits.shape[:2]
    return logits.new_empty(pairs, dtype=torch.float64), logits.new_empty(pairs, dtype=torch.int64)


def launch(
    core: Core, op: str, logits: Tensor, labels: Tensor, table: Tensor, gradient: Tensor | None, **others: Any
) -> tuple[Tensor, Tensor]:
    """Run the kernel of a loss; the gradient is contiguous and written, and may be the logits; return sums, counts."""
    sums, counts = _new_sums(logits)
    shape = {"batch": logits.shape[0], "organs": logits.shape[1]}
    results = {"sums": sums, "counts": counts, "gradient": gradient}
    core.run(op, logits.dtype, logits=logits, labels=labels, table=table, **shape, **results, **others)
    return sums, counts


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    """Keep the gradient that the forward made; counts and the gradient itself are constants to autograd."""
    _, _, _, ctx.with_grad, *mean = inputs
    ctx.mean, ctx.inputs = mean == [True], len(inputs)
    ctx.set_materialize_grads(False)  # no zeros of the size of `grad` for the results that have no gradient
    _, counts, grad = output
    ctx.mark_non_differentiable(counts, grad)
    ctx.save_for_backward(counts, grad)


def _backward(
    ctx: Any,
    grad_sums: Tensor | None,  # [B, K]
    grad_counts: Tensor | None,
    grad_grad: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Scale d sums / d logits by what arrives for the sums, one factor an (image, organ)."""
    if not ctx.with_grad:
        raise RuntimeError("the loss was computed with with_grad=False: it has no gradient for its logits")
    if torch.is_grad_enabled() and grad_sums is not None and grad_sums.requires_grad:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
    arrived = None
    if grad_sums is not None:  # with `mean`, the gradient was divided already
        arrived = scaled(grad, grad_sums * known_pairs(counts) if ctx.mean else grad_sums)
    return arrived, *[None] * (ctx.inputs - 1)


FORMULA = Formula(_setup_context, _backward)


class OwnGradient(torch.autograd.Function):
    """The loss as autograd sees it outside of torch.compile: nobody else holds the gradient that its forward made.

    So the backward pass may give it away, or scale it where it is. The registered formula of an op may not: there, the
    gradient is one of the op's results. The reduction is done here, too: as operations of their own, its few numbers
    would take autograd a tenth of a millisecond a step.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, compute: Callable[[Tensor], Results], reduction: str, mean: bool
    ) -> LossStats:
        """Return what `loss_stats` does; compute: detached logits to sums, counts and gradient."""
        sums, counts, grad = compute(logits.detach())
        ctx.divides = reduction == "mean" and not mean
        ctx.set_materialize_grads(False)
        loss = reduce(sums, counts, reduction, logits.dtype)
        ctx.mark_non_differentiable(sums, counts)
        ctx.save_for_backward(counts, grad)
        return LossStats(loss, sums, counts)

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
            factors = factors.to(torch.float64) / known_pairs(counts)
        return _given_away(grad, factors), None, None, None


def loss_stats(
    logits: Tensor,  # [B, K, *S]
    compute: Callable[[Tensor], Results],
    reduction: str,
    mean: bool = False,
) -> LossStats:
    """Return the loss, which is differentiable, with its sums and counts.

    Args:
        logits: what the loss is differentiated for.
        compute: logits to sums, counts and gradient, as the ops do.
        reduction: see `reduce`.
        mean: whether that gradient was divided by the number of known pairs; for the reduction "mean" alone.
    """
    if torch.compiler.is_compiling() or not needs_grad(logits):
        sums, counts, _ = compute(logits)
        return LossStats(
            reduce(sums, counts, reduction, logits.dtype), sums.detach() if sums.requires_grad else sums, counts
        )
    stats = OwnGradient.apply(logits, compute, reduction, mean)  # type: ignore[no-untyped-call]
    return LossStats(*cast(Results, stats))


def _given_away(
    grad: Tensor,  # [B, K, *S]
    factors: Tensor,  # [] or [B, K]
) -> Tensor:
    """Return the product; the gradient itself, overwritten if need be, unless a second backward pass will want it."""
    kept = _graph_is_kept()
    # Only on the CPU can be asked: a GPU would have to be waited for.
    if factors.device.type == "cpu" and _are_one(factors):
        return grad.clone() if kept else grad
    factors = factors.to(torch.float64).expand(grad.shape[:2])
    if kept:
        return scaled(grad, factors)
    scale_gradient(grad, factors)
    return grad


def _are_one(factors: Tensor) -> bool:
    return factors.item() == 1 if factors.ndim == 0 else bool((factors == 1).all())


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
    """Reduce the sums of every (image, organ) to the loss.

    Args:
        sums: sum of w * BCE per (image, organ).
        counts: number of known voxels per (image, organ).
        reduction: mean divides by the number of known pairs; the loss is 0 when there are none.
        dtype: of the logits; a loss is float64 for float64 logits and float32 otherwise.
    """
    loss = sums if reduction == "none" else sums.sum()
    if reduction == "mean":
        loss = loss / known_pairs(counts)
    narrow = loss.to(compute_dtype(dtype))
    return narrow.clone() if narrow is sums else narrow
