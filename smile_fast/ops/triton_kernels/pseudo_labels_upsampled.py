"""pseudo_labels_upsampled in Triton: organ by organ scores and candidates, the selection, and who keeps a voxel.

The selection is `select_top_fraction`, by whatever implementation it has on the device. Nothing is read on the host and
nothing comes from there, so that the whole can be captured in a CUDA graph. At full resolution there are one organ's
scores, candidates and selection, the best scores so far, the overlay, and the selection's workspace: some 20 bytes a
voxel, whatever the number of organs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.counts import count_values
from smile_fast.ops.triton_kernels.interpolation import BLOCK, LAUNCH_OPTIONS, interpolate
from smile_runtime.label_map import PSEUDO_BIT


@triton.jit(do_not_specialize=["organ"])
def scores_kernel(
    logits,  # [D, K, h, w]
    labels,  # [D, H, W] uint8
    scores,  # [D, H, W] float32
    candidates,  # [D, H, W] uint8
    counts,  # [3] int64, of the organ: adds the number of candidates to the first
    organ, organs, rows, columns, height, width, blocks,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one organ's scores of BLOCK pixels of a slice, rounded once, and which of them are candidates."""
    slice_ = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    voxel = slice_ * height * width + pixel
    low = logits + (slice_ * organs + organ) * rows * columns
    high = interpolate(low, pixel, inside, rows, columns, width, STRIDE)
    unit = tl.full([BLOCK], 1.0 / (4.0 * STRIDE * STRIDE), tl.float64)
    score = (high * unit).to(tl.float32)
    label = tl.load(labels + voxel, mask=inside, other=255)
    candidate = (label == 0) & (score > 0)  # false for NaN
    tl.store(scores + voxel, score, mask=inside)
    tl.store(candidates + voxel, candidate.to(tl.uint8), mask=inside)
    found = tl.sum(candidate.to(tl.int32)).to(tl.int64)
    tl.atomic_add(counts, found, mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["code"])
def keep_kernel(
    scores,  # [D, H, W] float32
    selected,  # [D, H, W] uint8
    best,  # [D, H, W] float32: the score with which a voxel of the overlay was won, else 0
    overlay,  # [D, H, W] uint8
    counts,  # [3] int64, of the organ: adds the number of selected voxels to the second
    code, length,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Give BLOCK voxels to an organ where it selected them with a higher score than all organs before it."""
    voxel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    chosen = tl.load(selected + voxel, mask=voxel < length, other=0) != 0
    score = tl.load(scores + voxel, mask=chosen, other=0.0)
    wins = chosen & (score > tl.load(best + voxel, mask=chosen, other=0.0))
    tl.store(best + voxel, score, mask=wins)
    tl.store(overlay + voxel, (tl.zeros([BLOCK], tl.int32) + code).to(tl.uint8), mask=wins)
    found = tl.sum(chosen.to(tl.int32)).to(tl.int64)
    tl.atomic_add(counts + 1, found, mask=found > 0, sem="relaxed")


def pseudo_labels_upsampled(
    logits: Tensor, labels: Tensor, depth: int, channels: int, grid: tuple[int, int, int],
    organs: Tensor, organ_count: int, gamma: float, per_slice: bool, overlay: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    """Write the results of `smile_fast.ops.reference.pseudo_labels_upsampled`; `organs` are on the host."""
    overlay.zero_()
    counts.zero_()
    length, (height, width, stride) = labels.numel(), grid
    if length == 0 or organ_count == 0:
        return
    blocks = -(-height * width // BLOCK)
    sizes = (*logits.shape[1:], height, width, blocks)
    scores = labels.new_empty(labels.shape, dtype=torch.float32)
    candidates, best = torch.empty_like(labels), torch.zeros_like(scores)
    segments = torch.arange(0, length + 1, height * width if per_slice else length, device=labels.device)
    shares = labels.new_full((len(segments) - 1,), gamma, dtype=torch.float64)
    codes = [PSEUDO_BIT | (organ + 1) for organ in organs.tolist()]
    for row, organ, code in zip(counts, organs.tolist(), codes, strict=True):
        scores_kernel[(depth * blocks,)](
            logits, labels, scores, candidates, row, organ, *sizes, STRIDE=stride, **LAUNCH_OPTIONS
        )
        selected = torch.ops.smile_fast.select_top_fraction(
            scores.view(-1), candidates.view(-1).view(torch.bool), shares, segments
        ).view(torch.uint8)
        keep_kernel[(-(-length // BLOCK),)](scores, selected, best, overlay, row, code, length, **LAUNCH_OPTIONS)
    kept = count_values(overlay)
    counts[:, 2] = torch.stack([kept[code] for code in codes])
