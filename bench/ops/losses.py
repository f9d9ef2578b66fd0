"""What the two losses share: eager and compiled peers, the exact result, and the check that all agree."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.agreement import Result, assert_agrees, gradient_ulps, relative_error, ulps_of_largest
from bench.comparison import Call, Comparison, Conditions, chosen
from bench.ops.names import BYTES, COMPILE, EAGER, IMPLEMENTATION, ONE_GRAPH
from bench.scenes import Scene, masks

# float16 gradients of a mean over millions of voxels vanish; everybody scales the loss, as one does in training.
LOSS_SCALE = {torch.float16: 2.0**14}

LOSS_ERROR, ULPS, ULPS_OF_LARGEST = "loss, relative", ", ulps", ", ulps of the largest"


class Step(NamedTuple):
    """A loss to be differentiated, over logits [B, K, *s] that require a gradient.

    `plain`: by loss.backward() of a leaf, as a training step does it, and not by torch.autograd.grad.
    """

    logits: Tensor
    scale: float
    plain: bool = False

    def of(self, loss: Callable[[Tensor], Tensor]) -> Result:
        """Compute the loss and its gradient for the logits."""
        value = loss(self.logits)
        weight = None if self.scale == 1 else torch.full_like(value, self.scale)
        if self.plain:
            self.logits.grad = None
            value.backward(weight)  # type: ignore[no-untyped-call]
            made = self.logits.grad
            assert made is not None
            self.logits.grad = None
            return Result(value.detach(), made)
        (gradient,) = torch.autograd.grad(value, self.logits, weight)
        return Result(value.detach(), gradient)


Spread = Callable[[Tensor], Tensor]
"""Logits at their own resolution -> logits at the labels' resolution."""
Gather = Callable[[Tensor], Tensor]
"""Its transpose, for the gradient."""


class Peers:
    """The peers on one workload, their masks ready-made in the dtype of the logits.

    Floats, and not booleans: measured, torch.compile needs half the time with them, for all their bytes.
    """

    def __init__(self, step: Step, of: Scene, conditions: Conditions, spread: Spread, gather: Gather) -> None:
        organs, dtype = step.logits.shape[1], step.logits.dtype
        self._step, self._spread, self._gather = step, spread, gather
        self.known, self.positive = masks(of, organs, dtype)
        self._count = count = max(1, int(self.known.sum(dtype=torch.float64)))
        # reduction="mean" divides before it rounds to 16 bits; a sum would overflow float16.
        self._correction = self.known.numel() / count
        self._per_voxel = step.scale / count
        self._compiled = conditions.compiled(self._loss)
        self._graph = conditions.compiled(self._loss_and_gradient)

    def eager(self) -> Result:
        """What one writes without a kernel."""
        return self._step.of(lambda logits: self._loss(logits, self.known, self.positive))

    def compiled(self) -> Result:
        """The same through torch.compile, differentiated by autograd."""
        return self._step.of(lambda logits: self._compiled(logits, self.known, self.positive))

    def one_graph(self) -> Result:
        """Loss and analytic gradient in one compiled graph, without autograd."""
        return Result(*self._graph(self._step.logits.detach(), self.known, self.positive))

    def calls(self) -> list[Call]:
        """All three."""
        return [Call(EAGER, self.eager), Call(COMPILE, self.compiled), Call(ONE_GRAPH, self.one_graph)]

    def exact(self) -> Result:
        """The loss and its gradient in float64."""
        known, positive = self.known.double(), self.positive.double()

        def loss(logits: Tensor) -> Tensor:
            full = self._spread(logits)
            return F.binary_cross_entropy_with_logits(full, positive, weight=known, reduction="sum") / self._count

        return Step(self._step.logits.detach().double().requires_grad_(), self._step.scale).of(loss)

    def _loss(self, logits: Tensor, known: Tensor, positive: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(self._spread(logits), positive, weight=known, reduction="mean")
        return losses * self._correction

    def _loss_and_gradient(self, logits: Tensor, known: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        full = self._spread(logits)
        losses = known * (full.clamp(min=0) - full * positive + torch.log1p(torch.exp(-full.abs())))
        slopes = known * (torch.sigmoid(full) - positive) * self._per_voxel
        return losses.mean() * self._correction, self._gather(slopes)


def compare(
    op: str, conditions: Conditions, step: Step, of: Scene, ours: Sequence[Call], peers: Peers, floors: Sequence[Call]
) -> Comparison:
    """Bring ours, which return a Result, and the peers together.

    Args:
        op: name of the op. conditions: where it runs.
        step: the logits. of: labels and table.
        ours: variants, the first as users call it.
        peers: of the workload.
        floors: what no implementation can pass.
    """
    others = peers.calls()

    def check() -> dict[str, float]:
        exact = peers.exact()
        found = []
        for call in (*ours, *others):
            call.refresh()
            result = call.run()
            assert_agrees(call.name, result, exact)
            if call in ours:
                found.append(errors(result, exact))
        return {name: max(error[name] for error in found) for name in found[0]}

    logits, known = step.logits, peers.known
    facts = {
        IMPLEMENTATION: chosen(op, conditions.device),
        "logits": f"{list(logits.shape)} {str(logits.dtype).removeprefix('torch.')}",
        "labels": list(of.labels.shape),
        "missing": of.missing,
        "labelled": round(float((of.labels != 0).double().mean()), 4),
        "known": round(float(known.sum(dtype=torch.float64)) / known.numel(), 4),
        BYTES: 2 * logits.numel() * logits.element_size() + of.labels.numel(),
    }
    return Comparison(ours, [*others, *floors], check, facts)


def errors(result: Result, exact: Result) -> dict[str, float]:
    """Our errors; a 16-bit gradient has its own names, because it has its own goals."""
    kind = "gradient" if result.gradient.dtype == torch.float32 else "16-bit gradient"
    return {
        LOSS_ERROR: relative_error(result.loss, exact.loss),
        f"{kind}{ULPS}": gradient_ulps(result.gradient, exact.gradient),
        f"{kind}{ULPS_OF_LARGEST}": ulps_of_largest(result.gradient, exact.gradient),
    }
