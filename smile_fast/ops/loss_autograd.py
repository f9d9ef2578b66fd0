"""What the two losses share: schema, launcher, autograd formula, and the loss that goes backward without a launch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smile_fast.ops.native.core import Core
from smile_fast.ops.reference import compute_dtype, divides_gradient, known_pairs, scaled
from smile_fast.ops.registry import Formula
from smile_fast.ops.scale_gradient import scale_gradient

NO_SECOND_DERIVATIVE = "the loss has no second derivative: call backward without create_graph"
SCHEMA = (
    "(Tensor logits, Tensor labels, Tensor table, bool with_grad, bool mean)"
    " -> (Tensor loss, Tensor sums, Tensor counts, Tensor grad)"
)

Results = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a loss's op: loss [], sums [B, K] float64, counts [B, K] int64, gradient of the loss like the logits, which in
float16 is that of the sums (see `reference.divides_gradient`)."""
Compute = Callable[[Tensor, bool, bool], Results]
"""Runs a loss's op for logits, with or without gradient, for the mean or the sum."""


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


def fake(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool) -> Results:
    """Return results of the right shapes and dtypes: loss [], sums and counts [B, K], grad like logits or [0]."""
    return *_new_sums(logits), logits.new_empty(logits.shape if with_grad else (0,))


def _new_sums(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss [], sums [B, K] float64 and counts [B, K] int64 with unspecified contents."""
    pairs = logits.shape[:2]
    loss = logits.new_empty((), dtype=compute_dtype(logits.dtype))
    return loss, logits.new_empty(pairs, dtype=torch.float64), logits.new_empty(pairs, dtype=torch.int64)


def launch(
    core: Core, op: str, logits: Tensor, labels: Tensor, table: Tensor, gradient: Tensor | None, **others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel of a loss; the gradient is contiguous and written, and may be the logits.

    Returns:
        loss, sums, counts.
    """
    batch, organs = logits.shape[:2]
    loss, sums, counts = _new_sums(logits)
    others |= {"logits": logits, "labels": labels, "table": table, "batch": batch, "organs": organs}
    core.run(op, logits.dtype, loss=loss, sums=sums, counts=counts, gradient=gradient, **others)
    return loss, sums, counts


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    """Keep the gradient that the forward made; counts and the gradient itself are constants to autograd."""
    logits, _, _, ctx.with_grad, ctx.mean = inputs
    ctx.divided = divides_gradient(logits.dtype, ctx.mean)
    ctx.set_materialize_grads(False)  # no zeros of the size of `grad` for the results that have no gradient
    _, _, counts, grad = output
    ctx.mark_non_differentiable(counts, grad)
    ctx.save_for_backward(counts, grad)


def _backward(
    ctx: Any,
    grad_loss: Tensor | None,  # []
    grad_sums: Tensor | None,  # [B, K]
    grad_counts: Tensor | None,
    grad_grad: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Scale the forward's gradient by what arrives for the loss and for the sums, one factor an (image, organ)."""
    if not ctx.with_grad:
        raise RuntimeError("the loss was computed with with_grad=False: it has no gradient for its logits")
    arriving = [one for one in (grad_loss, grad_sums) if one is not None]
    if torch.is_grad_enabled() and any(one.requires_grad for one in arriving):
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
    pairs = known_pairs(counts).double()
    factors = []
    if grad_loss is not None:
        factors.append(grad_loss / pairs if ctx.mean and not ctx.divided else grad_loss.double())
    if grad_sums is not None:
        factors.append(grad_sums * pairs if ctx.divided else grad_sums)
    arrived = scaled(grad, sum(factors[1:], factors[0]).expand(counts.shape)) if factors else None
    return arrived, None, None, None, None


FORMULA = Formula(_setup_context, _backward)


_ONES: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _one(dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return the 1 that starts a plain backward pass: the same tensor for all of them.

    It is made anew where somebody's hook has changed it. None if it would have to be made while a CUDA graph is
    captured: it would hold nothing before that is replayed.
    """
    if not _is_pristine(_ONES.get((dtype, device))):
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        with torch.inference_mode(False):
            _ONES[dtype, device] = torch.ones((), dtype=dtype, device=device)
    return _ONES[dtype, device]


def _is_pristine(one: Tensor | None) -> bool:
    return one is not None and one._version == 0  # which counts changes in place


class Loss(Tensor):
    """A loss [] whose plain `backward()` puts nothing into the device's queue, but for a mean of float16 logits.

    Torch would fill a new tensor with 1, and whether what arrives for a loss is 1 cannot be asked without waiting for
    the device. This 1 is known by its identity. In all other respects, and after any operation, it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # a gap in the stubs

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ) -> None:
        """See `torch.Tensor.backward`."""
        if gradient is None and self.ndim == 0:
            gradient = _one(self.dtype, self.device)
        torch.autograd.backward(self, gradient, retain_graph, create_graph, inputs=inputs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled as a plain tensor: a checkpoint that holds a loss can be read by anybody."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


class OwnGradient(torch.autograd.Function):
    """The loss as autograd sees it outside of torch.compile: nobody else holds the gradient that its forward made.

    So the backward pass may give it away, or scale it where it is. The registered formula of an op may not: there, the
    gradient is one of the op's results.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, compute: Compute, reduction: str) -> LossStats:
        """Return what `loss_stats` does."""
        mean = reduction == "mean"
        loss, sums, counts, grad = compute(logits.detach(), True, mean)
        ctx.divides = mean and not divides_gradient(logits.dtype, mean)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(sums, counts)
        ctx.save_for_backward(counts, grad)
        # No view of another tensor: a loss may be changed in place.
        own = Tensor._make_subclass(Loss, _chosen(loss, sums, reduction))
        return LossStats(own, sums, counts)

    @staticmethod
    def backward(ctx: Any, factors: Tensor | None, *constants: None) -> tuple[Tensor | None, None, None]:
        """Return the gradient times factors [] or [B, K]: itself, scaled in place if by something other than 1.

        It is copied if the graph is kept, or if torch cannot tell: a second backward pass will want it.
        """
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        counts, grad = ctx.saved_tensors  # [B, K], [B, K, *S]
        if factors is None:
            return None, None, None
        kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
        if not ctx.divides and _is_one(factors):
            return grad.clone() if kept else grad, None, None
        factors = factors.to(torch.float64) / (known_pairs(counts) if ctx.divides else 1)
        factors = factors.expand(grad.shape[:2])
        if kept:
            return scaled(grad, factors), None, None
        scale_gradient(grad, factors)
        return grad, None, None


def _is_one(factors: Tensor) -> bool:
    """Return whether all factors are known to be 1; those on a GPU are, without waiting, by their identity alone."""
    one = _ONES.get((factors.dtype, factors.device))
    if factors is one and _is_pristine(one):
        return True
    return factors.device.type == "cpu" and all(factor == 1 for factor in factors.flatten().tolist())


def loss_stats(
    logits: Tensor,  # [B, K, *S]
    compute: Compute,
    reduction: str,
) -> LossStats:
    """Return the loss, which is differentiable, with its sums and counts.

    Args:
        logits: what the loss is differentiated for.
        compute: runs the op.
        reduction: "mean" divides by the number of known pairs; the loss is 0 when there are none. "sum", or "none" for
            one sum an (image, organ).
    """
    with_grad = torch.is_grad_enabled() and logits.requires_grad
    if with_grad and not torch.compiler.is_compiling():
        return LossStats(*OwnGradient.apply(logits, compute, reduction))  # type: ignore[no-untyped-call]
    loss, sums, counts, _ = compute(logits, with_grad, reduction == "mean")
    return LossStats(_chosen(loss, sums, reduction), sums.detach(), counts)


def _chosen(loss: Tensor, sums: Tensor, reduction: str) -> Tensor:
    """Return the loss [], or for "none" the sums [B, K] in the loss's dtype and in memory of their own."""
    return loss if reduction != "none" else sums.to(loss.dtype, copy=True)
