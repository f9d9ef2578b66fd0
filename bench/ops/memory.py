"""What a GPU's memory reaches: a copy and a read of 1 GiB, beside which the ops' bandwidths stand."""

from dataclasses import dataclass

import torch

from bench.comparison import CUDA, Call, Comparison, Conditions
from bench.ops.names import BYTES, COPY, READ


@dataclass(frozen=True)
class Workload:
    """So many float32."""

    floats: int = 1 << 28
    devices: tuple[str, ...] = (CUDA,)


WORKLOADS = {"1GiB": Workload()}


def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring a copy, which reads and writes, and a read together."""
    source = torch.ones(workload.floats // conditions.shrink**3, device=conditions.device)
    target = torch.empty_like(source)

    def check() -> dict[str, float]:
        assert float(source.sum()) == len(source)
        return {}

    calls = [Call(COPY, lambda: target.copy_(source))], [Call(READ, lambda: source.sum())]
    return Comparison(*calls, check, {BYTES: 4 * len(source)})
