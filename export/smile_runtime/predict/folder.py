"""A folder of scans: which they are, where their results go, and what is kept of an earlier run."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.io.nifti import read_note
from smile_runtime.io.scan_files import by_name, describe_others, list_scans, refuse_dicom, stem
from smile_runtime.names import normal_name
from smile_runtime.predict.pipeline import Job, run
from smile_runtime.predict.predictor import Predictor
from smile_runtime.predict.preview import fingerprint, picture_path, shown_labels
from smile_runtime.predict.run_report import RunReport

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}(\.\w+)*")  # what `smile_runtime.io.files` calls an unfinished file
_CHANNEL = re.compile(r"_0000$")  # nnU-Net's suffix of the first channel
_ANY_CHANNEL = re.compile(r"(.*)_(\d{4})", re.DOTALL)


def list_jobs(
    folder: Path,
    out: Path,
    *,
    previews: bool,
    model: Path | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Job]:
    """The scans of a folder, by name, and where their results go; `warn` gets a sentence about scans of other formats.

    ``case.nii``, ``case.nii.gz`` and nnU-Net's ``case_0000.nii.gz``, in letters of any case, become ``case.nii.gz``.
    Hidden files and files with other suffixes are left alone.

    Raises:
        InputError: The folder cannot be read or has no scan, two scans would get one name or are channels of one case,
            or the results would lie among the scans, or replace one or ``model``.
    """
    try:
        scans, others = list_scans(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)}); check its permissions") from error
    if os.path.exists(out) and os.path.samefile(folder, out):
        raise InputError(f"{out}: is the folder of the scans; choose another output folder")
    jobs = []
    for case, scan in by_name((_case(scan), scan) for scan in scans).items():
        labels = out / f"{case}.nii.gz"
        jobs.append(Job(scan, labels, picture_path(labels) if previews else None))
    _refuse_channels(jobs)
    if not jobs:
        refuse_dicom(folder)
        if others:
            raise InputError(f"{folder}: {describe_others(folder, others)}")
        raise InputError(f"{folder}: holds no scan; give a folder of .nii or .nii.gz files")
    _refuse_links(jobs, model)
    if others:
        warn(f"{folder}: {describe_others(folder, others)}")
    return jobs


def _case(scan: Path) -> str:
    """What the results of a scan are called.

    Raises:
        InputError: Nothing is left of the name, or it would be a hidden file's.
    """
    case = normal_name(_CHANNEL.sub("", stem(scan.name) or ""))
    if not case or case.startswith("."):
        raise InputError(f"{str(scan)!r}: not a name for a scan, its results would be hidden; rename it")
    return case


def _refuse_channels(jobs: Sequence[Job]) -> None:
    """Refuse a case of several channels: each would be segmented as if it were a scan of its own."""
    first: dict[str, Job] = {}
    for job in jobs:  # by name: channel 0 comes before the others
        found = _ANY_CHANNEL.fullmatch(stem(job.scan.name) or "")
        if found is None:
            continue
        case = normal_name(found[1])
        if found[2] == "0000":
            first[case] = job
        elif case in first:
            raise InputError(
                f"{job.scan.parent}: {first[case].scan.name} and {job.scan.name} are named like two channels of one "
                "nnU-Net case; keep the CT alone, or rename them if they are two patients"
            )


def _refuse_links(jobs: Sequence[Job], model: Path | None) -> None:
    """Refuse results whose names lead to a scan or to the model, by a link."""
    inputs = {_identity(job.scan): "a scan" for job in jobs}
    if model is not None:
        inputs[_identity(model)] = "the model"
    inputs.pop(None, None)
    for job in jobs:
        for path in (job.labels, job.picture):
            if path is not None and (kind := inputs.get(_identity(path))):
                raise InputError(f"{path}: is a link to {kind}; remove it, or choose another folder")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # missing, or unreadable: reported when it is its turn
        return None
    return status.st_dev, status.st_ino


@contextmanager
def output_folder(out: Path, *, with_others: bool = False) -> Iterator[None]:
    """Make a folder, keep other runs out of it, and remove what a killed run has left unfinished in it.

    Args:
        out: The folder.
        with_others: Share it with other runs that ask for that: nobody removes then what may be another's.

    Raises:
        InputError: It cannot be made, or another run writes to it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({reason(error)}); choose another folder") from error
    with _locked(out, fcntl.LOCK_SH if with_others else fcntl.LOCK_EX) as is_locked:
        if is_locked and not with_others:
            _remove_unfinished(out)
        yield


@contextmanager
def shared_folder(out: Path) -> Iterator[None]:
    """Keep runs over folders out of a folder, which would remove what is unfinished in it; others may write to it too.

    Raises:
        InputError: It cannot be opened, or such a run writes to it.
    """
    with _locked(out, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(out: Path, kind: int) -> Iterator[bool]:
    """Hold a lock on a folder; it ends with the process, however that ends. Yields False where locks are unknown."""
    try:
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({reason(error)}); choose another folder") from error
    try:
        is_locked = True
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another smile-predict writes to it; wait, or choose another folder") from None
        except OSError:  # a file system without locks
            is_locked = False
        yield is_locked
    finally:
        os.close(handle)


def _remove_unfinished(out: Path) -> None:
    with os.scandir(out) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def predict_folder(
    predictor: Predictor,
    jobs: Sequence[Job],
    report: RunReport,
    *,
    resume: bool = False,
) -> None:
    """Segment scans; what happens to each is noted in the report, and failures are printed as they happen.

    See `smile_runtime.predict.pipeline` for how reading, computing and writing overlap.

    Args:
        predictor: With its model loaded.
        jobs: What to segment.
        report: Filled.
        resume: Whether to keep the label maps that are complete.
    """
    run(predictor, note_finished(predictor, jobs, report) if resume else jobs, report)


def note_finished(predictor: Predictor, jobs: Sequence[Job], report: RunReport) -> list[Job]:
    """Note the scans in the report whose results are complete, and return the others."""
    todo = []
    for job in jobs:
        kept = predictor.finished(job.scan, job.labels) if _has_picture(job) else None
        if kept is None:
            todo.append(job)
        else:
            report.add(job.scan, kept, kept=True)
    return todo


def _has_picture(job: Job) -> bool:
    """Whether no picture is wanted, or there is one that shows the label map beside it."""
    if job.picture is None:
        return True
    found = read_note(job.labels)
    return found is not None and shown_labels(job.picture) == fingerprint(found[1])
