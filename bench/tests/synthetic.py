"""Synthetic figures of workloads."""

from bench.record import Figures, Record


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
    return {
        "machine_info": described,
        "commit_info": {"id": "abc", "dirty": False},
        "datetime": date,
        "benchmarks": [{"name": f"test[{one['name']}]", "extra_info": one} for one in benchmarks],
    }
