"""pseudo_labels_upsampled: low-resolution logits of a volume to its pseudo-labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.interleaved import Contest, Contestant
from bench.ops.peers import COMPILE, EAGER, OURS, WRONG_VOXELS, Scale, compiled, op_or_skip
from bench.scenes import logits_of, scene, smooth_logits
from smile_fast.supervision import PSEUDO_BIT

STRIDE = 8
GAMMA = 0.33
UNDECIDED = 1e-4  # share of voxels that rounding may rank the other way


@dataclass(frozen=True)
class Workload:
    """A volume of `depth` slices, of whose organs every second one was not annotated."""

    organs: int = 13
    depth: int = 32
    size: int = 512
    scope: str = "volume"
    noise: bool = False


WORKLOADS = {
    "K13": Workload(),
    "K13-per-slice": Workload(scope="slice"),
    "K13-noise": Workload(noise=True),
}
Candidates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def candidates(coarse: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [D, H, W] of one organ's logits [D, h, w], and where they are above 0 and nothing is drawn."""
    size = (labels.shape[1], labels.shape[2])
    scores = F.interpolate(coarse[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return scores, (scores > 0) & (labels == 0)


def pseudo_labels(logits: Tensor, labels: Tensor, organs: Sequence[int], scope: str, find: Candidates) -> Tensor:
    """Do it in plain torch, organ by organ, on compacted candidates."""
    best = torch.full(labels.shape, -torch.inf)
    overlay = torch.zeros_like(labels)
    for organ in organs:
        scores, allowed = find(logits[:, organ], labels)
        parts = zip(scores, allowed, strict=True) if scope == "slice" else [(scores, allowed)]
        selected = torch.cat([_top(*part).reshape(-1) for part in parts]).view(labels.shape)
        wins = selected & (scores > best)
        best = torch.where(wins, scores, best)
        overlay.masked_fill_(wins, PSEUDO_BIT | (organ + 1))
    return overlay


def _top(scores: Tensor, allowed: Tensor) -> Tensor:
    where = allowed.flatten().nonzero()[:, 0]
    chosen = torch.topk(scores.flatten()[where], math.ceil(GAMMA * len(where)), sorted=False).indices
    selected = torch.zeros(allowed.numel(), dtype=torch.bool)
    selected[where[chosen]] = True
    return selected


@torch.inference_mode()
def contest(workload: Workload, scale: Scale) -> Contest:
    """Bring ours and the peers together."""
    op = op_or_skip("pseudo_labels_upsampled")
    size, depth = workload.size // scale.shrink, workload.depth // scale.shrink
    organs = list(range(0, workload.organs, 2))
    of = scene(depth, workload.organs, (size, size), 0.0)
    labels = torch.where(of.truth % 2 == 1, 0, of.truth)  # organ k has value k + 1
    coarse = (size // STRIDE, size // STRIDE)
    logits = smooth_logits(depth, workload.organs, coarse)
    if workload.noise:
        logits = logits_of(of.truth, workload.organs, coarse, torch.float32)
    graph = compiled(candidates, scale)
    scope = workload.scope
    ours = Contestant(OURS, lambda: op(logits, labels, organs, GAMMA, STRIDE, scope))
    peers = [
        Contestant(EAGER, lambda: pseudo_labels(logits, labels, organs, scope, candidates)),
        Contestant(COMPILE, lambda: pseudo_labels(logits, labels, organs, scope, graph)),
    ]

    def check() -> dict[str, float]:
        exact, _ = op(logits, labels, organs, GAMMA, STRIDE, scope, implementation="reference")
        overlay, _ = ours.run()
        for name, found in ((OURS, overlay), *((peer.name, peer.run()) for peer in peers)):
            differing = float((found != exact).double().mean())
            assert differing <= UNDECIDED, f"{name}: {differing:.2%} of the voxels have another pseudo-label"
        return {WRONG_VOXELS: float((overlay != exact).sum())}

    facts = {"logits": list(logits.shape), "labels": list(labels.shape), "organs": len(organs), "gamma": GAMMA}
    return Contest([ours], peers, check, facts)
