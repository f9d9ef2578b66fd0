"""select_top_fraction: the mask of the highest-scoring share of the candidates."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.interleaved import Contest, Contestant
from bench.ops.peers import OURS, READ, WRONG_VOXELS, Scale
from bench.scenes import ellipsoid
from smile_fast.ops import select_top_fraction

SORT, TOPK, KTHVALUE, PARTITION = "torch.sort", "torch.topk", "torch.kthvalue", "numpy.partition"
COMPACT_TOPK, COMPACT_PARTITION = "compact, torch.topk", "compact, numpy.argpartition"
PEERS = (SORT, TOPK, KTHVALUE, PARTITION, COMPACT_TOPK, COMPACT_PARTITION)
FEWER_PEERS = (TOPK, COMPACT_TOPK, COMPACT_PARTITION)  # the others take seconds and lose everywhere


@dataclass(frozen=True)
class Workload:
    """Segments of equal length.

    Attributes:
        segments: S. length: voxels a segment.
        candidates: share of the voxels. scattered: candidates everywhere, else in blobs as a network finds organs.
        scores: "probabilities"; "near one", all of them within 2^-12 of 1; "equal".
        peers: who takes part.
    """

    segments: int = 3
    length: int = 100 * 512 * 512
    gamma: float = 0.33
    candidates: float = 0.05
    scattered: bool = False
    scores: str = "probabilities"
    peers: tuple[str, ...] = FEWER_PEERS


WORKLOADS = {
    "3x26M-5pct": Workload(peers=PEERS),
    "3x26M-5pct-scattered": Workload(scattered=True),
    "3x26M-50pct": Workload(candidates=0.5),
    "3x26M-near-one": Workload(scores="near one"),
    "3x26M-equal": Workload(scores="equal"),
    "1000-segments": Workload(segments=1000, length=100 * 512 * 512 // 1000),
}


class Problem(NamedTuple):
    """Arguments of the op; the segments have one length."""

    scores: Tensor  # [N] float32
    candidates: Tensor  # [N] bool
    gamma: float
    length: int

    def segments(self) -> Iterator[slice]:
        """The segments, one after the other."""
        for start in range(0, len(self.scores), self.length):
            yield slice(start, start + self.length)

    def quota(self, part: slice) -> int:
        """How many a segment selects."""
        return math.ceil(self.gamma * int(self.candidates[part].sum()))


def problem(workload: Workload, scale: Scale) -> Problem:
    """Make scores in 0..1 and candidates: where the scores are above one half, or anywhere."""
    length = workload.length // scale.shrink**3
    count = workload.segments * length
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, generator=generator)
    if workload.scattered:
        candidates = noise < workload.candidates
    else:
        candidates = _ball(length, workload.candidates).repeat(workload.segments)
    if workload.scores == "probabilities":
        # Sure of most of what it calls positive: the more scores share an exponent, the harder they are to tell apart.
        draw = torch.rand(count, generator=generator)
        scores = torch.sigmoid(torch.where(candidates, 8 * draw, -8 * draw))
    elif workload.scores == "near one":
        scores = 1 - torch.rand(count, generator=generator) * 2.0**-12
    elif workload.scores == "equal":
        scores = torch.full((count,), 0.75)
    else:
        raise ValueError(f"scores must be probabilities, near one or equal, got {workload.scores!r}")
    return Problem(scores, candidates, workload.gamma, length)


def _ball(length: int, share: float) -> Tensor:
    """Mask [length] of a ball in a volume of about 100 square slices, of about that share of it."""
    depth = max(1, min(100, length // 64))
    side = max(1, math.isqrt(length // depth))
    radius = (share * 3 / (4 * math.pi)) ** (1 / 3)
    inside = ellipsoid((depth, side, side), np.full(3, 0.5), np.full(3, radius)) < 1
    mask = torch.zeros(length, dtype=torch.bool)
    mask[: inside.size] = torch.from_numpy(inside.ravel())
    return mask


def contest(workload: Workload, scale: Scale) -> Contest:
    """Bring ours, the peers and one read of the scores together."""
    given = problem(workload, scale)
    offsets = torch.arange(0, len(given.scores) + 1, given.length)
    ours = Contestant(OURS, lambda: select_top_fraction(given.scores, given.candidates, given.gamma, offsets))
    peers = [Contestant(name, _runner(RUN[name], given)) for name in workload.peers]

    def check() -> dict[str, float]:
        wanted = exact(given)
        selected = ours.run()
        assert torch.equal(selected, wanted), f"{ours.name}: {int((selected ^ wanted).sum())} voxels differ"
        for peer in peers:
            _assert_as_good(peer.name, peer.run(), wanted, given)
        return {WRONG_VOXELS: float((selected ^ wanted).sum())}

    return Contest(
        ours=[ours],
        peers=[*peers, Contestant(READ, lambda: given.scores.sum())],
        check=check,
        facts={
            "scores": f"{workload.segments} x {given.length} float32",
            "candidates": int(given.candidates.sum()),
            "gamma": given.gamma,
        },
    )


def exact(given: Problem) -> Tensor:
    """The selection by a stable sort of the candidates: ties go to the lowest index."""
    selected = torch.zeros_like(given.candidates)
    for part in given.segments():
        index = given.candidates[part].nonzero()[:, 0]
        order = torch.sort(given.scores[part][index], descending=True, stable=True).indices
        selected[part][index[order[: given.quota(part)]]] = True
    return selected


def _assert_as_good(name: str, selected: Tensor, wanted: Tensor, given: Problem) -> None:
    """Raise AssertionError unless a peer selects candidates with the same scores; among ties it may take any."""
    assert not (selected & ~given.candidates).any(), f"{name}: selected what is no candidate"
    for part in given.segments():
        theirs, ours = (mask[part] for mask in (selected, wanted))
        if int(theirs.sum()) == int(ours.sum()):
            assert torch.equal(*(given.scores[part][mask].sort().values for mask in (theirs, ours))), name
        else:  # a threshold takes all ties
            assert name in (KTHVALUE, PARTITION), f"{name}: {int(theirs.sum())} selected, wanted {int(ours.sum())}"
            assert given.scores[part][theirs].min() == given.scores[part][ours].min(), name


def _runner(select: Callable[[Tensor, Tensor, float], Tensor], given: Problem) -> Callable[[], Tensor]:
    """Run a peer over all segments."""

    def run() -> Tensor:
        selected = torch.zeros_like(given.candidates)
        for part in given.segments():
            selected[part] = select(given.scores[part], given.candidates[part], given.gamma)
        return selected

    return run


def _quota(candidates: Tensor, gamma: float) -> int:
    return math.ceil(gamma * int(candidates.sum()))


def _masked(scores: Tensor, candidates: Tensor) -> Tensor:
    return torch.where(candidates, scores, -torch.inf)


def _marked(like: Tensor, index: Tensor) -> Tensor:
    selected = torch.zeros_like(like)
    selected[index] = True
    return selected


def sort(scores: Tensor, candidates: Tensor, gamma: float) -> Tensor:
    order = torch.sort(_masked(scores, candidates), descending=True).indices
    return _marked(candidates, order[: _quota(candidates, gamma)])


def topk(scores: Tensor, candidates: Tensor, gamma: float) -> Tensor:
    best = torch.topk(_masked(scores, candidates), _quota(candidates, gamma), sorted=False).indices
    return _marked(candidates, best)


def kthvalue(scores: Tensor, candidates: Tensor, gamma: float) -> Tensor:
    masked = _masked(scores, candidates)
    threshold = torch.kthvalue(masked, len(masked) - _quota(candidates, gamma) + 1).values
    return masked >= threshold


def partition(scores: Tensor, candidates: Tensor, gamma: float) -> Tensor:
    masked = _masked(scores, candidates)
    place = len(masked) - _quota(candidates, gamma)
    return masked >= float(np.partition(masked.numpy(), place)[place])


def compact_topk(scores: Tensor, candidates: Tensor, gamma: float) -> Tensor:
    index = candidates.nonzero()[:, 0]
    best = torch.topk(scores[index], math.ceil(gamma * len(index)), sorted=False).indices
    return _marked(candidates, index[best])


def compact_partition(scores: Tensor, candidates: Tensor, gamma: float) -> Tensor:
    index = np.flatnonzero(candidates.numpy())
    place = len(index) - math.ceil(gamma * len(index))
    best = np.argpartition(scores.numpy()[index], place)[place:] if place < len(index) else []
    return _marked(candidates, torch.from_numpy(index[best]))


RUN: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    SORT: sort,
    TOPK: topk,
    KTHVALUE: kthvalue,
    PARTITION: partition,
    COMPACT_TOPK: compact_topk,
    COMPACT_PARTITION: compact_partition,
}
