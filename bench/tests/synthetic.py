"""Synthetic figures of workloads."""

from bench.records import Figures, Record


def figures(name: str, ratios: dict[str, dict[str, tuple[float, float]]], **errors: float) -> Figures:
    """Figures with, for each of ours and each peer, the ratios of medians and of minima; the times of the first fit."""
    times = {ours: (2.0, 1.5) for ours in ratios}
    for peers in ratios.values():
        times = {peer: (2.0 * medians, 1.5 * minima) for peer, (medians, minima) in peers.items()} | times
    return {
        "name": name,
        "commit": "abc",
        "dirty": False,
        "errors": dict(errors),
        "milliseconds": {
            name: {"median": median, "minimum": minimum, "repetitions": 11, "page faults": 0, "preemptions": 0}
            for name, (median, minimum) in times.items()
        },
        "peer / ours": {
            ours: {peer: {"medians": medians, "minima": minima} for peer, (medians, minima) in peers.items()}
            for ours, peers in ratios.items()
        },
    }


def record(*benchmarks: Figures, date: str = "2026-01-01T00:00:00+00:00", **machine: object) -> Record:
    """A run that measured these."""
    described = {
        "device": "cpu",
        "cpu": "Some CPU @ 2 GHz",
        "threads": 2,
        "instruction set": "avx2",
        "best instruction set": "avx2",
        "allocator": "default",
        "torch": "9.9",
        **machine,
    }
    return Record(described, date, {one["name"]: one for one in benchmarks})


GPU = {
    "device": "cuda",
    "gpu": "NVIDIA Some GPU",
    "driver": "1",
    "torch": "2",
    "triton": "3",
    "compiler": "4",
    "python": "3.11",
}
"""A machine."""
