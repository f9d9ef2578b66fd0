"""Predict the cases of a run and score them."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smile_fast import __version__
from smile_fast.data.case_info import LABELS
from smile_fast.data.label_folder import FolderLabelMap, LabelMap, label_files
from smile_fast.data.processes import this_process, worker_processes
from smile_fast.data.store import Store
from smile_fast.evaluation.kept_maps import KeptMaps, write_label_map
from smile_fast.evaluation.predictions import (
    folder_predictions,
    network_predictions,
)
from smile_fast.evaluation.raters import RaterPair, rater_files, score_raters
from smile_fast.evaluation.results import Evaluation, summarise
from smile_fast.evaluation.scores import NSD_TOLERANCE_MM, PairScore, score_case
from smile_fast.pipeline import in_order
from smile_fast.supervision import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import sha256
from smile_runtime.progress import progress
from smile_runtime.threads import usable_cpus

if TYPE_CHECKING:
    import torch

    from smile_fast.training.run import Run

VOXELS_OF_A_WORKER = 2**23  # are scored in about the second that a process needs to start


@dataclass(frozen=True)
class Scoring:
    """What of a run is scored, and how.

    Attributes:
        split: test, validation or train.
        nsd_tolerance_mm: see `score_case`.
        predictions: folder of NIfTI label maps named CASE.nii.gz to score instead of the run's network.
        raters: folders of label maps that other raters drew, named likewise, to compare with as well.
    """

    split: str = "test"
    nsd_tolerance_mm: float | None = NSD_TOLERANCE_MM
    predictions: Path | None = None
    raters: tuple[Path, ...] = ()

    def cases(self, run: "Run") -> list[str]:
        """The cases that are scored.

        Raises:
            InputError: there is none, or the tolerance is no distance.
        """
        cases = run.cases(self.split)
        if not cases:
            raise InputError(
                f"{run.path}: there is no {self.split} case to evaluate; choose another --split (test cases come from "
                "imagesTs and labelsTs of the dataset)"
            )
        tolerance = self.nsd_tolerance_mm
        if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
            raise InputError(f"--nsd-tolerance: {tolerance} was given; give a finite number of mm, 0 or more")
        return cases

    def described(self) -> dict[str, Any]:
        """What the scores say of it."""
        predictions = None if self.predictions is None else str(self.predictions)
        return {**asdict(self), "predictions": predictions, "raters": tuple(map(str, self.raters))}


def evaluate_run(
    run: "Run",
    *,
    split: str = "test",
    nsd_tolerance_mm: float | None = NSD_TOLERANCE_MM,
    predictions: Path | None = None,
    raters: tuple[Path, ...] = (),
    write: Path | None = None,
    device: "torch.device | str" = "cpu",
    workers: int | None = None,
) -> Evaluation:
    """Predict every case of a split and score it against the human labels.

    Processes score cases while the device predicts the next ones. The scores are the same bits for every number of
    them. A process holds one case: its two label maps and, for surfaces, some 25 bytes a voxel of an organ's box.

    Args:
        run: a trained run.
        split: test, validation or train.
        nsd_tolerance_mm: see `score_case`.
        predictions: folder of NIfTI label maps named CASE.nii.gz to score instead of the run's network.
        raters: see `Scoring`.
        write: folder that keeps the label maps, see `KeptMaps`; None keeps none.
        device: where the network runs.
        workers: processes that score; 1 is this one; by default one a CPU, fewer for little work.

    Raises:
        InputError: the split is empty, a prediction is missing or lies on another grid, the store is damaged, a
            process was killed, or label maps cannot be kept.
    """
    scoring = Scoring(split, nsd_tolerance_mm, predictions, raters)
    cases = scoring.cases(run)
    made_of = Inputs.of(run, scoring)  # as they are before they are read
    kept = KeptMaps.of(write, scoring, made_of, cases)
    scores = [of_case for _, of_case in scores_of(run, cases, scoring, device, workers, kept)]
    if kept is not None:
        kept.finish()
    return summarise_cases(scores, run, scoring, made_of)


@dataclass(frozen=True)
class CaseScores:
    """The scores of a case: one pair an organ, and those that every rater has drawn."""

    pairs: tuple[PairScore, ...]
    raters: tuple[RaterPair, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """What scores are made of, told apart by digests: equal ones give the same scores.

    Attributes:
        weights: SHA-256 of the network's file, None for label maps of a folder.
        plan: digest of the split, the settings, the weights, the truth and its sources, the label maps of raters and
            the version of the program.
        label_maps: case -> SHA-256 of its label map, wherever their folder is; None for the network's own, and an
            empty text for one that is not there.
    """

    weights: str | None
    plan: str
    label_maps: dict[str, str] | None

    @classmethod
    def of(cls, run: "Run", scoring: Scoring) -> "Inputs":
        """Read them.

        Raises:
            InputError: there is nothing to score, or a file cannot be read.
        """
        cases, store, states = scoring.cases(run), run.store, run.declarations()
        weights, label_maps = scored_weights(run, scoring), None
        if scoring.predictions is not None:
            files = label_files(cases, scoring.predictions)
            label_maps = {case: sha256(file) if file.is_file() else "" for case, file in files.items()}
        raters = rater_files(cases, scoring.raters)
        plan = {
            "split": scoring.split,
            "nsd_tolerance_mm": scoring.nsd_tolerance_mm,
            "weights": weights,
            "truth": {case: [store.cases[case].arrays[LABELS], states[case]] for case in cases},
            "sources": [store.cases[case].source for case in cases],
            "raters": [{case: sha256(file) for case, file in files.items()} for files in raters],
            "version": __version__,
        }
        return cls(weights, hashlib.sha256(json.dumps(plan, default=str).encode()).hexdigest(), label_maps)


def scored_weights(run: "Run", scoring: Scoring) -> str | None:
    """SHA-256 of the file of weights whose predictions are scored; None for label maps of a folder."""
    if scoring.predictions is not None:
        return None
    if not run.model_path.exists():
        run.load_model()  # says why there are none
    return sha256(run.model_path)


def summarise_cases(scores: Sequence[CaseScores], run: "Run", scoring: Scoring, made_of: Inputs) -> Evaluation:
    """Put the scores of all cases together."""
    return summarise(
        [pair for of_case in scores for pair in of_case.pairs],
        run.organs,
        rater_pairs=[pair for of_case in scores for pair in of_case.raters],
        **scoring.described(),
        **asdict(made_of),
    )


def scores_of(
    run: "Run",
    cases: Sequence[str],
    scoring: Scoring,
    device: "torch.device | str",
    workers: int | None,
    kept: KeptMaps | None = None,
) -> Iterator[tuple[str, CaseScores]]:
    """Predict and score some cases of a run; see `evaluate_run`.

    Yields:
        Each case and its scores, in order, as they are made.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a number of processes; give 1 or more, or auto")
    if not cases:
        return
    source: AbstractContextManager[Iterator[LabelMap]]
    if scoring.predictions is None:
        source = network_predictions(run, cases, device)
    else:
        source = nullcontext(folder_predictions(run, cases, scoring.predictions))
    count = min(workers or _enough_workers(run.store, cases), len(cases))
    with _scorers(count) as pool, source as label_maps:
        jobs = _jobs(run, cases, label_maps, scoring, kept)
        scores = in_order(_score, jobs, pool, ahead=count, at_once=True)
        yield from zip(cases, progress(scores, total=len(cases), label=f"evaluate {scoring.split}"), strict=True)


def _scorers(count: int) -> AbstractContextManager[Executor]:
    advice = "give fewer --workers"
    if count == 1:
        return this_process(advice=advice)
    return worker_processes(count, advice=advice, preload=score_case.__module__)


def _enough_workers(store: Store, cases: Sequence[str]) -> int:
    voxels = sum(math.prod(store.cases[case].shape) for case in cases)
    return max(1, min(usable_cpus(), voxels // VOXELS_OF_A_WORKER))


@dataclass(frozen=True)
class _Job:
    """One case, as it travels to a process; see `score_case`."""

    store: Store  # of this case alone
    case: str
    label_map: LabelMap
    states: Mapping[str, State]
    raters: tuple[LabelMap, ...]
    nsd_tolerance_mm: float | None
    keep: Path | None  # the file that the label map becomes


def _jobs(
    run: "Run", cases: Sequence[str], label_maps: Iterator[LabelMap], scoring: Scoring, kept: KeptMaps | None
) -> Iterator[_Job]:
    store, states = run.store, run.declarations()
    raters = rater_files(cases, scoring.raters)
    for case, label_map in zip(cases, label_maps, strict=True):
        info = store.cases[case]
        alone = Store(store.path, run.organs, {case: info})
        others = tuple(FolderLabelMap(files[case], info, len(run.organs), by_rater=True) for files in raters)
        keep = None if kept is None else kept.path(case)
        yield _Job(alone, case, label_map, states[case], others, scoring.nsd_tolerance_mm, keep)


def _score(job: _Job) -> CaseScores:
    info, organs = job.store.cases[job.case], job.store.organs
    labels, label_map = job.store.read_labels(job.case), job.label_map()
    pairs = score_case(
        job.case,
        labels,
        label_map,
        job.states,
        organs,
        info.spacing,
        nsd_tolerance_mm=job.nsd_tolerance_mm,
        directions=info.directions,
        source=info.source,
    )
    raters = score_raters(job.case, labels, label_map, job.raters, job.states, organs)
    if job.keep is not None:
        write_label_map(job.keep, label_map, info, organs)
    return CaseScores(tuple(pairs), tuple(raters))
