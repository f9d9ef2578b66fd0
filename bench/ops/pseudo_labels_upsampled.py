"""pseudo_labels_upsampled: low-resolution logits of a volume to its pseudo-labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.agreement import UNDECIDED_PSEUDO_LABELS
from bench.comparison import CPU, CUDA, OURS, Call, Comparison, Conditions, chosen, variants
from bench.ops.names import BYTES, COMPILE, EAGER, IMPLEMENTATION, WRONG_VOXELS
from bench.scenes import logits_of, scene, smooth_logits
from smile_fast.ops import pseudo_labels_upsampled
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_runtime.label_map import PSEUDO_BIT

STRIDE = 8
GAMMA = 0.33
HOST_TO_HOST = f"{OURS}, host to host"


@dataclass(frozen=True)
class Workload:
    """A volume of `depth` slices, of whose organs every second one was not annotated."""

    organs: int = 13
    depth: int = 32
    size: int = 512
    scope: str = "volume"
    noise: bool = False
    devices: tuple[str, ...] = (CPU,)


WORKLOADS = {
    "K13": Workload(),
    "K13-per-slice": Workload(scope="slice"),
    "K13-noise": Workload(noise=True),
    "K13-noise-volume": Workload(depth=100, noise=True, devices=(CUDA,)),
}
Candidates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def candidates(low: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [D, H, W] of one organ's logits [D, h, w], and where they are above 0 and nothing is drawn."""
    size = (labels.shape[1], labels.shape[2])
    scores = F.interpolate(low[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return scores, (scores > 0) & (labels == 0)


def pseudo_labels(logits: Tensor, labels: Tensor, organs: Sequence[int], scope: str, find: Candidates) -> Tensor:
    """Do it in plain torch, organ by organ, on compacted candidates."""
    best = torch.full(labels.shape, -torch.inf, device=labels.device)
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
    selected = torch.zeros(allowed.numel(), dtype=torch.bool, device=allowed.device)
    selected[where[chosen]] = True
    return selected


@torch.inference_mode()
def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring ours and the peers together; on a GPU also a case from the host's memory to the host's."""
    size, depth = workload.size // conditions.shrink, workload.depth // conditions.shrink
    organs = list(range(0, workload.organs, 2))
    of = scene(depth, workload.organs, (size, size), 0.0)
    low = (size // STRIDE, size // STRIDE)
    logits = smooth_logits(depth, workload.organs, low)
    if workload.noise:
        logits = logits_of(of.truth, workload.organs, low, torch.float32)
    on_host = torch.where(of.truth % 2 == 1, 0, of.truth)  # organ k has value k + 1
    logits, labels = logits.to(conditions.device), on_host.to(conditions.device)
    scope = workload.scope

    def run(implementation: str | None) -> tuple[Tensor, Tensor]:
        return pseudo_labels_upsampled(logits, labels, organs, GAMMA, STRIDE, scope, implementation=implementation)

    ours = variants("pseudo_labels_upsampled", conditions, run)
    if conditions.gpu:
        labeller = PseudoLabeller()
        ours.append(Call(HOST_TO_HOST, lambda: labeller(logits, on_host, organs, GAMMA, STRIDE, scope)))
    graph = conditions.compiled(candidates)
    peers = [
        Call(EAGER, lambda: pseudo_labels(logits, labels, organs, scope, candidates)),
        Call(COMPILE, lambda: pseudo_labels(logits, labels, organs, scope, graph)),
    ]

    def check() -> dict[str, float]:
        exact = run(implementation="reference")[0].cpu()
        found = {call.name: call.run()[0].cpu() for call in ours}
        wrong = float(max((overlay != exact).sum() for overlay in found.values()))
        for name, overlay in (found | {peer.name: peer.run().cpu() for peer in peers}).items():
            share = float((overlay != exact).double().mean())
            assert share <= UNDECIDED_PSEUDO_LABELS, f"{name}: {share:.2%} of the voxels have another pseudo-label"
        return {WRONG_VOXELS: wrong}

    facts = {
        IMPLEMENTATION: chosen("pseudo_labels_upsampled", conditions.device),
        "logits": list(logits.shape),
        "labels": list(labels.shape),
        "organs": len(organs),
        "gamma": GAMMA,
        BYTES: logits.numel() * logits.element_size() + 2 * labels.numel(),
    }
    return Comparison(ours, peers, check, facts)
