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
Compute = Callable[[Tensor, bool], Results]


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
    return *_new_sums(logits, logits.shape[:2]), logits.new_empty(logits.shape if with_grad else (0,))


def _new_sums(logits: Tensor, pairs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return sums [B, K] float64 and counts [B, K] int64 with unspecified contents; pairs: (B, K)."""
    return logits.new_empty(pairs, dtype=torch.float64), logits.new_empty(pairs, dtype=torch.int64)


def launch(
    core: Core, op: str, logits: Tensor, labels: Tensor, table: Tensor, gradient: Tensor | None, **others: Any
) -> tuple[Tensor, Tensor]:
    """Run the kernel of a loss; the gradient is contiguous and written, and may be the logits; return sums, counts."""
    batch, organs = logits.shape[:2]
    sums, counts = _new_sums(logits, (batch, organs))
    others |= {"logits": logits, "labels": labels, "table": table, "batch": batch, "organs": organs}
    core.run(op, logits.dtype, sums=sums, counts=counts, gradient=gradient, **others)
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
    def forward(ctx: Any, logits: Tensor, compute: Compute, reduction: str, mean: bool) -> LossStats:
        """Return what `loss_stats` does."""
        sums, counts, grad = compute(logits.detach(), True)
        ctx.divides = reduction == "mean" and not mean
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(sums, counts)
        ctx.save_for_backward(counts, grad)
        return LossStats(reduce(sums, counts, reduction, logits.dtype), sums, counts)

    @staticmethod
    def backward(ctx: Any, factors: Tensor | None, *constants: None) -> tuple[Tensor | None, None, None, None]:
        """Return the gradient times factors [] or [B, K]: itself, scaled in place if by something other than 1.

        It is copied if the graph is kept, or if torch cannot tell: a second backward pass will want it.
        """
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
        if factors is None:
            return None, None, None, None
        if ctx.divides:
            factors = factors.to(torch.float64) / known_pairs(counts)
        kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
        # Only on the CPU can be asked: a GPU would have to be waited for.
        if factors.device.type == "cpu" and all(factor == 1 for factor in factors.flatten().tolist()):
            return grad.clone() if kept else grad, None, None, None
        factors = factors.to(torch.float64).expand(grad.shape[:2])
        if kept:
            return scaled(grad, factors), None, None, None
        scale_gradient(grad, factors)
        return grad, None, None, None


def loss_stats(
    logits: Tensor,  # [B, K, *S]
    compute: Compute,
    reduction: str,
    mean: bool = False,
) -> LossStats:
    """Return the loss, which is differentiable, with its sums and counts.

    Args:
        logits: what the loss is differentiated for.
        compute: called with logits, and with whether the gradient is needed; runs the op.
        reduction: see `reduce`.
        mean: whether that gradient was divided by the number of known pairs; for the reduction "mean" alone.
    """
    with_grad = torch.is_grad_enabled() and logits.requires_grad
    if with_grad and not torch.compiler.is_compiling():
        stats = OwnGradient.apply(logits, compute, reduction, mean)  # type: ignore[no-untyped-call]
        return LossStats(*cast(Results, stats))
    sums, counts, _ = compute(logits, with_grad)
    return LossStats(reduce(sums, counts, reduction, logits.dtype), sums.detach(), counts)


def reduce(sums: Tensor, counts: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """Reduce sums [B, K] and counts [B, K] to the loss; float64 for float64 logits, else float32.

    "mean" divides by the number of known pairs; the loss is 0 when there are none.
    """
    loss = sums if reduction == "none" else sums.sum()
    if reduction == "mean":
        loss = loss / known_pairs(counts)
    narrow = loss.to(compute_dtype(dtype))
    return narrow.clone() if narrow is sums else narrow
