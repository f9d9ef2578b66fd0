"""A training step of DeepLab in bf16 and channels_last: with our loss, and of the network alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.comparison import CUDA, OURS, Call, Comparison, Conditions
from bench.scenes import scene
from smile_fast.models import ModelConfig, Segmenter
from smile_fast.ops import masked_bce_upsampled

ALONE = "network alone"
STEPS = 5  # that are timed together: their mean is one run


@dataclass(frozen=True)
class Workload:
    """Images [batch, channels, side, side] of which half of the (image, organ) pairs is missing."""

    backbone: str = "resnet50"
    organs: int = 13
    batch: int = 4
    side: int = 512
    width: int = 64
    compiled: bool = False
    devices: tuple[str, ...] = (CUDA,)


WORKLOADS = {"resnet50": Workload(), "resnet50-compiled": Workload(compiled=True)}


def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring both steps together; the same network takes them: a small one where the workload is shrunk."""
    if conditions.shrink > 1:
        workload = replace(workload, backbone="resnet18", width=8, batch=2)
    side = workload.side // conditions.shrink
    of = scene(workload.batch, workload.organs, (side, side), 0.5).to(conditions.device)
    config = ModelConfig(tuple(f"organ {k}" for k in range(workload.organs)), workload.backbone, width=workload.width)
    images = torch.empty(workload.batch, config.channels, side, side, device=conditions.device).uniform_(-200, 300)
    images = images.contiguous(memory_format=torch.channels_last)  # HU

    network: Any = Segmenter(config).to(conditions.device)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    forward = conditions.compiled(network) if workload.compiled else network

    def step_with(loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(images.device.type, torch.bfloat16):
                logits = forward(images)
            value = loss(logits)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return value.detach()

        return step

    with_loss = step_with(lambda logits: masked_bce_upsampled(logits, of.labels, of.table))
    alone = step_with(Tensor.mean)

    def several(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(STEPS):
                step()

        return run

    def check() -> dict[str, float]:
        loss = float(with_loss())
        assert 0 < loss < math.inf, f"a loss of {loss}"
        alone()
        return {}

    # The step before is not timed: caches and allocator are those of the same step, not of the other one.
    ours, peer = (Call(name, several(step), step) for name, step in ((OURS, with_loss), (ALONE, alone)))
    return Comparison([ours], [peer], check, {"images": list(images.shape)}, steps=STEPS)
