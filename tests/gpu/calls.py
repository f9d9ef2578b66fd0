"""Where the tests run, and one call of every op with everything that it returns."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from smile_fast.ops import OPS, available
from tests.ops.problems import Problem, problem

REHEARSAL = os.environ.get("SMILE_FAST_GPU") != "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
REPEATS = 2 if REHEARSAL else 1000


def implementations(op: str) -> list[str]:
    """All usable ones but the reference; on a GPU those that must be there, wanted or not."""
    if REHEARSAL:
        return [name for name, usable, _ in available(op, DEVICE) if usable and name in ("native", "torch")]
    return [name for name, _, _ in available(op, DEVICE) if name in ("cuda", "triton", "torch")]


PAIRS = [(op, name) for op in OPS for name in implementations(op)]


@contextmanager
def no_host_synchronisation() -> Iterator[None]:
    if REHEARSAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_device(given: Problem) -> Problem:
    return Problem(*(tensor.to(DEVICE) for tensor in given))


def call_of(op: str, implementation: str) -> Callable[[], list[Tensor]]:
    """A call on fixed inputs that are on the device."""
    kernel = getattr(getattr(torch.ops.smile_fast, op), implementation)
    dense = on_device(problem(2, 13, (65, 63), torch.bfloat16))
    low = on_device(problem(2, 13, (64, 63), torch.bfloat16, low=(9, 8)))
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(100_000, generator=generator).mul(64).floor().to(DEVICE)
    candidates = (torch.rand(100_000, generator=generator) < 0.5).to(DEVICE)
    gamma = torch.tensor([0.3, 0.66], dtype=torch.float64).to(DEVICE)
    segments = torch.tensor([0, 40_000, 100_000]).to(DEVICE)
    grid = torch.randn(6, 5, 9, 8, generator=generator).mul(3).round().to(DEVICE)
    volume = torch.randint(0, 3, (6, 70, 61), generator=generator).clamp(max=1).byte().to(DEVICE)
    place = torch.empty_like(dense.logits)

    def in_place() -> list[Tensor]:
        place.copy_(dense.logits)
        return [*kernel(place, dense.labels, dense.table, True), place]

    factors = torch.rand(2, 13, dtype=torch.float64, generator=generator).to(DEVICE)

    def scaled() -> list[Tensor]:
        place.copy_(dense.logits)
        kernel(place, factors)
        return [place]

    calls: dict[str, Callable[[], list[Tensor]]] = {
        "masked_bce": lambda: list(kernel(dense.logits, dense.labels, dense.table, True, True)),
        "masked_bce_in_place": in_place,
        "scale_gradient": scaled,
        "masked_bce_upsampled": lambda: list(kernel(low.logits, low.labels, low.table, True, True)),
        "select_top_fraction": lambda: [kernel(scores, candidates, gamma, segments)],
        "pseudo_labels_upsampled": lambda: list(kernel(grid, volume, [0, 1, 4], 0.4, 8, "volume")),
        "label_map_upsampled": lambda: [kernel(grid, 70, 61, 8, False)],
    }
    return calls[op]
