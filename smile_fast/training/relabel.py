"""One relabelling round of SMILEr: the most confident positives of missing organs become pseudo-labels."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smile_fast.data.store import write_array
from smile_fast.models import Segmenter
from smile_fast.supervision import State
from smile_fast.training.inference import predict_logits
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.io.files import write_json
from smile_runtime.predict.progress import progress


@dataclass(frozen=True)
class Round:
    """Which round, and how many of the candidates it takes.

    Attributes:
        number: t, counted from 1. gamma: share of the candidates. scope: "volume" or "slice".
    """

    number: int
    gamma: float
    scope: str


def relabel(
    model: Segmenter, view: TrainingView, rounds: Path, this: Round, check: Callable[[], None] = lambda: None
) -> Path:
    """Run one round over all cases of a view and write its overlays.

    For each (case, organ that was not annotated) the candidates are the voxels that the model calls
    positive (p > 0.5) and that carry no human label; ceil(gamma n) of them, highest first, are selected.
    Where two organs select one voxel the higher score wins, then the lower organ. The round is computed
    from human labels alone: the view must not carry the overlay of an earlier round.

    Args:
        model: the network, with one logit plane per organ.
        view: the training cases, human labels only.
        rounds: folder of the run's rounds; ``<number>/`` in it is written as a whole or not at all.
        this: number, gamma and scope.
        check: called before each case; may raise to give up the round, of which nothing is left then.

    Returns:
        The round's folder: ``<case>.b2nd`` overlays and round.json with the counts.
    """
    if view.overlay is not None:
        raise ValueError("view must show human labels only: rounds do not accumulate")
    target, unfinished = rounds / str(this.number), rounds / f".{this.number}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        cases: dict[str, Any] = {}
        labeller = PseudoLabeller()
        label = f"relabel, round {this.number}"
        for case in progress(view.cases, total=len(view.cases), label=label):
            check()
            organs = [k for k, state in enumerate(view.states[case]) if state in (State.MISSING, State.HIDDEN)]
            if not organs:
                continue
            overlay, cases[case] = _relabel_case(model, view, case, organs, this, labeller)
            write_array(unfinished / f"{case}.b2nd", overlay)
        record = {"round": this.number, "gamma": this.gamma, "scope": this.scope, "cases": cases}
        write_json(unfinished / "round.json", record)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except OSError as error:
        raise InputError(f"Round {this.number} cannot be written to {target} ({error.strerror}).") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def read_round(folder: Path) -> tuple[Round, dict[str, dict[str, dict[str, int]]]]:
    """Read round.json of a finished round.

    Returns:
        The round, and by case and organ the numbers of its candidates, selected and kept voxels.

    Raises:
        InputError: the file is not what `relabel` writes.
    """
    path = folder / "round.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        this = Round(int(record["round"]), float(record["gamma"]), str(record["scope"]))
        cases = {
            str(case): {
                str(organ): {name: int(counts[name]) for name in ("candidates", "selected", "kept")}
                for organ, counts in organs.items()
            }
            for case, organs in record["cases"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as a relabelling round ({type(error).__name__}: {error}); remove the folder "
            f"{folder}, or restore the file from a copy."
        ) from None
    return this, cases


def round_totals(folder: Path) -> dict[str, dict[str, int]]:
    """Numbers of candidates, selected and kept voxels of a finished round by organ, summed over the cases."""
    totals: dict[str, dict[str, int]] = {}
    for organs in read_round(folder)[1].values():
        for organ, counts in organs.items():
            total = totals.setdefault(organ, dict.fromkeys(counts, 0))
            for name, number in counts.items():
                total[name] += number
    return totals


def undo_rounds(rounds: Path, keep: int) -> list[int]:
    """Drop the overlays of every round after round `keep`; human labels were never touched.

    Returns:
        The numbers of the dropped rounds, those without a round.json included.

    Raises:
        InputError: a round cannot be removed; no round is left in part.
    """
    for left in rounds.glob(".*.dropped"):  # of an undo that was cut short
        shutil.rmtree(left, ignore_errors=True)
    dropped = sorted(t for t in _numbers(path for path in rounds.glob("*") if path.is_dir()) if t > keep)
    for number in reversed(dropped):
        target, hidden = rounds / str(number), rounds / f".{number}.dropped"
        try:
            target.rename(hidden)  # whoever is cut short in the removal leaves a whole round, or none
            shutil.rmtree(hidden)
        except OSError as error:
            raise InputError(f"Round {number} cannot be removed from {rounds} ({error.strerror}).") from None
    return dropped


def existing_rounds(rounds: Path) -> list[int]:
    """Numbers of the finished rounds in a run, ascending."""
    return sorted(_numbers(file.parent for file in rounds.glob("*/round.json")))


def _numbers(folders: Iterable[Path]) -> list[int]:
    return [int(folder.name) for folder in folders if folder.name.isdecimal()]


def _relabel_case(
    model: Segmenter, view: TrainingView, case: str, organs: list[int], this: Round, labeller: PseudoLabeller
) -> tuple[NDArray[np.uint8], dict[str, dict[str, int]]]:
    """The overlay [D, H, W] of one case, and per organ the numbers of candidates, selected and kept voxels."""
    human = view.visible_labels(case)  # [D, H, W]
    whole, box = np.zeros(human.shape, np.uint8), view.box(case)
    names = ("candidates", "selected", "kept")
    if not box.planes:  # nothing but air
        return whole, {view.organs[k]: dict.fromkeys(names, 0) for k in organs}
    planes = list(box.planes)
    logits = predict_logits(model, view.image(case), box=box)  # [n, K, h, w]
    labels = torch.from_numpy(box.crop(human)[planes])  # [n, H', W']
    overlay, numbers = labeller(logits, labels, organs, this.gamma, model.config.output_stride, this.scope)
    box.crop(whole)[planes] = overlay.numpy()
    counts = {
        view.organs[k]: dict(zip(names, row, strict=True)) for k, row in zip(organs, numbers.tolist(), strict=True)
    }
    return whole, counts
