"""A training step of DeepLab ResNet-50 with our loss, and without. `python -m bench.gpu_step ROW OUT.json`."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu_ops import BATCH, Row, supervision
from bench.gpu_timing import REPETITIONS, Calls, step_times
from smile_fast.models import ModelConfig, Segmenter
from smile_fast.ops import masked_bce_upsampled

CONFIG = ModelConfig(organs=tuple(f"organ {number}" for number in range(13)))
ALONE, WITH_LOSS = "network alone", "with masked_bce_upsampled"


def training_step(
    compiled: bool,
    config: ModelConfig = CONFIG,
    device: str = "cuda",
    side: int = 512,
    repetitions: int = REPETITIONS,
) -> Row:
    """Milliseconds of forward, backward and optimizer in bf16 and channels_last, with and without the loss."""
    labels, table, _, _ = supervision(len(config.organs), 0.5, device, side)
    images = torch.empty(BATCH, config.channels, side, side, device=device).uniform_(-200, 300)  # HU
    images = images.contiguous(memory_format=torch.channels_last)

    def ours(logits: Tensor) -> Tensor:
        return masked_bce_upsampled(logits, labels, table)

    network: Any = Segmenter(config).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    forward = torch.compile(network) if compiled else network
    calls: Calls = {
        name: step_of(forward, optimizer, images, loss) for name, loss in ((ALONE, Tensor.mean), (WITH_LOSS, ours))
    }
    taken = step_times(calls, device, repetitions)
    overhead = taken[WITH_LOSS]["median"] / taken[ALONE]["median"] - 1
    return {"milliseconds": taken, "facts": {"overhead of the loss": overhead}}


def step_of(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
) -> Callable[[], None]:
    """Return one step as a call."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = forward(images)
        loss(logits).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


ROWS: dict[str, Callable[[], Row]] = {
    "training step, eager": functools.partial(training_step, False),
    "training step, torch.compile": functools.partial(training_step, True),
}


def main(arguments: list[str]) -> None:
    """Measure one row and write it."""
    name, out = arguments
    Path(out).write_text(json.dumps(ROWS[name]()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
