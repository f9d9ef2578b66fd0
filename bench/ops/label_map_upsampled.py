"""label_map_upsampled: low-resolution logits to label maps."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.agreement import UNDECIDED_LABELS
from bench.comparison import CPU, CUDA, Call, Comparison, Conditions, chosen, variants
from bench.ops.names import BYTES, COMPILE, EAGER, IMPLEMENTATION, WRONG_VOXELS
from bench.scenes import smooth_logits
from smile_fast.ops import label_map_upsampled

STRIDE = 8


@dataclass(frozen=True)
class Workload:
    """Logits [batch, organs, 64, 64]: of a sure network, or noise, in which no cell is decided by its corners."""

    organs: int
    noise: bool = False
    batch: int = 4
    size: int = 512
    devices: tuple[str, ...] = (CPU,)


WORKLOADS = {
    "K3": Workload(3),
    "K13": Workload(13),
    "K3-noise": Workload(3, noise=True),
    "K13-noise": Workload(13, noise=True),
    "K13-volume": Workload(13, batch=100, devices=(CUDA,)),
    "K13-noise-volume": Workload(13, noise=True, batch=100, devices=(CUDA,)),
}


def label_map(logits: Tensor, size: int) -> Tensor:
    """Do it in plain torch: 0 where no organ is above 0, else 1 + the highest."""
    full = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    best, organ = full.max(dim=1)
    return torch.where(best > 0, organ + 1, 0).to(torch.uint8)


@torch.inference_mode()
def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring ours and the peers together."""
    size = workload.size // conditions.shrink
    shape = (size // STRIDE, size // STRIDE)
    logits = smooth_logits(workload.batch, workload.organs, shape)
    if workload.noise:
        logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    logits = logits.to(conditions.device)
    graph = conditions.compiled(label_map)

    def run(implementation: str | None) -> Tensor:
        return label_map_upsampled(logits, size, size, STRIDE, False, implementation=implementation)

    ours = variants("label_map_upsampled", conditions, run)
    peers = [Call(EAGER, lambda: label_map(logits, size)), Call(COMPILE, lambda: graph(logits, size))]

    def check() -> dict[str, float]:
        wrong = {}
        for call in (*ours, *peers):
            found = call.run()
            wrong[call.name] = sum(
                int((found[first : first + 4] != label_map(logits[first : first + 4].double(), size)).sum())
                for first in range(0, len(logits), 4)  # float64 of a whole volume would be 30 GB
            )
            share = wrong[call.name] / found.numel()
            assert share <= UNDECIDED_LABELS[conditions.device], (
                f"{call.name}: {share:.2%} of the pixels have another label"
            )
        return {WRONG_VOXELS: float(max(wrong[call.name] for call in ours))}

    facts = {
        IMPLEMENTATION: chosen("label_map_upsampled", conditions.device),
        "logits": list(logits.shape),
        "labels": [workload.batch, size, size],
        BYTES: logits.numel() * logits.element_size() + workload.batch * size * size,
    }
    return Comparison(ours, peers, check, facts, warm=[logits])  # a network has just written them
