"""Every op in plain torch: the semantics, in float64 if asked, never optimised.

These functions are the kernels of last resort on every device; their arguments have the shapes and dtypes that the
public functions of `smile_fast.ops` name. They loop over the organs, so that no temporary holds more than one organ at
full resolution. They are deterministic for a given number of threads; torch's exp rounds differently at the end of a
thread's share, so the last bits may change with that number.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smile_runtime.label_map import PSEUDO_BIT, WORD_BITS

INTEGER_TOLERANCE = 1e-12  # relative; a product gamma * n this close to an integer is that integer
FLOAT64_VOXELS = 2**20  # of scores that are computed at a time


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which an op computes: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def known_pairs(counts: Tensor) -> Tensor:
    """Return by what a mean divides: the number of known (voxel, organ) pairs, or 1 if there are none: [] int64."""
    return counts.sum().clamp(min=1)


def divides_gradient(dtype: torch.dtype, mean: bool) -> bool:
    """Return whether a loss's op divides its gradient as it divides its mean.

    Not in float16, where 1 / N underflows: there, the backward pass divides, which loss scaling comes before.
    """
    return mean and dtype != torch.float16


def reduced(sums: Tensor, counts: Tensor, mean: bool, dtype: torch.dtype) -> Tensor:
    """Return the loss [] of logits of a dtype from sums and counts [B, K]; a mean is 0 where nothing is known."""
    loss = sums.sum() / known_pairs(counts) if mean else sums.sum()
    return loss.to(compute_dtype(dtype))


def scaled(grad: Tensor, factors: Tensor) -> Tensor:
    """Multiply [B, K, *S] by one factor an (image, organ) [B, K]: in float32 or better, and rounded once."""
    factors = factors.to(compute_dtype(grad.dtype)).reshape(factors.shape + (1,) * (grad.ndim - 2))
    return (grad * factors).to(grad.dtype)


def decode(labels: Tensor, table: Tensor, organs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Look up w_k and y*_k at every voxel, organ by organ: yields known and positive, [B, *S] bool each."""
    index = labels.flatten(1).long()  # [B, voxels]
    for word in range(table.shape[-1]):
        rows = table[..., word]  # [B, 256, 2]
        known, positive = (rows[..., which].gather(1, index).view(labels.shape) for which in (0, 1))
        for bit in range(min(WORD_BITS, organs - word * WORD_BITS)):
            yield (known >> bit & 1).bool(), (positive >> bit & 1).bool()


def bce(logits: Tensor, known: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return w * BCE(sigmoid(z), y) and its derivative w * (sigmoid(z) - y), voxel by voxel: all are [B, *S].

    With x = z where y = 0 and x = -z where y = 1, BCE = softplus(x) and dBCE/dx = sigmoid(x): no difference of
    nearly equal numbers, whatever z is. An unknown voxel's results are replaced, not multiplied: 0 * inf is NaN.
    """
    margin = torch.where(positive, -logits, logits)
    loss = margin.clamp(min=0) + torch.log1p(torch.exp(-margin.abs()))
    slope = torch.sigmoid(margin)
    gradient = torch.where(positive, -slope, slope)
    return torch.where(known, loss, 0.0), torch.where(known, gradient, 0.0)


def masked_bce(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce`.

    Returns:
        loss: [] float64 for float64 logits, else float32: the sum of all sums, with `mean` divided by the number of
            known pairs (or by 1 if there are none).
        sums: [B, K] float64, sum over voxels of w * BCE(sigmoid(z), y).
        counts: [B, K] int64, number of known voxels.
        grad: [B, K, *S] like logits, d loss / d logits, in float16 d sums / d logits; [0] without with_grad.
    """
    batch, organs = logits.shape[:2]
    sums = logits.new_zeros((batch, organs), dtype=torch.float64)
    counts = labels.new_zeros((batch, organs), dtype=torch.int64)
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    for organ, (known, _) in enumerate(decode(labels, table, organs)):
        counts[:, organ] = known.flatten(1).sum(1)
    scale = counts.new_ones((), dtype=torch.float64)
    if divides_gradient(logits.dtype, mean):
        scale = 1 / known_pairs(counts).double()
    for organ, (known, positive) in enumerate(decode(labels, table, organs)):
        channel = logits[:, organ].to(compute_dtype(logits.dtype)).contiguous()
        loss, gradient = bce(channel, known, positive)
        sums[:, organ] = loss.flatten(1).sum(1, dtype=torch.float64)
        if with_grad:
            grad[:, organ] = gradient * scale.to(channel.dtype)
    return reduced(sums, counts, mean, logits.dtype), sums, counts, grad


def masked_bce_in_place(logits: Tensor, labels: Tensor, table: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce_in_place`: `masked_bce`, with the gradient in place of the logits."""
    loss, sums, counts, grad = masked_bce(logits, labels, table, True, mean)
    logits.copy_(grad)
    return loss, sums, counts


def scale_gradient(gradient: Tensor, factors: Tensor) -> None:
    """Kernel of `smile_fast::scale_gradient`: multiply in place by one factor an (image, organ)."""
    gradient.copy_(scaled(gradient, factors))


def masked_bce_upsampled(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce_upsampled`.

    Returns:
        loss: [] as that of `masked_bce`.
        sums: [B, K] float64, sum over the voxels of the labels of w * BCE(sigmoid(u), y), u = upsampled logits.
        counts: [B, K] int64, number of known voxels.
        grad: [B, K, h, w] like logits, d loss / d logits, in float16 d sums / d logits; [0] without with_grad.
    """
    batch, organs = logits.shape[:2]
    sums = logits.new_zeros((batch, organs), dtype=torch.float64)
    counts = labels.new_zeros((batch, organs), dtype=torch.int64)
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    if labels.numel() == 0:  # F.interpolate refuses empty batches and empty images
        return reduced(sums, counts, mean, logits.dtype), sums, counts, grad.zero_()
    for organ, (known, positive) in enumerate(decode(labels, table, organs)):
        low = logits[:, organ : organ + 1].to(compute_dtype(logits.dtype))  # [B, 1, h, w]
        loss, gradient = bce(upsample(low, labels.shape[1:])[:, 0], known, positive)
        sums[:, organ] = loss.flatten(1).sum(1, dtype=torch.float64)
        counts[:, organ] = known.flatten(1).sum(1)
        if with_grad:
            grad[:, organ] = upsample_adjoint(gradient[:, None], low.shape)[:, 0]
    if with_grad and divides_gradient(logits.dtype, mean):
        grad = scaled(grad, (1 / known_pairs(counts).double()).expand(batch, organs))
    return reduced(sums, counts, mean, logits.dtype), sums, counts, grad


def upsample(low: Tensor, size: torch.Size) -> Tensor:
    """Interpolate [B, C, h, w] bilinearly, or [B, C, d, h, w] trilinearly, with align_corners=False."""
    mode = "bilinear" if low.ndim == 4 else "trilinear"
    return F.interpolate(low, size=tuple(size), mode=mode, align_corners=False)


def upsample_adjoint(high: Tensor, shape: torch.Size) -> Tensor:
    """Apply the transpose of `upsample`: a gradient at full resolution, [B, C, H, W], to `shape` [B, C, h, w]."""
    aten = torch.ops.aten
    adjoint = aten.upsample_bilinear2d_backward if high.ndim == 4 else aten.upsample_trilinear3d_backward
    return cast(Tensor, adjoint(high, list(high.shape[2:]), list(shape), False))


def select_top_fraction(scores: Tensor, candidates: Tensor, gamma: Tensor, segments: Tensor) -> Tensor:
    """Kernel of `smile_fast::select_top_fraction`: gamma is [S] float64, the selection [N] bool."""
    length = scores.numel()
    if length == 0 or gamma.numel() == 0:
        return torch.zeros_like(candidates)
    index = torch.arange(length, device=scores.device)
    segment = torch.searchsorted(segments, index, right=True) - 1  # -1 before the first, S after the last
    inside = (segment >= 0) & (segment < gamma.numel())
    eligible = candidates & inside

    # Lexicographic order by two stable sorts, the less significant key first: score, highest first, then
    # (segment, eligible first, NaN last). Adding 0 turns -0 into +0.
    missing = scores.isnan()
    score = torch.where(missing, -torch.inf, scores.to(compute_dtype(scores.dtype))) + 0.0
    order = torch.sort(score, descending=True, stable=True).indices
    group = segment * 4 + (~eligible) * 2 + missing
    order = order[torch.sort(group[order], stable=True).indices]

    before = F.pad(eligible.cumsum(0), (1, 0))  # [N + 1] eligible voxels before each index
    bounds = segments.clamp(0, length)
    quota = fraction_count(gamma, before[bounds[1:]] - before[bounds[:-1]])  # [S]
    home = segment.clamp(0, gamma.numel() - 1)[order]
    rank = index - bounds[home]
    selected = torch.zeros_like(candidates)
    selected[order] = (rank < quota[home]) & eligible[order]
    return selected


def fraction_count(gamma: Tensor, counts: Tensor) -> Tensor:
    """Return ceil(gamma * n) [S] int64, at most n, with a product that rounding moved off an integer put back on it.

    0.07 * 100 is 7.000000000000001 in float64; seven voxels are meant, not eight.
    """
    product = gamma.nan_to_num(0.0).clamp(0, 1) * counts.double()
    nearest = product.round()
    integral = (product - nearest).abs() <= INTEGER_TOLERANCE * nearest
    return torch.where(integral, nearest, product.ceil()).long().minimum(counts)


def upsample_by_stride(low: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Interpolate [N, h, w] bilinearly to [N, H, W] float64, times (2 stride)^2; a low pixel is `stride` pixels wide.

    Pixel i lies at (i + 0.5) / stride - 0.5 of the low pixels' centres; outside of them, the border repeats. With
    that scale every weight is an integer, so that the product of a weight and a float32 logit is exact in float64, and
    the sum of the four is the same with and without fused multiply-add. Where the four logits are within a factor
    2^19 (stride 8) of each other it is exact, too. The order of the sum is part of the definition.
    """
    above, below, top_weight, bottom_weight = _corners_of_axis(height, low.shape[1], stride, low.device)
    left, right, left_weight, right_weight = _corners_of_axis(width, low.shape[2], stride, low.device)
    logits = low.double()
    top, bottom = logits[:, above], logits[:, below]  # [N, H, w]
    high = top[..., left] * (top_weight[:, None] * left_weight)
    high += top[..., right] * (top_weight[:, None] * right_weight)
    high += bottom[..., left] * (bottom_weight[:, None] * left_weight)
    high += bottom[..., right] * (bottom_weight[:, None] * right_weight)
    return high


def _corners_of_axis(size: int, low: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two low pixels [size] int64 between which each pixel lies, and their weights [size] float64."""
    doubled = 2 * torch.arange(size, device=device) + 1 - stride  # position in 1 / (2 stride) of a low pixel
    lower = doubled.div(2 * stride, rounding_mode="floor")
    weight = (doubled - lower * 2 * stride).double()
    return lower.clamp(0), (lower + 1).clamp(max=low - 1), 2 * stride - weight, weight


def label_map_upsampled(logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> Tensor:
    """Kernel of `smile_fast::label_map_upsampled`: [N, H, W] uint8."""
    labels = logits.new_zeros((logits.shape[0], height, width), dtype=torch.uint8)
    if labels.numel() == 0:
        return labels
    # Sigmoid: the background's logit is 0, and channel k is label k + 1.
    best = torch.full_like(labels, -torch.inf if softmax else 0.0, dtype=torch.float64)
    for channel in range(logits.shape[1]):
        high = upsample_by_stride(logits[:, channel], height, width, stride)
        wins = high > best  # false for NaN, and for a tie with a lower label
        best = torch.where(wins, high, best)
        labels.masked_fill_(wins, channel + (not softmax))
    return labels


Selection = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def pseudo_labels_upsampled(
    logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, scope: str,
    *, select: Selection | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Kernel of `smile_fast::pseudo_labels_upsampled`: overlay [D, H, W] uint8, counts [n, 3] int64.

    Without `select`, the selection runs over the candidates alone, whose number the host learns. With that of the op,
    which runs over all voxels, it learns nothing.
    """
    select = select or _select_compacted
    labels = labels.contiguous()  # so is everything of its shape, and can be indexed flat
    overlay = torch.zeros_like(labels)
    counts = torch.zeros((len(organs), 3), dtype=torch.int64, device=labels.device)
    if labels.numel() == 0:
        return overlay, counts
    free = labels == 0
    step = labels[0].numel() if scope == "slice" else labels.numel()
    segments = torch.arange(0, labels.numel() + 1, step, device=labels.device)
    shares = torch.full((len(segments) - 1,), gamma, dtype=torch.float64, device=labels.device)
    best = torch.full(labels.shape, -torch.inf, dtype=compute_dtype(logits.dtype), device=labels.device)
    for number, organ in enumerate(organs):
        scores = scores_by_stride(logits[:, organ], labels.shape, stride)
        candidates = free & (scores > 0)
        selected = select(scores.flatten(), candidates.flatten(), shares, segments).view(labels.shape)
        wins = selected & (scores > best)  # at equal scores the lower organ keeps the voxel
        best = torch.where(wins, scores, best)
        overlay.masked_fill_(wins, PSEUDO_BIT | (organ + 1))
        counts[number, 0], counts[number, 1] = candidates.sum(), selected.sum()
    for number, organ in enumerate(organs):
        counts[number, 2] = (overlay == (PSEUDO_BIT | (organ + 1))).sum()
    return overlay, counts


def scores_by_stride(low: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """Upsample [D, h, w] to `shape` [D, H, W], each score rounded once: float32, or float64 for float64 logits."""
    scores = torch.empty(shape, dtype=compute_dtype(low.dtype), device=low.device)
    unit = 1.0 / (2 * stride) ** 2
    slices = max(1, FLOAT64_VOXELS // shape[1:].numel())  # a float64 volume would be twice the size of the result
    for first in range(0, shape[0], slices):
        some = slice(first, first + slices)
        scores[some] = upsample_by_stride(low[some], shape[1], shape[2], stride) * unit
    return scores


def _select_compacted(scores: Tensor, candidates: Tensor, shares: Tensor, segments: Tensor) -> Tensor:
    """Select among the candidates: a few percent of a volume, and so of the work of `select_top_fraction`."""
    where = candidates.nonzero()[:, 0]
    offsets = torch.searchsorted(where, segments)  # of the segments, among the candidates
    chosen = select_top_fraction(scores[where], torch.ones_like(where, dtype=torch.bool), shares, offsets)
    selected = torch.zeros_like(candidates)
    selected[where[chosen]] = True
    return selected
