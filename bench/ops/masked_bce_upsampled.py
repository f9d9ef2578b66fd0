"""masked_bce_upsampled, forward and backward: loss, and gradient for the low-resolution logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.agreement import Result
from bench.comparison import CPU, CUDA, Call, Comparison, Conditions, variants
from bench.ops import losses
from bench.ops.names import COPY
from bench.scenes import logits_of, scene
from smile_fast.ops import masked_bce, masked_bce_upsampled

DENSE = "masked_bce of upsampled logits"


@dataclass(frozen=True)
class Workload:
    """Logits [batch, organs, *low], and labels [batch, *size] of which a share of the pairs is missing."""

    organs: int
    missing: float = 0.5
    dtype: torch.dtype = torch.float32
    batch: int = 4
    low: tuple[int, ...] = (64, 64)
    size: tuple[int, ...] = (512, 512)
    content: str = "blobs"
    devices: tuple[str, ...] = (CPU,)


BOTH = (CPU, CUDA)
WORKLOADS = {
    "K3-none": Workload(3, 0.0),
    "K3-half": Workload(3),
    "K3-70": Workload(3, 0.7),
    "K13-none": Workload(13, 0.0),
    "K13-half": Workload(13, devices=BOTH),
    "K13-70": Workload(13, 0.7),
    "K13-bf16-half": Workload(13, dtype=torch.bfloat16, devices=BOTH),
    "K13-ratio-half": Workload(13, low=(61, 47), size=(500, 512)),
    "K13-3d-half": Workload(13, batch=1, low=(24, 32, 32), size=(96, 128, 128)),
    "K13-noise": Workload(13, content="noise"),
}


def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring ours and the peers together; on a GPU also masked_bce of logits that were upsampled before."""
    size, low = (
        tuple(-(-length // conditions.shrink) for length in lengths) for lengths in (workload.size, workload.low)
    )
    of = scene(workload.batch, workload.organs, size, workload.missing, workload.content)
    logits = logits_of(of.truth, workload.organs, low, workload.dtype).to(conditions.device).requires_grad_()
    of = of.to(conditions.device)
    step = losses.Step(logits, losses.LOSS_SCALE.get(workload.dtype, 1.0), plain=conditions.gpu)
    spread, gather = interpolation(logits.shape, size)
    floors = []
    if conditions.gpu:
        target = torch.empty_like(logits.detach())
        full = losses.Step(spread(logits.detach()).requires_grad_(), step.scale, plain=True)
        floors = [
            Call(COPY, lambda: target.copy_(logits.detach())),
            Call(DENSE, lambda: full.of(lambda given: masked_bce(given, of.labels, of.table))),
        ]

    def ours(implementation: str | None) -> Result:
        return step.of(lambda given: masked_bce_upsampled(given, of.labels, of.table, implementation=implementation))

    return losses.compare(
        "masked_bce_upsampled",
        conditions,
        step,
        of,
        variants("masked_bce_upsampled", conditions, ours),
        losses.Peers(step, of, conditions, spread, gather),
        floors,
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
