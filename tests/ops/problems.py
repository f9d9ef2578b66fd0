"""Random problems for the losses, and what their result must be, from the formulas alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smile_fast.ops import available

LOSSES = ("masked_bce", "masked_bce_upsampled")
IMPLEMENTATIONS = {op: [name for name, usable, _ in available(op, "cpu") if usable] for op in LOSSES}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def taken(op: str) -> list[tuple[str, torch.dtype]]:
    """What runs on the CPU, with each dtype that it takes: float64 is the reference's alone."""
    names = [name for name, usable, _ in available(op, "cpu") if usable]
    return [(name, dtype) for name in names for dtype in DTYPES if name == "reference" or dtype != torch.float64]


class Problem(NamedTuple):
    """Logits, labels and a table of random bits: more than any policy would ever ask for."""

    logits: Tensor  # [B, K, *S]
    labels: Tensor  # [B, *S] uint8
    table: Tensor  # [B, 256, 2, words] int32
    known: Tensor  # [B, K, *S] bool
    positive: Tensor  # [B, K, *S] bool


def problem(
    batch: int, organs: int, size: tuple[int, ...], dtype: torch.dtype, *, low: tuple[int, ...] = (), seed: int = 0
) -> Problem:
    """Make a problem with labels of `size`, and logits of the same size or of `low`."""
    random = np.random.default_rng(seed)
    words = -(-organs // 32)
    table = random.integers(0, 2**32, (batch, 256, 2, words), dtype=np.uint32)
    labels = random.integers(0, 256, (batch, *size), dtype=np.uint8)
    image = np.arange(batch).reshape(-1, 1, *[1] * len(size))
    organ = np.arange(organs).reshape(1, -1, *[1] * len(size))
    known, positive = (
        torch.from_numpy(table[image, labels[:, None], which, organ // 32] >> (organ % 32).astype(np.uint32) & 1).bool()
        for which in (0, 1)
    )
    logits = torch.from_numpy(random.normal(0, 4, (batch, organs, *(low or size)))).to(dtype)
    return Problem(logits, torch.from_numpy(labels), torch.from_numpy(table.view(np.int32)), known, positive)


class NoAtenKernels(TorchDispatchMode):
    """Within it nothing of torch computes: only memory is handed out, and views of it are made."""

    ALLOWED = (
        "empty",
        "new_empty",
        "empty_like",
        "empty_strided",
        "detach",
        "view",
        "alias",
        "slice",
        "select",
        "expand",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        assert namespace == "smile_fast" or name.partition(".")[0] in self.ALLOWED, f"torch runs {func.name()}"
        return func(*args, **(kwargs or {}))


def plain_torch(logits: Tensor, given: Problem) -> Tensor:
    """Sums [B, K] of the loss as one would write it in torch, differentiable, in the logits' dtype."""
    target = given.positive.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(given.known, losses, 0).flatten(2).sum(2)


def exact(given: Problem) -> tuple[Tensor, Tensor]:
    """Return sums [B, K] and d sums / d logits [B, K, *S] in float64, without a cancellation anywhere."""
    margin = torch.where(given.positive, -given.logits.double(), given.logits.double())
    losses = F.softplus(margin, threshold=1e9)  # torch's default switches to the identity at 20
    slope = torch.sigmoid(margin)
    gradient = torch.where(given.known, torch.where(given.positive, -slope, slope), 0)
    return torch.where(given.known, losses, 0).flatten(2).sum(2), gradient


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    leaf = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad
