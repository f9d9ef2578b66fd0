"""One relabelling round of SMILEr: the most confident positives of missing organs become pseudo-labels."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smile_fast.models import Segmenter
from smile_fast.pipeline import in_order, worker_thread
from smile_fast.training.curriculum.conduct import judge_of, limits_of, rooms_of
from smile_fast.training.curriculum.confidence import Heads
from smile_fast.training.curriculum.scores import scored_logits
from smile_fast.training.curriculum.selection import braked_pseudo_labels
from smile_fast.training.inference import predict_logits
from smile_fast.training.mean_confidence import mean_confidences
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_fast.training.rounds import COUNTED, Confidences, OrganCounts, Round, StoredRound
from smile_fast.training.unfinished_round import UnfinishedRound, share_round, write_round
from smile_fast.training.view import TrainingView
from smile_runtime.progress import progress
from smile_runtime.sharding import WHOLE, Shard
from smile_runtime.volume.preprocessing import BodyBox


@dataclass(frozen=True)
class _Case:
    """What a case needs before it is relabelled.

    Attributes:
        name: of the case. organs: those that were not annotated; of a case without any, nothing else is read.
        human: [D, H, W] visible labels. image: [D, H, W] HU. box: what the network sees.
    """

    name: str
    organs: list[int]
    human: NDArray[np.uint8]
    image: NDArray[np.int16]
    box: BodyBox


@dataclass(frozen=True)
class _Selection:
    """What became of a case.

    Attributes:
        organs, box: see `_Case`. shape: (D, H, W) of the case.
        overlay: [n, H', W'] uint8, of the box. numbers: [organs, 3] voxels, see `COUNTED`.
        confidences: organ -> mean probability of its pseudo-labels, of the organs that have some.
    """

    organs: list[int]
    box: BodyBox
    shape: tuple[int, ...]
    overlay: Tensor
    numbers: Tensor
    confidences: dict[int, float]


def relabel(
    model: Segmenter,
    view: TrainingView,
    rounds: Path,
    this: Round,
    check: Callable[[], None] = lambda: None,
    heads: Heads | None = None,
) -> StoredRound:
    """Run one round over all cases of a view and write its overlays.

    For each (case, organ that was not annotated) the candidates are the voxels that the model calls
    positive (p > 0.5) and that carry no human label; ceil(gamma n) of them, highest first, are selected.
    Where two organs select one voxel the higher score wins, then the lower organ. The round is computed
    from human labels alone: the view must not carry the overlay of an earlier round.

    While a case is computed the next one is read and the one before it is written; the files are those of a round that
    does one after the other. Cases that another process has finished, with the same weights and for the same round,
    before it was killed or interrupted are taken as they are.

    Args:
        model: the network, with one logit channel per organ.
        view: the training cases, human labels only.
        rounds: folder of the run's rounds; the round appears in it as a whole or not at all.
        this: number, gamma and scope.
        check: called before each case; may raise to give up the round, of which nothing is left then; after a
            KeyboardInterrupt the cases that are finished are.
        heads: what judges the network's decisions, for rounds whose score is confidence.

    Returns:
        The round, with an overlay of every case in which an organ was not annotated.

    Raises:
        InputError: other processes write shares of the round, or it cannot be written.
    """
    with write_round(rounds, this, view.organs, weights_digest(model)) as unfinished:
        _add_cases(unfinished, model, view, view.cases, this, check, heads)
        return unfinished.finish(view.cases, judge_of(view, rounds, this))


def relabel_share(
    model: Segmenter,
    view: TrainingView,
    rounds: Path,
    this: Round,
    check: Callable[[], None] = lambda: None,
    shard: Shard = WHOLE,
    heads: Heads | None = None,
) -> int:
    """Do a share of a round, beside other processes; `finish_round` makes it appear when all are done.

    Args:
        model: see `relabel`; the same in all processes, like the following.
        view: the cases of all shares.
        rounds: folder of the run's rounds.
        this: number, gamma and scope.
        check: called before each case; may raise to give up, and the cases that are finished stay.
        shard: which of the view's cases; those that are finished already are not done again.
        heads: see `relabel`.

    Returns:
        Number of cases that were done now.

    Raises:
        InputError: somebody writes a round of this number with other weights or settings, or it cannot be written.
    """
    with share_round(rounds, this, view.organs, weights_digest(model)) as unfinished:
        return _add_cases(unfinished, model, view, shard.of(view.cases), this, check, heads)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: which weights a round was computed with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _add_cases(
    unfinished: UnfinishedRound,
    model: Segmenter,
    view: TrainingView,
    cases: Sequence[str],
    this: Round,
    check: Callable[[], None],
    heads: Heads | None,
) -> int:
    if view.overlay is not None:
        raise ValueError("view must show human labels only: rounds do not accumulate")
    if this.braking is not None and this.braking.score == "confidence" and heads is None:
        raise ValueError("heads must be given: the score of the round is confidence")
    todo = [case for case in cases if not unfinished.has(case)]
    if len(todo) < len(cases):
        done = len(cases) - len(todo)
        print(f"round {this.number}: {done} of {len(cases)} cases had been finished before", file=sys.stderr)

    def read(case: str) -> _Case | None:
        organs = view.missing(case)
        return _Case(case, organs, view.visible_labels(case), view.image(case), view.box(case)) if organs else None

    def write(of_case: tuple[str, _Selection | None]) -> None:
        case, selection = of_case
        unfinished.add(case, *_whole(selection, view.organs))

    # The threads end before the round does: nothing is written into a round that was given up.
    with worker_thread("read") as reader, worker_thread("write") as writer:
        selections = _select(model, view, todo, in_order(read, todo, reader, ahead=1), this, check, heads)
        written = in_order(write, zip(todo, selections, strict=True), writer, ahead=1)
        for _ in progress(written, total=len(todo), label=f"relabel, round {this.number}"):
            pass
    return len(todo)


def _select(
    model: Segmenter,
    view: TrainingView,
    names: Sequence[str],
    cases: Iterable[_Case | None],
    this: Round,
    check: Callable[[], None],
    heads: Heads | None,
) -> Iterator[_Selection | None]:
    """Infer and select, case after case, on the model's device; None for a case in which every organ was annotated."""
    labeller, given = PseudoLabeller(), iter(cases)
    for _ in names:
        check()
        yield _selection(model, view, next(given), this, labeller, heads)


def _selection(
    model: Segmenter,
    view: TrainingView,
    case: _Case | None,
    this: Round,
    labeller: PseudoLabeller,
    heads: Heads | None,
) -> _Selection | None:
    if case is None:
        return None
    box, shape = case.box, case.human.shape
    if not box.slices:  # nothing but air
        nothing = torch.zeros((len(case.organs), len(COUNTED)), dtype=torch.int64)
        return _Selection(case.organs, box, shape, torch.empty(0), nothing, {})
    spacing = view.spacing(case.name)
    labels = torch.from_numpy(box.crop(case.human)[list(box.slices)])  # [n, H', W']
    stride = model.config.scan_stride(spacing)

    if this.braking is None or this.braking.only_rooms:
        logits = predict_logits(model, case.image, box=box, spacing=spacing)
        rooms = None if this.braking is None else rooms_of(this.braking, view, case.name, case.organs)
        overlay, numbers = labeller(logits, labels, case.organs, this.gamma, stride, this.scope, rooms)
        sure = mean_confidences(logits, overlay, case.organs, stride)
        return _Selection(case.organs, box, shape, overlay, numbers, sure)
    logits, ranks, upper = scored_logits(model, case.image, this.braking, view.organs, heads, box=box, spacing=spacing)
    overlay, numbers = braked_pseudo_labels(
        logits,
        labels.to(logits.device),
        case.organs,
        this.gamma,
        stride,
        this.scope,
        rooms=rooms_of(this.braking, view, case.name, case.organs),
        limits=[limits_of(this.braking, view, case.name, organ) for organ in case.organs],
        positions=np.array(list(box.slices)),
        negatives=this.braking.negatives,
        ranks=ranks,
        upper=upper,
    )
    sure = mean_confidences(logits, overlay, case.organs, stride)
    return _Selection(case.organs, box, shape, overlay.cpu(), numbers.cpu(), sure)


def _whole(
    selection: _Selection | None, organs: tuple[str, ...]
) -> tuple[NDArray[np.uint8] | None, OrganCounts, Confidences]:
    """The overlay [D, H, W] of a case, and per organ the numbers of its voxels and their mean probability."""
    if selection is None:
        return None, {}, {}
    whole, box = np.zeros(selection.shape, np.uint8), selection.box
    if box.slices:
        box.crop(whole)[list(box.slices)] = selection.overlay.numpy()
    rows = zip(selection.organs, selection.numbers.tolist(), strict=True)
    counts = {organs[k]: dict(zip(COUNTED, row, strict=True)) for k, row in rows}
    return whole, counts, {organs[k]: mean for k, mean in selection.confidences.items()}
