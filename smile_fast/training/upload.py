"""Batches on their way to the device, beside the step before."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from smile_fast.training.batches import Batch

_BUFFERS = 2


class Inputs(NamedTuple):
    """A batch on the training's device; see `Batch`."""

    hu: Tensor
    labels: Tensor
    cases: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Inputs":
        """The batch's own memory as tensors of the host."""
        return cls(*(torch.from_numpy(array) for array in (batch.hu, batch.labels, batch.cases)))


def upload(batches: Iterator[Batch], device: torch.device) -> Iterator[Inputs]:
    """Batches on a device; on the CPU they stay where they are.

    Args:
        batches: of one shape, in pinned memory for CUDA, each valid until the second one after it is asked for.
        device: of the training.

    Yields:
        Batches; what reads one is queued, on the current stream, before the next one is asked for.
    """
    return _beside_the_step(batches, device) if device.type == "cuda" else map(Inputs.of, batches)


def _beside_the_step(batches: Iterator[Batch], device: torch.device) -> Iterator[Inputs]:
    """Copy on a stream of its own into two buffers in turn.

    Batch n + 2 comes into the buffer of batch n, and onto the host into its memory, when the step of batch n is done:
    the host waits for that here and nowhere else, so it is never more than two steps ahead. The copy of a batch so runs
    beside the step before its own, which waits for the copy on the device.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    buffers: list[Inputs] = []
    copied, done = (
        [torch.cuda.Event(blocking=True) for _ in range(_BUFFERS)]  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    number = 0
    while True:
        buffer = number % _BUFFERS
        done[buffer].synchronize()
        inputs = Inputs.of(next(batches))
        if len(buffers) == buffer:
            buffers.append(Inputs(*(torch.empty_like(tensor, device=device) for tensor in inputs)))
            stream.wait_stream(torch.cuda.current_stream(device))  # which may still use that memory for what it held
        with torch.cuda.stream(stream):
            for target, tensor in zip(buffers[buffer], inputs, strict=True):
                target.copy_(tensor, non_blocking=True)
            copied[buffer].record(stream)
        current = torch.cuda.current_stream(device)
        current.wait_event(copied[buffer])
        yield buffers[buffer]
        done[buffer].record(current)
        number += 1
