"""The pseudo-labels of a case under brakes: organ by organ, in a few volumes of the case's own size."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from smile_fast.ops import select_top_fraction
from smile_fast.ops.reference import scores_by_stride
from smile_fast.training.curriculum.limits import Limits, limited
from smile_fast.training.curriculum.rooms import background_beyond_rooms
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT


def braked_pseudo_labels(
    logits: Tensor,  # [D, K, h, w]
    labels: Tensor,  # [D, H, W]
    organs: Sequence[int],
    gamma: float,
    stride: int,
    scope: str,
    *,
    limits: Sequence[Limits | None],
    positions: NDArray[np.int64],  # [D]
    negatives: float = 0.0,
    rooms: Sequence[int | None] | None = None,
    ranks: Tensor | None = None,  # [D, K, h, w]
    upper: Tensor | None = None,  # [D, K, h, w]
) -> tuple[Tensor, Tensor]:
    """Select pseudo-labels as `pseudo_labels_upsampled` does, among the candidates that the limits leave.

    Where every missing organ has p < 0.5 and no human label lies, the surest share of the voxels becomes
    pseudo-background: those whose largest logit of a missing organ is lowest. So does what lies beyond the rooms, see
    `background_beyond_rooms`.

    Args:
        logits: low resolution.
        labels: uint8, on the same device.
        organs: those that are missing.
        gamma: share of the candidates.
        stride: pixels of a low pixel.
        scope: "volume" or "slice".
        limits: of each missing organ; None for one that gets no pseudo-labels.
        positions: where the slices lie in the volume.
        negatives: share of the negatives.
        rooms: see `background_beyond_rooms`; None for no limit of any organ.
        ranks: log-odds that the candidates are ranked by; None for `logits`.
        upper: logits that the negatives are judged by, where doubt speaks for an organ; None for `logits`.

    Returns:
        Overlay [D, H, W] uint8, and counts [n, 3] int64 of candidates (before the limits), selected and kept voxels.
    """
    labels = labels.contiguous()
    free, overlay = labels == 0, torch.zeros_like(labels)
    counts = torch.zeros((len(organs), 3), dtype=torch.int64, device=labels.device)
    step = labels[0].numel() if scope == "slice" else labels.numel()
    segments = torch.arange(0, labels.numel() + 1, step, device=labels.device)

    def select(scores: Tensor, among: Tensor, share: float) -> Tensor:
        return select_top_fraction(scores.flatten(), among.flatten(), share, segments).view(labels.shape)

    best: Tensor | None = None  # score of the organ that has a voxel
    likeliest: Tensor | None = None  # largest score of a missing organ
    found = torch.zeros_like(free)  # a candidate of a missing organ
    for number, (organ, limit) in enumerate(zip(organs, limits, strict=True)):
        scores = scores_by_stride(logits[:, organ], labels.shape, stride)
        candidates = free & (scores > 0)
        counts[number, 0] = candidates.sum()
        found |= candidates
        if negatives > 0:
            most = scores if upper is None else scores_by_stride(upper[:, organ], labels.shape, stride)
            likeliest = most if likeliest is None else torch.maximum(likeliest, most)
        if limit is None:
            continue
        if ranks is not None:
            # Monotone and above 0, as the limits want the evidence for a candidate to be.
            scores = softplus(scores_by_stride(ranks[:, organ], labels.shape, stride))
        selected = select(scores, limited(candidates, scores, positions, limit), gamma)
        best = torch.full_like(scores, -torch.inf) if best is None else best
        wins = selected & (scores > best)  # at equal scores the lower organ keeps the voxel
        best = torch.where(wins, scores, best)
        overlay.masked_fill_(wins, PSEUDO_BIT | (organ + 1))
        counts[number, 1] = selected.sum()
    for number, organ in enumerate(organs):
        counts[number, 2] = (overlay == (PSEUDO_BIT | (organ + 1))).sum()
    if rooms is not None:
        background_beyond_rooms(overlay, logits, labels, organs, rooms, stride)
    if likeliest is not None:
        overlay.masked_fill_(select(-likeliest, free & ~found & (likeliest < 0), negatives), PSEUDO_BACKGROUND)
    return overlay, counts
