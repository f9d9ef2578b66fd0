"""label_map_upsampled: low-resolution logits to label maps."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.interleaved import Contest, Contestant
from bench.ops.peers import COMPILE, EAGER, OURS, WRONG_VOXELS, Scale, compiled, op_or_skip
from bench.scenes import smooth_logits

STRIDE = 8
UNDECIDED = (
    1e-5  # share of pixels: float32 interpolation may decide a near tie the other way, a wrong formula does more
)


@dataclass(frozen=True)
class Workload:
    """Logits [batch, organs, 64, 64]: of a sure network, or noise, in which no cell is decided by its corners."""

    organs: int
    noise: bool = False
    batch: int = 4
    size: int = 512


WORKLOADS = {
    "K3": Workload(3),
    "K13": Workload(13),
    "K3-noise": Workload(3, noise=True),
    "K13-noise": Workload(13, noise=True),
}


def label_map(logits: Tensor, size: int) -> Tensor:
    """Do it in plain torch: 0 where no organ is above 0, else 1 + the highest."""
    full = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    best, organ = full.max(dim=1)
    return torch.where(best > 0, organ + 1, 0).to(torch.uint8)


@torch.inference_mode()
def contest(workload: Workload, scale: Scale) -> Contest:
    """Bring ours and the peers together."""
    op = op_or_skip("label_map_upsampled")
    size = workload.size // scale.shrink
    shape = (size // STRIDE, size // STRIDE)
    logits = smooth_logits(workload.batch, workload.organs, shape)
    if workload.noise:
        logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    graph = compiled(label_map, scale)
    ours = Contestant(OURS, lambda: op(logits, size, size, STRIDE, False))
    peers = [Contestant(EAGER, lambda: label_map(logits, size)), Contestant(COMPILE, lambda: graph(logits, size))]

    def check() -> dict[str, float]:
        exact = label_map(logits.double(), size)
        for one in (ours, *peers):
            differing = float((one.run() != exact).double().mean())
            assert differing <= UNDECIDED, f"{one.name}: {differing:.2%} of the pixels have another label"
        return {WRONG_VOXELS: float((ours.run() != exact).sum())}

    facts = {"logits": list(logits.shape), "labels": [workload.batch, size, size]}
    return Contest([ours], peers, check, facts, warm=[logits])  # a network has just written them
