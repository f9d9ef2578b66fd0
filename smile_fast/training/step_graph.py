"""A training step as one captured CUDA graph: the host says once what is to be done, and then only that it is."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from smile_fast.training.cuda_graph import Replay, capture
from smile_fast.training.objectives import StepLoss
from smile_runtime.errors import first_line

Work = Callable[..., StepLoss]
"""What one step computes from its inputs: queues operations on the device and reads nothing there."""
EAGER_STEPS = 3
"""Steps before the capture: kernels are compiled, convolutions tuned, the optimizer's state is made."""


class Capturer(Protocol):
    """What captures the work of a step on some device."""

    def run(self, work: Callable[[], StepLoss]) -> StepLoss:
        """Do the work at once, in the way that lets it be captured later."""
        ...

    def capture(self, work: Callable[[], StepLoss]) -> tuple[StepLoss, Replay]:
        """Return results that a replay fills, and the replay; nothing is computed yet."""
        ...


def no_graph(device: torch.device, wanted: str, world: int = 1) -> str:
    """Why a training on this device cannot capture its steps, or was told not to; empty if it can.

    Args:
        device: where to train.
        wanted: what --graph says.
        world: processes that train together. What they tell each other within a step has not been captured anywhere.
    """
    if wanted == "off":
        return "--graph off"
    if world > 1:
        return "several processes wait for each other within a step"
    return "" if device.type == "cuda" else "only CUDA has graphs"


def cuda_graphs(device: torch.device, wanted: str, world: int = 1) -> "CudaGraphs | None":
    """What captures the steps of a training, if anything does; see `no_graph`."""
    return None if no_graph(device, wanted, world) else CudaGraphs(device)


class StepGraph:
    """Steps of one shape: the first ones run operation by operation, one is captured, and then all are replayed.

    Every one of them is a step of the training: nothing is warmed up on the side, so that nothing has to be undone. A
    capture computes nothing; what it has captured is replayed at once for the step in which it was made. Where it
    fails, that step and all others run operation by operation.

    Whatever changes from step to step lies in tensors that the work reads: its inputs, which are copied into memory of
    the graph's own, and those that the caller overwrites (learning rate, weight of the average). Numbers that the work
    draws from the device's default generator follow the seed that is set before a step: a replay hands the generator's
    seed and offset to the captured kernels.

    Args:
        work: what a step computes.
        capturer: captures it; None leaves every step to run operation by operation.
        on_failure: is told why a capture failed.
    """

    def __init__(self, work: Work, capturer: Capturer | None, on_failure: Callable[[str], None]) -> None:
        self._work, self._capturer, self._on_failure = work, capturer, on_failure
        self._inputs: tuple[Tensor, ...] = ()
        self._eager = 0
        self._results: StepLoss | None = None
        self._replay: Replay | None = None

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return self._replay is not None

    def __call__(self, device: torch.device, *inputs: Tensor) -> StepLoss:
        """Queue one step.

        Args:
            device: where the work is done.
            inputs: of the shapes of all other steps, on the device or in pinned memory.

        Returns:
            The losses, on the device, in memory that no later step overwrites.
        """
        if self._capturer is None:
            return self._work(*(tensor.to(device, non_blocking=True) for tensor in inputs))
        if not self._inputs:
            self._inputs = tuple(torch.empty_like(tensor, device=device) for tensor in inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        if self._replay is None and self._eager < EAGER_STEPS:
            self._eager += 1
            return self._capturer.run(lambda: self._work(*self._inputs))
        if self._replay is None:
            try:
                self._results, self._replay = self._capturer.capture(lambda: self._work(*self._inputs))
            except RuntimeError as error:  # also out of memory: the graph has memory of its own
                self._capturer = None
                self._on_failure(first_line(error))
                return self._work(*self._inputs)
        assert self._results is not None
        self._replay()
        return StepLoss(*(result.clone() for result in self._results))


class CudaGraphs:
    """Captures work into CUDA graphs, each with memory of its own for intermediate results."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], StepLoss]) -> StepLoss:
        """Queue work on the stream that captures use: autograd ties parameters to the stream that it first sees."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = work()
        current.wait_stream(self._stream)
        for result in results:
            result.record_stream(current)
        return results

    def capture(self, work: Callable[[], StepLoss]) -> tuple[StepLoss, Replay]:
        """Return results that a replay fills, and the replay; nothing is computed yet."""
        return capture(work, self._device, stream=self._stream)
