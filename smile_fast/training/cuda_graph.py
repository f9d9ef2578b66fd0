"""Work on a CUDA device that is captured once as a graph, and then replayed."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from smile_runtime.errors import first_line

Results = TypeVar("Results")
Replay = Callable[[], object]
"""Computes the results anew, where they are, from what then is in the memory that the captured work reads."""


def capture(work: Callable[[], Results], device: torch.device, **options: Any) -> tuple[Results, Replay]:
    """Capture work into a CUDA graph; nothing is computed yet.

    Args:
        work: queues operations on the device, and asks it nothing.
        device: where.
        options: of `torch.cuda.graph`: stream, pool.

    Returns:
        The results, which a replay fills, and the replay.

    Raises:
        RuntimeError: it cannot be captured, for the reason that the message gives. The device, its current stream and
            its random numbers can be used as before.
    """
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream(device)
    try:
        # Errors of other threads, which may use CUDA as they like, are not this capture's. The stream: where the end
        # of a capture fails, torch does not leave the capture's own.
        with torch.cuda.stream(current), torch.cuda.graph(graph, capture_error_mode="thread_local", **options):
            results = work()
    except RuntimeError as error:
        # The generator of a capture that was cut off takes part in it for ever, in some versions of torch.
        generator = torch.cuda.default_generators[current.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        first = error.__context__ if isinstance(error.__context__, RuntimeError) else error  # what cut the capture off
        raise RuntimeError(first_line(first)) from error
    return results, graph.replay
