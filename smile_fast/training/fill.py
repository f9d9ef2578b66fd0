"""Missing organs are filled once by another model's labels before an ordinary training: what is often done in practice.

All that the other model says is believed: where it finds a missing organ is the organ, and everything else is not.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smile_fast.data.label_folder import FolderLabelMap, label_files
from smile_fast.training.curriculum.braking import Braking
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import COUNTED, OrganCounts, Round
from smile_fast.training.run import Run
from smile_fast.training.run_record import is_run
from smile_fast.training.unfinished_round import write_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.io.files import sha256
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT
from smile_runtime.progress import progress

FILLED = Round(0, 1.0, "volume", Braking(negatives=1.0))
"""All candidates and all negatives, before the first step."""


def fill(run: Run, source: Path, device: torch.device | str = "cpu") -> None:
    """Fill the missing organs of a new run's training cases, before its first step.

    Args:
        run: a new run of the method smile.
        source: a trained run of the same organs; or a folder of label maps CASE.nii.gz with the values of the store,
            one for every case in which an organ was not drawn.
        device: where a run's network finds them.

    Raises:
        InputError: the method has no use for it; the source is neither, knows other organs or lacks a case, or one of
            its label maps cannot be read or lies on another grid; or the labels cannot be written.
    """
    if run.config.method != "smile":
        raise InputError(f"--fill: {run.config.method} has a rule of its own for missing organs; take --method smile")
    if is_run(source):
        _from_run(run, Run.open(source), device)
    else:
        _from_folder(run, source)


def _from_run(run: Run, teacher: Run, device: torch.device | str) -> None:
    if teacher.config.head == "softmax":
        raise InputError(
            f"{teacher.path}: is a run of {teacher.config.method}, which has no probability of each organ; give a run "
            "of smile or smiler, or a folder of label maps"
        )
    if teacher.organs != run.organs:
        raise InputError(
            f"{teacher.path}: knows {', '.join(teacher.organs)}, not {', '.join(run.organs)}; give a run of the same "
            "organs, or a folder of label maps with the values of the store"
        )
    relabel(teacher.load_model().to(device), run.view("train"), run.fill_path, FILLED)


def _from_folder(run: Run, folder: Path) -> None:
    view = run.view("train")
    missing = {case: view.missing(case) for case in view.cases}
    files = label_files([case for case in view.cases if missing[case]], folder)
    if gone := [case for case, path in files.items() if not path.exists()]:
        raise InputError(
            f"{folder}: has no label map of {len(gone)} of {len(files)} cases in which an organ was not drawn, "
            f"{gone[0]}.nii.gz for one; add them"
        )
    digest = hashlib.sha256("".join(f"{case} {sha256(path)}\n" for case, path in files.items()).encode()).hexdigest()
    with write_round(run.fill_path, FILLED, run.organs, digest) as unfinished:
        for case in progress(view.cases, total=len(view.cases), label="fill"):
            if not missing[case]:
                unfinished.add(case, None, {})
                continue
            labels = FolderLabelMap(files[case], run.store.cases[case], len(run.organs))()
            unfinished.add(case, *_overlay(view, case, labels, missing[case]))
        unfinished.finish(view.cases)


def _overlay(
    view: TrainingView,
    case: str,
    labels: NDArray[np.uint8],  # [D, H, W]
    missing: list[int],
) -> tuple[NDArray[np.uint8], OrganCounts]:
    """The overlay [D, H, W] of a case, and how many voxels each missing organ gets; human labels stay what they are."""
    free = view.visible_labels(case) == 0
    found = free & np.isin(labels, [k + 1 for k in missing])
    overlay = np.where(found, labels | np.uint8(PSEUDO_BIT), np.where(free, np.uint8(PSEUDO_BACKGROUND), np.uint8(0)))
    numbers = {k: int(np.count_nonzero(found & (labels == k + 1))) for k in missing}
    return overlay, {view.organs[k]: dict.fromkeys(COUNTED, number) for k, number in numbers.items()}
