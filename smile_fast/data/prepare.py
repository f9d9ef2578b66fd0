"""From a raw dataset to the fast store: check every case, convert it, quarantine what is broken."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.annotations import FILE_NAME, Declarations, read_annotations
from smile_fast.data.arrays import array_name, verify_array, write_array
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo, StoredBox, gather_counts
from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.data.label_grid import labels_on_image
from smile_fast.data.processes import run_jobs
from smile_fast.data.store import (
    CASE_FILE,
    CASES,
    INDEX,
    QUARANTINE,
    SCHEMA,
    CaseFile,
    Store,
    read_case,
    read_sources,
    write_case,
    write_index,
)
from smile_fast.data.voxel_counts import check_values
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason, sha256, write_json
from smile_runtime.io.nifti import read_image, read_labels
from smile_runtime.label_map import VOID
from smile_runtime.progress import progress
from smile_runtime.threads import usable_cpus
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.hounsfield import range_hu, range_warning
from smile_runtime.volume.padding import Padding, padding_to_air
from smile_runtime.volume.preprocessing import BodyRule, body_box, canonical_affine, to_slices


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        store: the finished store.
        converted: cases converted by this call.
        kept: cases that were up to date.
        quarantined: case -> one sentence.
        empty: organ -> cases in which it is declared annotated but has no voxel.
        doubted: warning -> cases whose values are hardly Hounsfield units, or whose header says too little or too much.
        padded: cases with padding that was read as air.
        unseen: organs of which no training case shows a voxel that training may see.
    """

    store: Store
    converted: int
    kept: int
    quarantined: dict[str, str]
    empty: dict[str, list[str]]
    doubted: dict[str, list[str]]
    padded: list[str]
    unseen: list[str]


@dataclass(frozen=True)
class _Job:
    case: RawCase
    dataset: RawDataset  # without its cases: a job travels to another process
    states: dict[str, State]
    folder: Path
    force: bool
    index: Path | None  # the index that describes the case as it stands in the store


@dataclass(frozen=True)
class _Outcome:
    case: str
    info: CaseInfo | None = None
    problem: str | None = None
    kept: bool = False
    empty: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    padded: bool = False


def prepare(
    dataset: RawDataset,
    out: Path,
    *,
    annotations: Path | None = None,
    workers: int | None = None,
    force: bool = False,
    skip_broken: bool = False,
    report: Callable[[str], None] = print,
) -> Prepared:
    """Check and convert every case of a dataset.

    A case whose sources (SHA-256), declaration and stored arrays are unchanged is kept, so an interrupted call is
    continued by the same call. The index is written last, and goes before the first case that it describes is
    changed: a store that opens is complete. A store of an old schema that was made from the same dataset is converted
    again as a whole.

    Args:
        dataset: the cohort.
        out: the store's folder; made if it is not there.
        annotations: annotations.csv; by default the dataset's.
        workers: processes; by default one a CPU. 1 stays in this process.
        force: convert every case again, and take over a folder that holds the store of another cohort: of other
            organs, or made from none of this cohort's files.
        skip_broken: finish the store without the cases that are broken.
        report: gets one sentence for every broken case, after the last case.

    Raises:
        InputError: unusable annotations, an unwritable or foreign `out`, or one that another process writes now, a full
            disk; or cases were quarantined and `skip_broken` is false, or no training case is left, or none of them
            shows an organ. Whatever was converted stays for the next call.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a number of processes; give 1 or more")
    path = dataset.path / FILE_NAME if annotations is None else Path(annotations)
    declarations = read_annotations(path, dataset.names(), dataset.organs)
    _make_folder(out)
    with locked(out):
        return _prepare(dataset, out, declarations, workers or usable_cpus(), force, skip_broken, report)


def _prepare(
    dataset: RawDataset,
    out: Path,
    declarations: Declarations,
    workers: int,
    force: bool,
    skip_broken: bool,
    report: Callable[[str], None],
) -> Prepared:
    """Do what `prepare` says, while nobody else writes the folder."""
    indexed = _claim(out, dataset, force)
    bare = replace(dataset, cases=())
    jobs = [
        _Job(
            case,
            bare,
            declarations[case.name],
            out / CASES / case.name,
            force,
            out / INDEX if case.name in indexed else None,
        )
        for case in dataset.cases
    ]
    done = run_jobs(
        _prepare_case,
        jobs,
        workers,
        advice="run it again with fewer --workers, finished cases are kept",
    )
    outcomes = {outcome.case: outcome for outcome in progress(done, total=len(jobs), label="preparing cases")}
    ordered = [outcomes[case.name] for case in dataset.cases]
    quarantined = {outcome.case: outcome.problem for outcome in ordered if outcome.problem is not None}
    _write_quarantine(out / QUARANTINE, quarantined)
    for sentence in quarantined.values():
        report(sentence)
    infos = [outcome.info for outcome in ordered if outcome.info is not None]
    if quarantined and not skip_broken:
        left = "the store stays as it was" if (out / INDEX).exists() else "the store is not finished"
        raise InputError(
            f"{out}: {left}, {len(quarantined)} of {len(ordered)} cases are broken, see "
            f"{out / QUARANTINE}; repair them and run again, or pass --skip-broken to go on without them"
        )
    if not any(info.split == "train" for info in infos):
        raise InputError(f"{out}: every training case is broken, see {out / QUARANTINE}; nothing can be trained")
    unseen = [
        organ for organ in dataset.organs if not any(organ in info.runs for info in infos if info.split == "train")
    ]
    if len(unseen) == len(dataset.organs):
        raise InputError(
            f"{out}: nothing is annotated, no training case shows a voxel of an organ that training may see; correct "
            f"{FILE_NAME} or the label maps, and run again"
        )
    write_index(out, dataset.organs, infos)
    kept = sum(outcome.kept for outcome in ordered)
    empty: dict[str, list[str]] = {}
    doubted: dict[str, list[str]] = {}
    for outcome in ordered:
        for organ in outcome.empty:
            empty.setdefault(organ, []).append(outcome.case)
        for warning in outcome.warnings:
            doubted.setdefault(warning, []).append(outcome.case)
    padded = [outcome.case for outcome in ordered if outcome.padded]
    return Prepared(Store.open(out), len(infos) - kept, kept, quarantined, empty, doubted, padded, unseen)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: the store cannot be written there ({reason(error)}); give another folder") from error


def _claim(out: Path, dataset: RawDataset, force: bool) -> set[str]:
    """Make sure that `out` may be written; returns the cases that a store in it describes and that may be kept."""
    indexed: set[str] = set()
    try:
        entries = {entry.name for entry in out.iterdir()} - {LOCK}
        if "dataset.json" in entries or (entries and CASES not in entries):
            raise InputError(f"{out}: holds other files; give a new or empty folder for the store")
        if force:
            (out / INDEX).unlink(missing_ok=True)  # no case of it will be kept
        else:
            if INDEX in entries:
                organs, sources = read_sources(out)
                if organs != dataset.organs:
                    raise InputError(
                        f"{out}: holds a store of other organs; give another folder, or --force to replace it"
                    )
                indexed = set(sources)
            else:
                sources = _converted(out)
            if sources and not _share_a_file(sources, dataset):
                raise InputError(
                    f"{out}: holds a store that was made from other files than those of {dataset.path}; give "
                    "another folder, or --force to replace it"
                )
        (out / CASES).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: the store cannot be written there ({reason(error)}); give another folder") from error
    return indexed


def _converted(out: Path) -> dict[str, dict[str, str]]:
    """Case -> SHA-256 of its sources, of the cases that an unfinished store holds already."""
    found: dict[str, dict[str, str]] = {}
    for path in (out / CASES).glob(f"*/{CASE_FILE}"):
        with suppress(InputError):  # what is damaged is converted again
            found[path.parent.name] = read_case(path.parent).case.sources
    return found


def _share_a_file(sources: Mapping[str, Mapping[str, str]], dataset: RawDataset) -> bool:
    """Whether any file of the dataset is one that a store was made from; mostly the first one looked at is.

    Args:
        sources: case -> SHA-256 of the files that the store was made from.
        dataset: the cohort.
    """
    known = {digest for files in sources.values() for digest in files.values()}
    for case in sorted(dataset.cases, key=lambda case: case.name not in sources):
        for file in (case.image, case.label):
            with suppress(InputError):  # an unreadable file has its own sentence later
                if sha256(file) in known:
                    return True
    return False


def _prepare_case(job: _Job) -> _Outcome:
    """Check and convert one case. What is wrong with the case is an outcome; a store that cannot be written raises."""
    name = job.case.name
    try:
        sources = {"image": sha256(job.case.image), "label": sha256(job.case.label)}
        if not job.force and (found := _up_to_date(job, sources)) is not None:
            info, warnings, padded = found
            return _Outcome(name, info=info, kept=True, empty=_empty(info), warnings=warnings, padded=padded)
        converted = _convert(job, sources)
    except InputError as error:
        problem = str(error)
        return _Outcome(name, problem=problem if name in problem else f"case {name}: {problem}")
    try:
        if job.index is not None:
            job.index.unlink(missing_ok=True)  # from here on it would not be true
        job.folder.mkdir(parents=True, exist_ok=True)
        for leftover in job.folder.glob(".tmp-*"):  # of a call that was killed
            leftover.unlink()
    except OSError as error:
        raise InputError(f"{job.folder}: cannot be written ({reason(error)}); make it writable") from error
    arrays = {
        IMAGE: write_array(job.folder, IMAGE, converted.image),
        LABELS: write_array(job.folder, LABELS, converted.labels),
    }
    info = replace(converted.info, arrays=arrays)
    padding = None if converted.padding is None else converted.padding.to_json()
    organs, ignore = job.dataset.organs, job.dataset.ignore
    write_case(job.folder, CaseFile(SCHEMA, organs, ignore, info, converted.range_hu, converted.warnings, padding))
    named = {array_name(array, digest) for array, digest in arrays.items()}
    for file in job.folder.glob("*.b2nd"):
        if file.name not in named:  # of an earlier conversion
            file.unlink()
    padded = converted.padding is not None
    return _Outcome(name, info=info, empty=_empty(info), warnings=converted.warnings, padded=padded)


@dataclass(frozen=True)
class _Converted:
    image: NDArray[np.int16]  # [D, H, W]
    labels: NDArray[np.uint8]  # [D, H, W]
    info: CaseInfo  # without the checksums: nothing is written yet
    range_hu: tuple[int, int]
    padding: Padding | None
    warnings: tuple[str, ...]


def _convert(job: _Job, sources: dict[str, str]) -> _Converted:
    """Read and check a case, and bring it into slices order."""
    case, dataset = job.case, job.dataset
    image, label = read_image(case.image), read_labels(case.label)
    slices, geometry = to_slices(image.data, image.affine)
    padding = padding_to_air(slices)
    values = range_hu(replace(image, data=slices), padding)
    labels, _ = to_slices(labels_on_image(case, image, label), image.affine)
    histograms = slice_histograms(labels)
    check_values(case, histograms.sum(axis=0), dataset)
    visible = histograms[:, 1 : len(dataset.organs) + 1].copy()  # [D, K]
    for counts, (organ, state) in zip(visible.T, job.states.items(), strict=True):
        if state is State.HIDDEN:
            counts[:] = 0
        if state is State.ABSENT and counts.any():
            raise InputError(
                f"{case.label}: case {case.name} has {int(counts.sum())} voxels of {organ}, which is declared absent; "
                f"correct {FILE_NAME} or the label map"
            )
    if dataset.ignore is not None:
        labels = np.where(labels == dataset.ignore, np.uint8(VOID), labels)
    affine = canonical_affine(image.affine, image.data.shape)
    depth, height, width = slices.shape
    z, y, x = geometry.spacing
    info = CaseInfo(
        name=case.name,
        split=case.split,
        shape=(depth, height, width),
        spacing=(float(z), float(y), float(x)),
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        states=job.states,
        runs=gather_counts(visible, dataset.organs),
        sources=sources,
        arrays={},
        body=StoredBox.of(body_box(slices, geometry.spacing, BodyRule()), BodyRule()),
    )
    of_label = [f"label map: {warning}" for warning in label.warnings if warning not in image.warnings]
    warnings = (range_warning(values), *image.warnings, *of_label)
    return _Converted(slices, labels, info, values, padding, tuple(filter(None, warnings)))


def _up_to_date(job: _Job, sources: dict[str, str]) -> tuple[CaseInfo, tuple[str, ...], bool] | None:
    """The stored case, its warnings and whether it is padded, if it is intact and made from these sources."""
    try:
        found = read_case(job.folder)
        info = found.case
        same = (info.name, info.split, info.sources, info.states, found.organs, found.ignore) == (
            job.case.name,
            job.case.split,
            sources,
            job.states,
            job.dataset.organs,
            job.dataset.ignore,
        )
        if not same or not info.body.answers(BodyRule()):
            return None
        for array, digest in info.arrays.items():
            verify_array(job.folder / array_name(array, digest), digest)
        return info, found.warnings, found.padding is not None
    except InputError:
        return None  # whatever is wrong with it, the case is converted again


def _empty(info: CaseInfo) -> tuple[str, ...]:
    return tuple(organ for organ, state in info.states.items() if state is State.ANNOTATED and organ not in info.runs)


def _write_quarantine(path: Path, quarantined: dict[str, str]) -> None:
    if quarantined:
        write_json(path, {"cases": quarantined})
    else:
        path.unlink(missing_ok=True)
