"""One relabelling round of SMILEr: the most confident positives of missing organs become pseudo-labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smile_fast.models import Segmenter
from smile_fast.supervision import State
from smile_fast.training.inference import predict_logits
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_fast.training.rounds import COUNTED, OrganCounts, Round, StoredRound, open_round, write_round
from smile_fast.training.view import TrainingView
from smile_runtime.progress import progress


def relabel(
    model: Segmenter, view: TrainingView, rounds: Path, this: Round, check: Callable[[], None] = lambda: None
) -> StoredRound:
    """Run one round over all cases of a view and write its overlays.

    For each (case, organ that was not annotated) the candidates are the voxels that the model calls
    positive (p > 0.5) and that carry no human label; ceil(gamma n) of them, highest first, are selected.
    Where two organs select one voxel the higher score wins, then the lower organ. The round is computed
    from human labels alone: the view must not carry the overlay of an earlier round.

    Args:
        model: the network, with one logit channel per organ.
        view: the training cases, human labels only.
        rounds: folder of the run's rounds; the round appears in it as a whole or not at all.
        this: number, gamma and scope.
        check: called before each case; may raise to give up the round, of which nothing is left then.

    Returns:
        The round, with an overlay of every case in which an organ was not annotated.
    """
    if view.overlay is not None:
        raise ValueError("view must show human labels only: rounds do not accumulate")
    labeller = PseudoLabeller()
    with write_round(rounds, this, view.organs) as written:
        for case in progress(view.cases, total=len(view.cases), label=f"relabel, round {this.number}"):
            check()
            organs = [k for k, state in enumerate(view.states[case]) if state in (State.MISSING, State.HIDDEN)]
            if organs:
                written.add(case, *_relabel_case(model, view, case, organs, this, labeller))
    return open_round(rounds, this.number)


def _relabel_case(
    model: Segmenter, view: TrainingView, case: str, organs: list[int], this: Round, labeller: PseudoLabeller
) -> tuple[NDArray[np.uint8], OrganCounts]:
    """The overlay [D, H, W] of one case, and per organ the numbers of candidates, selected and kept voxels."""
    human = view.visible_labels(case)  # [D, H, W]
    whole, box = np.zeros(human.shape, np.uint8), view.box(case)
    if not box.slices:  # nothing but air
        return whole, {view.organs[k]: dict.fromkeys(COUNTED, 0) for k in organs}
    shown = list(box.slices)
    spacing = view.spacing(case)
    logits = predict_logits(model, view.image(case), box=box, spacing=spacing)  # [n, K, h, w]
    labels = torch.from_numpy(box.crop(human)[shown])  # [n, H', W']
    stride = model.config.scan_stride(spacing)
    overlay, numbers = labeller(logits, labels, organs, this.gamma, stride, this.scope)
    box.crop(whole)[shown] = overlay.numpy()
    counts = {
        view.organs[k]: dict(zip(COUNTED, row, strict=True)) for k, row in zip(organs, numbers.tolist(), strict=True)
    }
    return whole, counts
