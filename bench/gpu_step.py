"""A training step of DeepLab ResNet-50 at 512x512 in bf16, with our loss, against the network alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu_ops import supervision, times
from smile_fast.models.segmenter import ModelConfig, Segmenter
from smile_fast.ops import masked_bce_upsampled

CONFIG = ModelConfig(organs=tuple(f"organ {number}" for number in range(13)))


def training_step() -> dict[str, Any]:
    """Milliseconds of forward, backward and optimizer, with and without the loss, eager and compiled."""
    labels, table, _, _ = supervision(len(CONFIG.organs), 0.5)
    images = torch.empty(4, 1, 512, 512, device="cuda").uniform_(-200, 300)  # HU
    calls: dict[str, Callable[[], object]] = {}
    for mode in ("eager", "torch.compile"):
        network: Any = Segmenter(CONFIG).cuda().to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
        forward = torch.compile(network) if mode == "torch.compile" else network

        def bare(logits: Tensor) -> Tensor:
            return logits.mean()

        def ours(logits: Tensor) -> Tensor:
            return masked_bce_upsampled(logits, labels, table)

        for name, loss in (("network alone", bare), ("with masked_bce_upsampled", ours)):
            calls[f"{mode}, {name}"] = step_of(forward, optimizer, images, loss)
    return {name: taken["median"] for name, taken in times(calls).items()}


def step_of(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
) -> Callable[[], None]:
    """Return one step as a call."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = forward(images)
        loss(logits).backward()
        optimizer.step()

    return step
