"""What training minimises: SMILE's masked heads, and the K+1 softmax that the paper compares with."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import masked_bce_upsampled_stats
from smile_fast.supervision import Policy
from smile_fast.training.config import TrainConfig
from smile_fast.training.ranks import ALONE, Ranks
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import VOID


class StepLoss(NamedTuple):
    """Loss of one step.

    Attributes:
        loss: what is minimised; of several ranks, the sum of their losses is.
        sums: [K] loss by organ, detached. counts: [K] pairs that it was summed over. Both of the whole batch.
    """

    loss: Tensor
    sums: Tensor
    counts: Tensor


class Loss(Protocol):
    """What the training loop calls."""

    def __call__(
        self,
        logits: Tensor,  # [N, M, h, w]
        labels: Tensor,  # [N, P, P] uint8
        cases: Tensor,  # [N] int64
    ) -> StepLoss:
        """The loss of one batch."""
        ...


class MaskedHeads:
    """Eq. 1 of the paper: binary cross-entropy of every organ at every voxel whose label is certain.

    Args:
        tables: supervision tables of all cases, int32 [cases, 256, 2, words].
        device: where the training runs.
        ranks: who have the batch.
    """

    def __init__(self, tables: Tensor, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._tables, self._ranks = tables.to(device), ranks

    def __call__(self, logits: Tensor, labels: Tensor, cases: Tensor) -> StepLoss:
        """Mean over the known (voxel, organ) pairs of the batch; exactly 0 when nothing is known.

        Of several ranks each has known(r) pairs of its own images. Their losses and so their gradients add up to those
        of the whole batch if each divides by the pairs of all: L = sum_r S_r / sum_r known(r). The mean of the ranks'
        own means would weigh a pair by how few others its rank knows.
        """
        reduction = "mean" if self._ranks.world == 1 else "sum"
        tables = self._tables[cases]
        stats = masked_bce_upsampled_stats(logits, labels, tables, reduction=reduction)  # [], [N, K], [N, K]
        loss, sums, counts = stats.loss, stats.sums.sum(dim=0), stats.counts.sum(dim=0)
        if self._ranks.world > 1:
            both = self._ranks.sum(torch.cat([sums, counts.double()]))  # float64 holds counts up to 2^53
            sums, counts = both[: len(sums)], both[len(sums) :].long()
            loss = loss / counts.sum().clamp(min=1)
        return StepLoss(loss, sums, counts)


class MissingIsBackground:
    """The baseline: softmax cross-entropy over K + 1 classes, everything that was not drawn is background.

    Args:
        ranks: who have the batch.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def __call__(self, logits: Tensor, labels: Tensor, cases: Tensor) -> StepLoss:
        """Mean over all voxels of the batch that are not void; visible labels are the classes already."""
        target = labels.long()
        size = (labels.shape[1], labels.shape[2])
        full = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        losses = F.cross_entropy(full, target, ignore_index=VOID, reduction="none")  # [N, P, P]
        known = target != VOID
        loss = losses.sum() / self._ranks.sum(known.sum()).clamp(min=1)
        classes = torch.where(known, target, 0).flatten()
        channels = logits.shape[1]
        sums = torch.zeros(channels, device=loss.device).index_add_(0, classes, losses.detach().flatten())
        # torch.bincount waits for the device to ask how many classes there are.
        counts = torch.zeros(channels, dtype=torch.int64, device=loss.device)
        counts.index_add_(0, classes, torch.ones_like(classes))
        return StepLoss(loss, self._ranks.sum(sums[1:]), self._ranks.sum(counts[1:]))


def loss_of_method(config: TrainConfig, view: TrainingView, device: torch.device, ranks: Ranks = ALONE) -> Loss:
    """The loss of a run's method on the cases of a view."""
    if config.method == "baseline":
        return MissingIsBackground(ranks)
    tables = view.tables(Policy(config.policy), pseudo_negative=config.pseudo_negative)
    return MaskedHeads(tables, device, ranks)
