"""select_top_fraction: the mask of the highest-scoring share of the candidates."""

import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.comparison import CPU, CUDA, Call, Comparison, Conditions, chosen, variants
from bench.machine import TOOLKIT
from bench.measure import COSTS
from bench.ops.names import BYTES, IMPLEMENTATION, READ, WRONG_VOXELS
from bench.scenes import ellipsoid
from bench.timing import rounded
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
        peers: who takes part on a CPU.
    """

    segments: int = 3
    length: int = 100 * 512 * 512
    gamma: float = 0.33
    candidates: float = 0.05
    scattered: bool = False
    scores: str = "probabilities"
    peers: tuple[str, ...] = FEWER_PEERS
    devices: tuple[str, ...] = (CPU,)


BOTH = (CPU, CUDA)
WORKLOADS = {
    "3x26M-5pct": Workload(peers=PEERS, devices=BOTH),
    "3x26M-5pct-scattered": Workload(scattered=True, devices=BOTH),
    "3x26M-50pct": Workload(candidates=0.5),
    "3x26M-all": Workload(candidates=1.0, scattered=True, devices=(CUDA,)),
    "3x26M-near-one": Workload(scores="near one", devices=BOTH),
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


def problem(workload: Workload, conditions: Conditions) -> Problem:
    """Make scores in 0..1 and candidates: where the scores are above one half, or anywhere."""
    length = workload.length // conditions.shrink**3
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
    return Problem(scores.to(conditions.device), candidates.to(conditions.device), workload.gamma, length)


def _ball(length: int, share: float) -> Tensor:
    """Mask [length] of a ball in a volume of about 100 square slices, of about that share of it."""
    depth = max(1, min(100, length // 64))
    side = max(1, math.isqrt(length // depth))
    radius = (share * 3 / (4 * math.pi)) ** (1 / 3)
    inside = ellipsoid((depth, side, side), np.full(3, 0.5), np.full(3, radius)) < 1
    mask = torch.zeros(length, dtype=torch.bool)
    mask[: inside.size] = torch.from_numpy(inside.ravel())
    return mask


def compare(workload: Workload, conditions: Conditions) -> Comparison:
    """Bring ours, the peers and one read of the scores together."""
    given = problem(workload, conditions)
    offsets = torch.arange(0, len(given.scores) + 1, given.length, device=given.scores.device)
    gamma: float | Tensor = given.gamma
    if conditions.gpu:  # where a number would have to be copied in every call
        gamma = torch.full((workload.segments,), given.gamma, dtype=torch.float64, device=conditions.device)

    def run(implementation: str | None) -> Tensor:
        return select_top_fraction(given.scores, given.candidates, gamma, offsets, implementation=implementation)

    ours = variants("select_top_fraction", conditions, run)
    peers = batched(given) if conditions.gpu else [Call(name, _runner(RUN[name], given)) for name in workload.peers]

    def check() -> dict[str, float]:
        wanted = exact(given)
        for call in ours:
            different = int((call.run() ^ wanted).sum())
            assert not different, f"{call.name}: {different} voxels differ"
        for peer in peers:
            if conditions.gpu:
                assert_best_scores(peer.name, peer.run()[0], wanted, given)
            else:
                assert_as_good(peer.name, peer.run(), wanted, given)
        return {WRONG_VOXELS: 0.0}

    facts = {
        IMPLEMENTATION: chosen("select_top_fraction", conditions.device),
        "scores": f"{workload.segments} x {given.length} float32",
        "candidates": int(given.candidates.sum()),
        "gamma": given.gamma,
        BYTES: len(given.scores) * (given.scores.element_size() + 2),  # candidates read, selection written
    }
    if conditions.device == CUDA:
        facts[COSTS] = {"cub::DeviceSegmentedSort, ms": cub_milliseconds(workload.segments, given.length)}
    return Comparison(ours, [*peers, Call(READ, lambda: given.scores.sum())], check, facts)


def batched(given: Problem) -> list[Call]:
    """A GPU's peers: all segments at once, masked before, so that nothing waits for the host; no mask is made."""
    masked = torch.where(given.candidates, given.scores, -torch.inf).view(-1, given.length)
    most = max(given.quota(part) for part in given.segments())
    return [
        Call(TOPK, lambda: torch.topk(masked, most, dim=1, sorted=False)),
        Call(SORT, lambda: torch.sort(masked, dim=1, descending=True)),
    ]


def cub_milliseconds(segments: int, length: int) -> float:
    """Median of CUB's own sort of as many random keys, from a program of its own."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cub_segmented_sort")
        source = str(Path(__file__).parent / "cub_segmented_sort.cu")
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{TOOLKIT}"}
        compiler = ["nvcc", "-O3", "-std=c++17", "-arch=native", source, "-o", program]
        subprocess.run(compiler, check=True, env=environment)
        printed = subprocess.run([program, str(segments), str(length)], check=True, capture_output=True, text=True)
    return rounded(statistics.median(float(line) for line in printed.stdout.split()))


def exact(given: Problem) -> Tensor:
    """The selection by a stable sort of the candidates: ties go to the lowest index."""
    selected = torch.zeros_like(given.candidates)
    for part in given.segments():
        index = given.candidates[part].nonzero()[:, 0]
        order = torch.sort(given.scores[part][index], descending=True, stable=True).indices
        selected[part][index[order[: given.quota(part)]]] = True
    return selected


def assert_best_scores(name: str, best: Tensor, wanted: Tensor, given: Problem) -> None:
    """Raise AssertionError unless rows [segments, n] begin, once they are sorted, with the scores that are wanted."""
    for row, part in zip(best, given.segments(), strict=True):
        scores = given.scores[part][wanted[part]].sort(descending=True).values
        assert torch.equal(row.sort(descending=True).values[: len(scores)], scores), f"{name}: other scores"


def assert_as_good(name: str, selected: Tensor, wanted: Tensor, given: Problem) -> None:
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
    best: Any = np.argpartition(scores.numpy()[index], place)[place:] if place < len(index) else []
    return _marked(candidates, torch.from_numpy(index[best]))


RUN: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    SORT: sort,
    TOPK: topk,
    KTHVALUE: kthvalue,
    PARTITION: partition,
    COMPACT_TOPK: compact_topk,
    COMPACT_PARTITION: compact_partition,
}
