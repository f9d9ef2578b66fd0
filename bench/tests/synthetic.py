"""Synthetic figures of workloads."""

from bench.records import Figures, Record


def figures(name: str, ratios: dict[str, dict[str, tuple[float, float]]], **errors: float) -> Figures:
    """Figures with, for each of ours and each peer, the ratios of medians and of minima."""
    return {
        "name": name,
        "commit": "abc",
        "dirty": False,
        "errors": dict(errors),
        "milliseconds": {
            ours: {"median": 2.0, "minimum": 1.5, "repetitions": 11, "page faults": 0, "preemptions": 0}
            for ours in ratios
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
