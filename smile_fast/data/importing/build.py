"""A new dataset appears whole or not at all: it is made in a hidden folder beside its place, and renamed.

A call that was killed leaves that folder; the same call goes on in it, and another one sweeps what it has no use for.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smile_fast.data.annotations import FILE_NAME as ANNOTATIONS
from smile_fast.data.annotations import write_annotations
from smile_fast.data.dataset import SUFFIX, RawDataset
from smile_fast.data.folder_lock import locked
from smile_fast.data.importing.case_files import (
    CaseJob,
    CaseOutcome,
    Link,
    MadeCase,
    forget_case,
    is_gzipped_nifti,
    make_case,
)
from smile_fast.data.importing.plan import Plan
from smile_fast.data.importing.sources import FILE_NAME as SOURCES
from smile_fast.data.importing.sources import CaseSource, write_sources
from smile_fast.data.processes import run_jobs, worker_number
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, read_json, reason, write_json
from smile_runtime.progress import progress

_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
_RECORDS = "cases"
_MADE_OF = "smile_fast_made_of"  # in dataset.json: the digest of the plan
_SPARE = 2**20  # bytes for dataset.json and the tables


@dataclass(frozen=True)
class Built:
    """What `build` did.

    Attributes:
        made: case -> its record.
        new: how many of them this call made.
        was_there: whether the dataset was there already, made of the same.
    """

    made: dict[str, MadeCase]
    new: int
    was_there: bool = False


def build(plan: Plan, out: Path, *, link: Link, workers: int | None, label: str) -> Built:
    """Make a dataset.

    Args:
        plan: what it holds.
        out: its folder: new, empty, or made of the same before.
        link: how files that stay as they are get there.
        workers: processes; by default one a CPU.
        label: what is being done, for the progress bar.

    Raises:
        InputError: `out` holds something else, lies in a source or holds one, or cannot be written; a case is broken;
            the disk is too small. What was finished is kept for the next call.
    """
    number = worker_number(workers)
    out = Path(os.path.abspath(out))
    refuse_nesting(out, plan.sources)
    work = out.with_name(f".{out.name}.unfinished")
    refuse_nesting(work, plan.sources)
    if _in_use(out):
        found = _found(plan, out, link, number)
        if os.path.isdir(work):  # of the call that made it, killed at its very end
            with locked(work):
                shutil.rmtree(work, ignore_errors=True)
        return found
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({reason(error)}); give another folder") from error
    with locked(work):
        try:
            built = _build(plan, work, link, number, label)
            os.rename(work / "dataset", out)  # an empty folder gives way
            flush(out.parent)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({reason(error)}); give another folder") from error
        finally:
            # Else what is finished waits for the next call.
            if _in_use(out) or not any((work / _RECORDS).glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)
    return built


def refuse_nesting(out: Path, sources: Sequence[Path]) -> None:
    """Refuse an output that is a source, lies in one or holds one.

    Raises:
        InputError: it does.
    """
    for source in sources:
        target, origin = Path(os.path.realpath(out)), Path(os.path.realpath(source))
        if target == origin or origin in target.parents or target in origin.parents:
            raise InputError(f"{out}: is, lies in or holds {source}, which is read; give a folder elsewhere")


def _in_use(out: Path) -> bool:
    try:
        return os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir()))
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({reason(error)}); give another folder") from error


def _found(plan: Plan, out: Path, link: Link, workers: int) -> Built:
    """What is there, if it was made of the same."""
    refused = f"{out}: already there, and not made of the same cases and settings; give a new folder, or remove it"
    if not (out / "dataset.json").is_file() or not (out / SOURCES).is_file():
        raise InputError(refused)
    made_of = read_json(out / "dataset.json", "give a new folder").get(_MADE_OF)
    jobs = [CaseJob(case, out, out, link, len(plan.organs), look=True) for case in plan.cases]
    looked = run_jobs(make_case, jobs, workers, advice="run it again with fewer --workers")
    outcomes = list(progress(looked, total=len(jobs), label="comparing with what is there"))
    requests = {outcome.case: outcome.request for outcome in outcomes}
    if any(outcome.problem for outcome in outcomes) or made_of != plan.digest(requests):
        raise InputError(refused)
    RawDataset.open(out)
    return Built({}, 0, was_there=True)


def _build(plan: Plan, work: Path, link: Link, workers: int, label: str) -> Built:
    dataset, records = work / "dataset", work / _RECORDS
    records.mkdir(exist_ok=True)
    used = [folder for folder in _FOLDERS if folder[-2:] == "Tr" or any(case.split == "test" for case in plan.cases)]
    jobs = [CaseJob(case, dataset, records / f"{case.name}.json", link, len(plan.organs)) for case in plan.cases]
    _sweep(work, jobs)
    for folder in used:
        (dataset / folder).mkdir(exist_ok=True)
    _check_space(work, jobs)
    done = run_jobs(make_case, jobs, workers, advice="run it again with fewer --workers, finished cases are kept")
    outcomes = {outcome.case: outcome for outcome in progress(done, total=len(jobs), label=label)}
    made = _records(plan, work, outcomes)
    if plan.states is not None:
        write_annotations(dataset / ANNOTATIONS, plan.states, [case.name for case in plan.cases], plan.organs)
    write_sources(
        dataset / SOURCES,
        (
            CaseSource(case.name, case.source, case.original, record.image_sha256, record.labels_sha256)
            for case, record in ((case, made[case.name]) for case in plan.cases)
        ),
    )
    write_json(dataset / "dataset.json", _description(plan, {name: o.request for name, o in outcomes.items()}))
    for folder in (*used, ""):
        flush(dataset / folder)
    return Built(made, sum(not outcome.kept for outcome in outcomes.values()))


def _records(plan: Plan, work: Path, outcomes: dict[str, CaseOutcome]) -> dict[str, MadeCase]:
    """The records of all cases.

    Raises:
        InputError: some are broken; the first is described, the others are named.
    """
    problems = {case.name: outcomes[case.name].problem or "" for case in plan.cases if outcomes[case.name].problem}
    if problems:
        first, *others = problems
        rest = f"; {len(others)} more cases cannot be used: {listed(others, 5)}" if others else ""
        done = len(plan.cases) - len(problems)
        if done:
            rest += f" ({done} finished cases are kept in {work} for the next call)"
        raise InputError(problems[first] + rest)
    return {name: outcome.made for name, outcome in outcomes.items() if outcome.made is not None}


def _description(plan: Plan, requests: dict[str, str]) -> dict[str, object]:
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{organ: value for value, organ in enumerate(plan.organs, start=1)}},
        "numTraining": sum(case.split == "train" for case in plan.cases),
        "file_ending": SUFFIX,
        _MADE_OF: plan.digest(requests),
    }


def _sweep(work: Path, jobs: Sequence[CaseJob]) -> None:
    """Remove what calls for other datasets, or killed ones, have left; of this one the finished cases stay."""
    wanted = {path for job in jobs for path in (job.image, job.label, job.record)}
    used = {path.parent for path in wanted}
    for folder in (*(work / "dataset" / name for name in _FOLDERS), work / _RECORDS, work / "dataset"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path not in wanted and not path.is_dir():
                path.unlink()
        if folder.is_dir() and folder not in used and not any(folder.iterdir()):
            folder.rmdir()
    for job in jobs:
        if not job.record.exists():
            forget_case(job)
    (work / "dataset").mkdir(exist_ok=True)


def _check_space(work: Path, jobs: Sequence[CaseJob]) -> None:
    """Refuse a disk that is too small before hours are spent on it."""
    device, needed = os.stat(work).st_dev, _SPARE
    for job in jobs:
        links = {"hard": job.case.image.exists() and os.stat(job.case.image).st_dev == device, "symbolic": True}
        if not (job.image.exists() or (links.get(job.link, False) and is_gzipped_nifti(job.case.image))):
            needed += _bytes(job.case.image)
        if not job.label.exists():
            needed += sum(map(_bytes, job.case.drawn.files()))
    free = shutil.disk_usage(work).free
    if needed > free:
        raise InputError(
            f"{work.parent}: has {free / 1e9:.2f} GB free, and the dataset may need {needed / 1e9:.2f} GB; free some, "
            "give a folder on another disk, or share the images with --link"
        )


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
