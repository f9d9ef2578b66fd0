"""BatchNorm over the images of all ranks, or with statistics that stand still.

Both are BatchNorms with the parameters and buffers of the plain ones, under the same names: checkpoints and files know
nothing of them, and in evaluation they are the plain ones.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from smile_fast.training.ranks import Ranks

_PIXELS = (0, 2, 3)  # axes of [N, C, h, w] over which a channel's statistics are taken


def set_batch_norm(model: nn.Module, kind: str, ranks: Ranks) -> None:
    """Replace the BatchNorms of a network in place; parameters and buffers stay the same tensors.

    Args:
        model: the network.
        kind: "synchronised", which a process that is alone does as it is, or "frozen".
        ranks: whose images a batch has.
    """
    if kind == "synchronised" and ranks.world == 1:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = kind == "frozen"
                own = FrozenBatchNorm2d(child) if frozen else SynchronisedBatchNorm2d(child, ranks)
                setattr(module, name, own.train(child.training))


class _Replaced(nn.BatchNorm2d):
    """A BatchNorm with the parameters and buffers of another one."""

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        for name, buffer in plain.named_buffers():
            setattr(self, name, buffer)


class FrozenBatchNorm2d(_Replaced):
    """Normalises by the running statistics also in training, and leaves them; scale and shift are learned."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Stay in evaluation mode."""
        return super().train(False)


class SynchronisedBatchNorm2d(_Replaced):
    """In training, what a BatchNorm of one process would do with the images of all ranks.

    torch's own refuses tensors of the CPU.
    """

    def __init__(self, plain: nn.BatchNorm2d, ranks: Ranks) -> None:
        super().__init__(plain)
        self._ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape; N may differ from rank to rank."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            mean, variance, pixels = _statistics(x, self._ranks)
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_((variance * (pixels / (pixels - 1))).to(variance.dtype), self.momentum or 0.0)
        given = (x, self.weight, self.bias, mean, variance, pixels, self.eps, self._ranks)
        return cast(Tensor, _Normalise.apply(*given))  # type: ignore[no-untyped-call]


def _statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] over the pixels of all ranks, and their number [].

    Numerics: every rank's mean m_r and variance v_r are float32 with float64 sums where torch has them. They are joined
        in float64: E x^2 = sum_r n_r (v_r + m_r^2) / M, which loses nothing that float32 holds while |mean| is less
        than some 10^4 standard deviations.
    """
    exact = x if x.dtype == torch.float64 else x.float()  # of bfloat16 torch would round both to bfloat16
    variance, mean = torch.var_mean(exact, _PIXELS, correction=0)
    first, second = mean.double(), variance.double() + mean.double().square()
    pixels = x.numel() // x.shape[1]
    sums = ranks.sum(torch.cat([first * pixels, second * pixels, first.new_full((1,), pixels)]))
    total = sums[-1]
    first, second = (sums[:-1] / total).chunk(2)
    return first.to(mean.dtype), (second - first.square()).clamp(min=0).to(mean.dtype), total


class _Normalise(torch.autograd.Function):
    """y = w (x - m) s + b with s = 1 / sqrt(v + eps), where mean m and variance v are those of all M pixels.

    m and v depend on every x of every rank. With g = dL/dy and n = (x - m) s:

        dL/dw = sum g n,  dL/db = sum g,  dL/dx = w s (g - (sum g) / M - n (sum g n) / M)

    (Ioffe and Szegedy, 2015, section 3). In dL/dx both sums go over all ranks. In dL/dw and dL/db they are those of
    this rank: they are added up with all other gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [N, C, h, w]
        weight: Tensor,  # [C]
        bias: Tensor,  # [C]
        mean: Tensor,  # [C]
        variance: Tensor,  # [C]
        pixels: Tensor,  # []
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        """Return y."""
        ctx.save_for_backward(x, weight, mean, variance, pixels)
        ctx.eps, ctx.ranks = eps, ranks
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, variance, pixels = ctx.saved_tensors
        kind = torch.promote_types(x.dtype, torch.float32)
        exact = x.dtype == kind
        # Of a BatchNorm in evaluation: w s g, sum g n and sum g, in one pass.
        scaled, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [exact, True, True]
        )
        sums = ctx.ranks.sum(torch.cat([grad_weight, grad_bias]).double()) / pixels
        of_products, of_gradients = sums.chunk(2)
        scale = (variance.double() + ctx.eps).rsqrt()
        # w s (a + n c) = (w s a - w s c s m) + (w s c s) x
        slope = weight * scale * of_products * scale
        offset = weight * scale * of_gradients - slope * mean
        slope, offset, factor = (term.to(kind)[:, None, None] for term in (slope, offset, weight * scale))
        if not exact:  # in bfloat16 each term would be rounded, and they cancel each other
            scaled = grad.to(kind) * factor
        grad_x = scaled.addcmul_(x.to(kind), slope, value=-1).sub_(offset).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
