"""The relabelling of a case on the device, as one captured sequence where the device can replay one."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smile_fast.ops import pseudo_labels_upsampled
from smile_fast.training.cuda_graph import Replay, capture
from smile_fast.training.curriculum.rooms import background_beyond_rooms

Results = tuple[Tensor, Tensor]
"""Overlay [D, H, W] uint8 and counts [n, 3] int64."""
Capture = Callable[[Callable[[], Results]], tuple[Results, Replay]]

MAX_CAPTURED = 4  # sequences that are kept


@dataclass(frozen=True)
class Captured:
    """A captured sequence with the memory that it reads and writes, which other sequences use, too."""

    logits: Tensor  # [D, K, h, w]
    labels: Tensor  # [D, H, W]
    results: Results
    replay: Replay

    def __call__(self, logits: Tensor, labels: Tensor) -> Results:
        """Return the results where they are; the next call of any sequence overwrites them."""
        self.logits.copy_(logits)
        self.labels.copy_(labels)
        self.replay()
        return self.results


class PseudoLabeller:
    """`pseudo_labels_upsampled` for case after case, replayed as one CUDA graph where cases are alike.

    The first case of a kind (device, dtype, shapes, organs, gamma, stride, scope) is queued operation by operation,
    which also compiles and loads the kernels. The second one is captured, and from then on all are replayed. A kind
    that occurs once, as volumes of odd depths do, costs no capture. Where a capture fails, everything is queued.

    All sequences read and write the same memory, that of the largest kind: logits, labels, overlay. With the overlay of
    the call itself that is 3 bytes a voxel and the logits.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        """Start without any sequence.

        Args:
            capture: captures work, on any device; None for CUDA graphs on CUDA and nothing elsewhere.
        """
        self._capture = capture
        self._seen: set[tuple[object, ...]] = set()
        self._captured: OrderedDict[tuple[object, ...], Captured] = OrderedDict()
        self._blocks: dict[tuple[str, torch.device], Tensor] = {}
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
        rooms: Sequence[int | None] | None = None,
    ) -> Results:
        """Return overlay [D, H, W] uint8 and counts [n, 3] int64 on the host; see `pseudo_labels_upsampled`.

        With `rooms` the overlay has pseudo-background, too, see `background_beyond_rooms`; that is queued after the
        sequence, on the same device: every case has rooms of its own.
        """

        def work(logits: Tensor, labels: Tensor) -> Results:
            return pseudo_labels_upsampled(logits, labels, organs, gamma, stride, scope)

        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            captured = self._sequence(logits, labels, work, (tuple(organs), gamma, stride, scope))
            if captured is not None:
                overlay, counts = captured(logits, labels)
                labels = captured.labels
            else:
                labels = labels.to(logits.device)
                overlay, counts = work(logits, labels)
            if rooms is not None:
                background_beyond_rooms(overlay, logits, labels, organs, rooms, stride)
            kept = captured is not None  # memory that the next call overwrites
            return overlay.to("cpu", copy=kept), counts.to("cpu", copy=kept)

    def _sequence(
        self, logits: Tensor, labels: Tensor, work: Callable[[Tensor, Tensor], Results], arguments: tuple[object, ...]
    ) -> Captured | None:
        """Return the sequence for cases like this one, captured now if need be; None if it is to be queued."""
        key = (logits.device, logits.dtype, logits.shape, labels.shape, *arguments)
        capturing = self._capture or (partial(self._capture_graph, logits.device) if logits.is_cuda else None)
        if capturing and self._capturable and key in self._seen and key not in self._captured:
            self._add(key, logits, labels, work, capturing)
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
        capturing: Capture,
    ) -> None:
        """Capture the work of a kind in the memory of all sequences; give up capturing if that fails."""
        while len(self._captured) >= MAX_CAPTURED:
            self._captured.popitem(last=False)
        # Contiguous, as the kernels want them: no copy within the sequence.
        own_logits = self._memory("logits", logits)
        own_labels = self._memory("labels", labels, logits.device).zero_()
        own_overlay = self._memory("overlay", labels, logits.device)

        def into_own() -> Results:
            overlay, counts = work(own_logits, own_labels)
            own_overlay.copy_(overlay)  # whose own memory the next capture may use again
            return own_overlay, counts

        try:
            results, replay = capturing(into_own)
        except RuntimeError:  # also out of memory; queueing needs less
            self._capturable = False
            self._captured.clear()
            self._blocks.clear()
        else:
            self._captured[key] = Captured(own_logits, own_labels, results, replay)

    def _memory(self, name: str, like: Tensor, device: torch.device | None = None) -> Tensor:
        """Return memory of all sequences as a tensor like another; sequences in memory that is too small are lost."""
        size, place = like.numel() * like.itemsize, (name, device or like.device)
        if place not in self._blocks or self._blocks[place].numel() < size:
            self._captured.clear()
            self._blocks[place] = torch.empty(size, dtype=torch.uint8, device=place[1])
        return self._blocks[place][:size].view(like.dtype).view(like.shape)

    def _capture_graph(self, device: torch.device, work: Callable[[], Results]) -> tuple[Results, Replay]:
        """Capture into a CUDA graph. All share one pool of memory: one runs at a time, and its results are copied."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return capture(work, device, pool=self._pool)
