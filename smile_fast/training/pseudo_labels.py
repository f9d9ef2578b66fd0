"""The relabelling of a case on the device, as one captured sequence where the device can replay one."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smile_fast.ops import pseudo_labels_upsampled

Results = tuple[Tensor, Tensor]
"""Overlay [D, H, W] uint8 and counts [n, 3] int64."""
Replay = Callable[[], object]
"""Computes the results anew, where they are, from what then is in the memory of the inputs."""
Capture = Callable[[Callable[[], Results]], tuple[Results, Replay]]

MAX_CAPTURED = 4  # sequences that are kept, each with its labels, logits and overlay: some 3 bytes a voxel


@dataclass(frozen=True)
class Captured:
    """A captured sequence with the memory that it reads and writes."""

    logits: Tensor  # [D, K, h, w]
    labels: Tensor  # [D, H, W]
    results: Results
    replay: Replay

    def __call__(self, logits: Tensor, labels: Tensor) -> Results:
        """Return the results on the host; a copy also on the CPU, since the next call overwrites them."""
        self.logits.copy_(logits)
        self.labels.copy_(labels)
        self.replay()
        overlay, counts = self.results
        return overlay.to("cpu", copy=True), counts.to("cpu", copy=True)


class PseudoLabeller:
    """`pseudo_labels_upsampled` for case after case, replayed as one CUDA graph where cases are alike.

    The first case of a kind (device, dtype, shapes, organs, gamma, stride, scope) is queued operation by operation,
    which also compiles and loads the kernels. The second one is captured, and from then on all are replayed. A kind
    that occurs once, as volumes of odd depths do, costs no capture. Where a capture fails, everything is queued.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        """Start without any sequence.

        Args:
            capture: captures work, on any device; None for CUDA graphs on CUDA and nothing elsewhere.
        """
        self._capture = capture
        self._seen: set[tuple[object, ...]] = set()
        self._captured: OrderedDict[tuple[object, ...], Captured] = OrderedDict()
        self._pool: Any = None
        self._capturable = True

    @property
    def captured(self) -> int:
        """How many sequences are kept; none after a capture that failed."""
        return len(self._captured)

    def __call__(
        self,
        logits: Tensor,  # [D, K, h, w]
        labels: Tensor,  # [D, H, W] uint8, on the host or on the device
        organs: Sequence[int],
        gamma: float,
        stride: int,
        scope: str,
    ) -> Results:
        """Return overlay [D, H, W] uint8 and counts [n, 3] int64 on the host; see `pseudo_labels_upsampled`."""

        def work(logits: Tensor, labels: Tensor) -> Results:
            return pseudo_labels_upsampled(logits, labels, organs, gamma, stride, scope)

        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            captured = self._sequence(logits, labels, work, (tuple(organs), gamma, stride, scope))
            if captured is not None:
                return captured(logits, labels)
            overlay, counts = work(logits, labels.to(logits.device))
            return overlay.cpu(), counts.cpu()

    def _sequence(
        self, logits: Tensor, labels: Tensor, work: Callable[[Tensor, Tensor], Results], arguments: tuple[object, ...]
    ) -> Captured | None:
        """Return the sequence for cases like this one, captured now if need be; None if it is to be queued."""
        key = (logits.device, logits.dtype, logits.shape, labels.shape, *arguments)
        capture = self._capture or (self._capture_graph if logits.is_cuda else None)
        if capture and self._capturable and key in self._seen and key not in self._captured:
            self._add(key, logits, labels, work, capture)
        self._seen.add(key)
        if key in self._captured:
            self._captured.move_to_end(key)
        return self._captured.get(key)

    def _add(
        self,
        key: tuple[object, ...],
        logits: Tensor,
        labels: Tensor,
        work: Callable[[Tensor, Tensor], Results],
        capture: Capture,
    ) -> None:
        """Capture the work of a kind in memory of its own; give up capturing if that fails."""
        while len(self._captured) >= MAX_CAPTURED:
            self._captured.popitem(last=False)
        # Contiguous, as the kernels want them: no copy within the sequence.
        own_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        own_labels = torch.zeros(labels.shape, dtype=labels.dtype, device=logits.device)
        try:
            results, replay = capture(lambda: work(own_logits, own_labels))
        except RuntimeError:  # also out of memory; queueing needs less
            self._capturable = False
            self._captured.clear()
        else:
            self._captured[key] = Captured(own_logits, own_labels, results, replay)

    def _capture_graph(self, work: Callable[[], Results]) -> tuple[Results, Replay]:
        """Capture into a CUDA graph. All share one pool of memory: one runs at a time, and its results are copied."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Errors of other threads, which may use CUDA as they like, are not this capture's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = work()
        return results, graph.replay
