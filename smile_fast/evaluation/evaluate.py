"""Predict the cases of a run and score them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.label_grid import resampling_advice
from smile_fast.evaluation.results import Evaluation, summarise
from smile_fast.evaluation.scores import NSD_TOLERANCE_MM, PairScore, score_case
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.names import normal_name
from smile_runtime.progress import progress

if TYPE_CHECKING:
    import torch

    from smile_fast.training.run import Run


def evaluate_run(
    run: "Run",
    *,
    split: str = "test",
    nsd_tolerance_mm: float | None = NSD_TOLERANCE_MM,
    predictions: Path | None = None,
    device: "torch.device | str" = "cpu",
) -> Evaluation:
    """Predict every case of a split and score it against the human labels.

    Args:
        run: a trained run.
        split: test, validation or train.
        nsd_tolerance_mm: see `score_case`.
        predictions: folder of NIfTI label maps named CASE.nii.gz to score instead of the run's network.
        device: where the network runs.

    Raises:
        InputError: the split is empty, a prediction is missing or lies on another grid, or the store is damaged.
    """
    cases = run.cases(split)
    if not cases:
        raise InputError(
            f"{run.path}: there is no {split} case to evaluate; choose another --split (test cases come from "
            "imagesTs and labelsTs of the dataset)"
        )
    if nsd_tolerance_mm is not None and not (math.isfinite(nsd_tolerance_mm) and nsd_tolerance_mm >= 0):
        raise InputError(f"--nsd-tolerance: {nsd_tolerance_mm} was given; give a finite number of mm, 0 or more")
    store, states = run.store, run.declarations()
    predict = _network_predictor(run, device) if predictions is None else _folder_predictor(run, predictions)
    pairs: list[PairScore] = []
    for case in progress(cases, total=len(cases), label=f"evaluate {split}"):
        pairs += score_case(
            case,
            store.read_labels(case),
            predict(case),
            states[case],
            run.organs,
            store.cases[case].spacing,
            nsd_tolerance_mm=nsd_tolerance_mm,
            directions=store.cases[case].directions,
        )
    return summarise(
        pairs,
        run.organs,
        split=split,
        nsd_tolerance_mm=nsd_tolerance_mm,
        predictions=None if predictions is None else str(predictions),
    )


def _network_predictor(run: "Run", device: "torch.device | str") -> Callable[[str], NDArray[np.uint8]]:
    from smile_fast.training.inference import predict_labels

    store, model = run.store, run.load_model().to(device)
    body = run.config.body  # what lies outside of the box is predicted as nothing: labels there count as missed
    return lambda case: predict_labels(
        model, store.read_image(case), box=store.body_box(case, body), spacing=store.cases[case].spacing
    )


def _folder_predictor(run: "Run", folder: Path) -> Callable[[str], NDArray[np.uint8]]:
    """Read predictions from a folder of NIfTI files and bring them into slices order."""
    from smile_runtime.io.grids import OtherGridError, onto_grid
    from smile_runtime.io.nifti import read_labels
    from smile_runtime.io.scan_files import by_name, list_scans, refuse_dicom, stem

    store, organs = run.store, len(run.organs)
    try:
        files = by_name((stem(file.name) or "", file) for file in list_scans(folder)[0])
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)}); give the folder of the label maps") from error
    if not files:
        refuse_dicom(folder)

    def predict(case: str) -> NDArray[np.uint8]:
        volume = read_labels(files.get(normal_name(case), folder / f"{case}.nii.gz"))
        known = store.cases[case]
        try:
            labels = onto_grid(volume.data, volume.affine, np.array(known.affine), known.shape[::-1])  # [W, H, D]
        except OtherGridError as error:
            raise InputError(
                f"{volume.path}: lies on another grid than case {case} ({error}); predict the case's own image, or "
                f"{resampling_advice(volume)}"
            ) from None
        slices = labels.transpose(2, 1, 0)  # [D, H, W]
        if int(slices.max(initial=0)) > organs:
            raise InputError(
                f"{volume.path}: holds label {int(slices.max())}, the run knows 1 to {organs}; predict with its model"
            )
        return np.ascontiguousarray(slices)

    return predict
