"""masked_bce_upsampled, forward and backward: loss, and gradient for the low-resolution logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.interleaved import Contest, Contestant
from bench.ops import losses
from bench.ops.peers import OURS, Scale
from bench.scenes import logits_of, scene
from smile_fast.ops import masked_bce_upsampled


@dataclass(frozen=True)
class Workload:
    """Logits [batch, organs, *coarse], and labels [batch, *size] of which a share of the pairs is missing."""

    organs: int
    missing: float = 0.5
    dtype: torch.dtype = torch.float32
    batch: int = 4
    coarse: tuple[int, ...] = (64, 64)
    size: tuple[int, ...] = (512, 512)
    content: str = "blobs"


WORKLOADS = {
    "K3-none": Workload(3, 0.0),
    "K3-half": Workload(3),
    "K3-70": Workload(3, 0.7),
    "K13-none": Workload(13, 0.0),
    "K13-half": Workload(13),
    "K13-70": Workload(13, 0.7),
    "K13-bf16-half": Workload(13, dtype=torch.bfloat16),
    "K13-ratio-half": Workload(13, coarse=(61, 47), size=(500, 512)),
    "K13-3d-half": Workload(13, batch=1, coarse=(24, 32, 32), size=(96, 128, 128)),
    "K13-noise": Workload(13, content="noise"),
}


def contest(workload: Workload, scale: Scale) -> Contest:
    """Bring ours and the peers together."""
    size, coarse = (
        tuple(-(-length // scale.shrink) for length in lengths) for lengths in (workload.size, workload.coarse)
    )
    of = scene(workload.batch, workload.organs, size, workload.missing, workload.content)
    logits = logits_of(of.truth, workload.organs, coarse, workload.dtype).requires_grad_()
    step = losses.Step(logits, losses.LOSS_SCALE.get(workload.dtype, 1.0))
    return losses.contest(
        step,
        of,
        [Contestant(OURS, lambda: step.of(lambda given: masked_bce_upsampled(given, of.labels, of.table)))],
        losses.Peers(step, of, scale, *interpolation(logits.shape, size)),
        [],
        masked_bce_upsampled,
    )


def interpolation(
    shape: torch.Size, size: tuple[int, ...]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Linear interpolation of [B, K, *s] to the size of the labels, and its transpose."""
    aten = torch.ops.aten
    mode, transpose = (
        ("bilinear", aten.upsample_bilinear2d_backward)
        if len(size) == 2
        else ("trilinear", aten.upsample_trilinear3d_backward)
    )

    def spread(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=size, mode=mode, align_corners=False)

    def gather(slopes: Tensor) -> Tensor:
        gradient: Tensor = transpose(slopes, list(size), list(shape), False)
        return gradient

    return spread, gather
