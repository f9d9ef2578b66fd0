"""What training minimises: SMILE's masked heads, and the K+1 softmaxes that they are compared with."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import masked_bce_upsampled_stats
from smile_fast.supervision import Policy, State
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
        losses = F.cross_entropy(_upsampled(logits, labels), target, ignore_index=VOID, reduction="none")  # [N, P, P]
        return _mean_over_voxels(losses, target, logits.shape[1], self._ranks)


class MarginalSoftmax:
    """Softmax over K + 1 classes in which background stands for "background or an organ that was not drawn here".

    The loss of a voxel is the sum of two terms, with equal weights:

    - marginal cross-entropy: -log p_o at a voxel labelled organ o, and -log(p_0 + sum of the missing organs' p) at
      one labelled 0;
    - exclusion cross-entropy: at a voxel labelled organ o, log(1 + p_k) summed over the missing organs k other than o.

    The exclusion loss of the source is the sum over classes k of e_k log(p_k + eps) with eps = 1, where e_k says that a
    class which excludes k is labelled; which classes those are is a choice. Here k runs over the missing organs alone:
    background and drawn organs are pushed down by the marginal term already. The authors' program lets k run over all
    classes, and takes the Dice form of the exclusion loss alone, with weight 2. Dice forms are left out here, for all
    methods here minimise a cross-entropy.

    Args:
        missing: bool [cases, K], which organs are missing or hidden in which case.
        device: where the training runs.
        ranks: who have the batch.

    Source: Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", Medical
        Image Analysis 2021.
    """

    def __init__(self, missing: Tensor, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._missing, self._ranks = missing.to(device), ranks

    def __call__(self, logits: Tensor, labels: Tensor, cases: Tensor) -> StepLoss:
        """Mean over all voxels of the batch that are not void."""
        target = labels.long()
        missing = self._missing[cases][:, :, None, None]  # [N, K, 1, 1]
        logs = F.log_softmax(_upsampled(logits, labels), dim=1)  # [N, K + 1, P, P]
        organs = logs[:, 1:]
        background = torch.cat([logs[:, :1], organs.masked_fill(~missing, -torch.inf)], dim=1)
        merged = torch.cat([background.logsumexp(dim=1, keepdim=True), organs], dim=1)
        marginal = F.nll_loss(merged, target, ignore_index=VOID, reduction="none")  # [N, P, P]
        values = torch.arange(1, logits.shape[1], device=target.device)[:, None, None]  # [K, 1, 1]
        labelled = (target > 0) & (target != VOID)
        excluded = missing & labelled[:, None] & (target[:, None] != values)  # [N, K, P, P]
        exclusion = (organs.exp().log1p() * excluded).sum(dim=1)
        return _mean_over_voxels(marginal + exclusion, target, logits.shape[1], self._ranks)


def _upsampled(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits in float32 at the size of the labels, [N, M, P, P]."""
    size = (labels.shape[1], labels.shape[2])
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def _mean_over_voxels(losses: Tensor, target: Tensor, channels: int, ranks: Ranks) -> StepLoss:
    """Mean of the losses [N, P, P] of all ranks' voxels that are not void, which have none; by organ, their sums."""
    known = target != VOID
    loss = losses.sum() / ranks.sum(known.sum()).clamp(min=1)
    classes = torch.where(known, target, 0).flatten()
    sums = torch.zeros(channels, device=loss.device).index_add_(0, classes, losses.detach().flatten())
    # torch.bincount waits for the device to ask how many classes there are.
    counts = torch.zeros(channels, dtype=torch.int64, device=loss.device)
    counts.index_add_(0, classes, torch.ones_like(classes))
    return StepLoss(loss, ranks.sum(sums[1:]), ranks.sum(counts[1:]))


def loss_of_method(config: TrainConfig, view: TrainingView, device: torch.device, ranks: Ranks = ALONE) -> Loss:
    """The loss of a run's method on the cases of a view."""
    if config.method == "baseline":
        return MissingIsBackground(ranks)
    if config.method == "marginal":
        undrawn = (State.MISSING, State.HIDDEN)
        missing = [[state in undrawn for state in view.states[case]] for case in view.cases]
        return MarginalSoftmax(torch.tensor(missing), device, ranks)
    tables = view.tables(Policy(config.policy), pseudo_negative=config.pseudo_negative or view.filled)
    return MaskedHeads(tables, device, ranks)
