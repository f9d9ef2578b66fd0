"""One case of a new dataset: its files are read, checked, and written where the dataset is made."""

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.dataset import CHANNEL_SUFFIX, SUFFIX, RawCase
from smile_fast.data.importing.formats import is_nifti, read_drawn, read_scan
from smile_fast.data.importing.legend import REFUSED
from smile_fast.data.importing.plan import DrawnMap, DrawnMasks, PlannedCase, json_digest
from smile_fast.data.label_grid import labels_on_image
from smile_fast.records import read_record, write_record
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, reason, sha256
from smile_runtime.io.nifti import Volume, write_image, write_labels
from smile_runtime.label_map import LABEL_VALUES
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.preprocessing import to_slices

Link = Literal["hard", "copy", "symbolic"]
LINKS: tuple[Link, ...] = ("hard", "copy", "symbolic")
SCHEMA = 2
_REMEDY = "make the case again"


@dataclass(frozen=True)
class Job:
    """A case to be made.

    Attributes:
        case: what of.
        dataset: the folder of the new dataset.
        record: where to note what was made.
        link: how scans that stay as they are get there; label maps are always copied.
        organs: how many there are.
        look: only hash the files that it would be made from.
    """

    case: PlannedCase
    dataset: Path
    record: Path
    link: Link
    organs: int
    look: bool = False

    @property
    def image(self) -> Path:
        """The new image."""
        return self.dataset / f"images{_ENDS[self.case.split]}" / f"{self.case.name}{CHANNEL_SUFFIX}"

    @property
    def label(self) -> Path:
        """The new label map."""
        return self.dataset / f"labels{_ENDS[self.case.split]}" / f"{self.case.name}{SUFFIX}"


_ENDS = {"train": "Tr", "test": "Ts"}


@dataclass(frozen=True)
class CaseRecord:
    """What was made, as its record says.

    Attributes:
        schema: version of the record.
        request: SHA-256 of all that the case follows from. link: as in the job.
        image_sha256, labels_sha256: of the files that it was made from; of masks, of all of them together.
        voxels: SHA-256 of the scan in slices order: the same scan has the same, whatever its file.
        counts: voxels of each organ.
        sizes: bytes of the new image and label map.
    """

    schema: int
    request: str
    link: Link
    image_sha256: str
    labels_sha256: str
    voxels: str
    counts: list[int]
    sizes: tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: its name.
        request: see `CaseRecord`; empty where the files could not be read.
        made: its record, None where only its files were hashed, or it is broken.
        problem: one sentence on what is wrong.
        kept: whether an earlier call had made it.
    """

    case: str
    request: str = ""
    made: CaseRecord | None = None
    problem: str | None = None
    kept: bool = False


def make_case(job: Job) -> Outcome:
    """Make one case, or find that it is made. What is wrong with its files is an outcome.

    Raises:
        InputError: the new files cannot be written.
    """
    case = job.case
    try:
        image_sha, labels_sha = sha256(case.image), _labels_sha256(case)
        request = json_digest([image_sha, labels_sha, case.drawn.meaning(), job.organs])
        if job.look:
            return Outcome(case.name, request)
        if (found := _made(job, request)) is not None:
            return Outcome(case.name, request, found, kept=True)
        image = read_scan(case.image)
        slices, _ = to_slices(image.data, image.affine)
        voxels = hashlib.sha256(str(slices.shape).encode())
        voxels.update(np.ascontiguousarray(slices).data)
        labels, unchanged = _drawn(case, image)
    except InputError as error:
        return Outcome(case.name, problem=_about(case, str(error)))
    forget_case(job)
    if is_gzipped_nifti(case.image):
        place_file(case.image, job.image, job.link)
    else:
        write_image(job.image, image.data, image.affine, header=image.header)
    if unchanged is not None:
        # Small, and what humans go on drawing in, with programs that write into the file that is there.
        place_file(unchanged, job.label, "copy")
    else:
        write_labels(job.label, labels, image.affine, header=image.header)
    counts = _histogram(labels)[1 : job.organs + 1].tolist()
    made = CaseRecord(SCHEMA, request, job.link, image_sha, labels_sha, voxels.hexdigest(), counts, _sizes(job))
    write_record(job.record, vars(made))
    return Outcome(case.name, request, made)


def forget_case(job: Job) -> None:
    """Remove what an earlier call made of a case: its files may be links, and to write one is to write a source.

    Raises:
        InputError: it cannot be removed.
    """
    for path in (job.record, job.image, job.label):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be removed ({reason(error)}); choose another place") from error


def is_gzipped_nifti(path: Path) -> bool:
    """Whether a file can stay as it is in the new dataset."""
    return is_nifti(path) and path.name.strip().lower().endswith(SUFFIX)


def place_file(source: Path, target: Path, link: Link) -> None:
    """Give a file a second name in a folder that nobody uses yet, or copy it where that cannot be.

    Args:
        source: the file; a symbolic link is followed.
        target: the new name.
        link: a hard link falls back to a copy: on another disk, or where the file is another user's.

    Raises:
        InputError: the target cannot be written.
    """
    original = os.path.realpath(source)
    try:
        target.unlink(missing_ok=True)
        if link == "symbolic":
            os.symlink(original, target)
            return
        if link == "hard":
            with suppress(OSError):
                os.link(original, target)
                return
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({reason(error)}); choose another place") from error
    with atomic_path(target) as temporary:
        shutil.copyfile(original, temporary)


def _labels_sha256(case: PlannedCase) -> str:
    if isinstance(case.drawn, DrawnMap):
        return sha256(case.drawn.path)
    return json_digest([sha256(path) for path in case.drawn.files()])


def _made(job: Job, request: str) -> CaseRecord | None:
    """The record of an earlier call, if the files are those that it made of the same."""
    try:
        found = read_record(job.record, CaseRecord, SCHEMA, _REMEDY)
        same = found.request == request and found.link == job.link and found.sizes == _sizes(job)
    except (InputError, OSError):
        return None
    return found if same else None


def _sizes(job: Job) -> tuple[int, int]:
    return job.image.stat().st_size, job.label.stat().st_size


def _about(case: PlannedCase, sentence: str) -> str:
    named = case.name in sentence or case.original in sentence
    return sentence if named else f"case {case.source}/{case.original}: {sentence}"


def _drawn(case: PlannedCase, image: Volume) -> tuple[NDArray[np.uint8], Path | None]:
    """The labels on the image's grid, and the file that holds just these, if there is one."""
    if isinstance(case.drawn, DrawnMasks):
        return _painted(case, case.drawn, image), None
    drawn = read_drawn(case.drawn.path)
    placed = labels_on_image(_raw(case, case.drawn.path), image, drawn)
    used = np.flatnonzero(_histogram(drawn.data)).tolist()
    values = case.drawn.values
    if strange := [value for value in used if values[value] == REFUSED]:
        raise InputError(
            f"{case.drawn.path}: case {case.original} has the label value {listed(list(map(str, strange)), 5)}, which "
            f"means nothing; {case.drawn.advice}"
        )
    if all(values[value] == value for value in used):
        return placed, case.drawn.path if is_gzipped_nifti(case.drawn.path) else None
    return np.asfortranarray(np.array([max(value, 0) for value in values], np.uint8)[placed]), None


def _painted(case: PlannedCase, drawn: DrawnMasks, image: Volume) -> NDArray[np.uint8]:
    labels = np.zeros(image.data.shape, np.uint8, order="F")
    unordered = np.zeros(LABEL_VALUES, bool)  # values of organs of which nobody said that they win
    owner: dict[int, str] = {}
    for organ, path, value in drawn.masks:
        mask = _mask(case, path, image)
        if organ not in drawn.ordered:
            clash = mask & unordered[labels] & (labels != value)
            if clash.any():
                other = int(labels[clash][0])
                both = int((clash & (labels == other)).sum())
                raise InputError(
                    f"{path}: case {case.original} has {both} voxels of both {owner[other]} and {organ}; say with "
                    f"--order which of them takes these, e.g. --order {organ},{owner[other]}"
                )
            unordered[value] = True
        owner[value] = organ
        labels[mask & (labels == 0)] = value
    return labels


def _mask(case: PlannedCase, path: Path, image: Volume) -> NDArray[np.bool_]:
    """Where a mask is set: at its one value that is not 0, which programs write as 1 or 255."""
    read = read_drawn(path)
    placed = labels_on_image(_raw(case, path), image, read)
    values = [value for value in np.flatnonzero(_histogram(read.data)).tolist() if value]
    if len(values) > 1:
        raise InputError(
            f"{path}: case {case.original} has the values {listed(list(map(str, values)), 5)} in what should be a mask "
            "of one organ; give one file an organ, or name a label map with --labels"
        )
    return np.asarray(placed != 0)


def _histogram(labels: NDArray[np.uint8]) -> NDArray[np.int64]:  # [X, Y, Z] -> [256]
    return np.asarray(slice_histograms(labels.T).sum(axis=0))  # a slice is what lies together in a file


def _raw(case: PlannedCase, label: Path) -> RawCase:
    """The case as the sentences about grids name it."""
    return RawCase(case.original, case.split, case.image, label)
