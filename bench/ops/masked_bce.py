"""masked_bce, forward and backward: loss and gradient for the logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.agreement import Result
from bench.comparison import CPU, CUDA, Call, Comparison, Conditions, variants
from bench.ops import losses
from bench.ops.names import COPY, IN_PLACE
from bench.scenes import Scene, logits_of, scene
from smile_fast.ops import masked_bce


@dataclass(frozen=True)
class Workload:
    """Logits [batch, organs, *size], and labels of which a share of the pairs is missing."""

    organs: int
    missing: float = 0.5
    dtype: torch.dtype = torch.float32
    batch: int = 4
    size: tuple[int, ...] = (512, 512)
    content: str = "blobs"
    devices: tuple[str, ...] = (CPU,)


BOTH = (CPU, CUDA)
WORKLOADS = {
    "K3-none": Workload(3, 0.0),
    "K3-half": Workload(3, devices=BOTH),
    "K3-70": Workload(3, 0.7),
    "K13-none": Workload(13, 0.0, devices=BOTH),
    "K13-half": Workload(13),
    "K13-70": Workload(13, 0.7, devices=BOTH),
    "K13-bf16-none": Workload(13, 0.0, torch.bfloat16, devices=BOTH),
    "K13-bf16-half": Workload(13, dtype=torch.bfloat16),
    "K13-fp16-none": Workload(13, 0.0, torch.float16),
    "K65-half": Workload(65, batch=1),
    "K64-bf16-half": Workload(64, dtype=torch.bfloat16, devices=(CUDA,)),
    "K13-3d-half": Workload(13, batch=1, size=(96, 128, 128)),
    "K13-noise": Workload(13, content="noise"),
    "K13-void": Workload(13, content="void"),
    "K13-huge": Workload(13, content="huge"),
}


def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring ours, in a new buffer and in that of the logits, the peers and a copy of the logits together."""
    size = tuple(length // conditions.shrink for length in workload.size)
    of = scene(workload.batch, workload.organs, size, workload.missing, workload.content)
    logits = logits_of(of.truth, workload.organs, size, workload.dtype).to(conditions.device).requires_grad_()
    of = of.to(conditions.device)
    step = losses.Step(logits, losses.LOSS_SCALE.get(workload.dtype, 1.0), plain=conditions.gpu)
    target = torch.empty_like(logits.detach())

    def ours(implementation: str | None) -> Result:
        return step.of(lambda given: masked_bce(given, of.labels, of.table, implementation=implementation))

    return losses.compare(
        "masked_bce",
        conditions,
        step,
        of,
        [*variants("masked_bce", conditions, ours), _in_place(step, of)],
        losses.Peers(step, of, conditions, spread=_itself, gather=_itself),
        [Call(COPY, lambda: target.copy_(logits.detach()))],
    )


def _in_place(step: losses.Step, of: Scene) -> Call:
    """The gradient takes the place of the logits, which a network's output is free to lose."""
    given: list[Tensor] = []

    def refresh() -> None:
        given[:] = [step.logits.clone()]  # no leaf: a leaf that requires a gradient may not be overwritten

    def run() -> Result:
        there = losses.Step(given[0], step.scale)
        return there.of(lambda logits: masked_bce(logits, of.labels, of.table, overwrite_logits=True))

    return Call(IN_PLACE, run, refresh)


def _itself(logits: Tensor) -> Tensor:
    return logits
