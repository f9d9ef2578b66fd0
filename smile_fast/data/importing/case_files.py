"""One case of a new dataset: its files are read, checked, and written where the dataset is made."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
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
from smile_runtime.io.nifti import Digest, Volume, write_image, write_labels
from smile_runtime.label_map import LABEL_VALUES
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.preprocessing import to_slices

Link = Literal["hard", "copy", "symbolic"]
LINKS: tuple[Link, ...] = ("hard", "copy", "symbolic")
SCHEMA = 2
_REMEDY = "make the case again"


@dataclass(frozen=True)
class CaseJob:
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
class MadeCase:
    """What was made, as its record says.

    Attributes:
        schema: version of the record.
        request: SHA-256 of all that the case follows from. link: as in the job.
        image_sha256, labels_sha256: of the files that it was made from; of masks, of all of them together.
        voxels: SHA-256 of the scan in slices order: the same scan has the same, whatever its file.
        counts: voxels of each organ.
        warnings: what has to be known of the headers of its files.
        sizes: bytes of the new image and label map.
    """

    schema: int
    request: str
    link: Link
    image_sha256: str
    labels_sha256: str
    voxels: str
    counts: list[int]
    warnings: list[str]
    sizes: tuple[int, int]


@dataclass(frozen=True)
class CaseOutcome:
    """What became of a case.

    Attributes:
        case: its name.
        request: see `MadeCase`; empty where the files could not be read.
        made: its record, None where only its files were hashed, or it is broken.
        problem: one sentence on what is wrong.
        kept: whether an earlier call had made it.
    """

    case: str
    request: str = ""
    made: MadeCase | None = None
    problem: str | None = None
    kept: bool = False


def make_case(job: CaseJob) -> CaseOutcome:
    """Make one case, or find that it is made. What is wrong with its files is an outcome.

    Raises:
        InputError: the new files cannot be written.
    """
    case = job.case
    try:
        if job.look or job.record.exists():
            files = [sha256(path) for path in case.drawn.files()]
            request = _request(job, sha256(case.image), _joined(case.drawn, files))
            if job.look:
                return CaseOutcome(case.name, request)
            if (found := _made(job, request)) is not None:
                return CaseOutcome(case.name, request, found, kept=True)
        image, image_sha = _hashed(read_scan, case.image)
        slices, _ = to_slices(image.data, image.affine)
        voxels = hashlib.sha256(str(slices.shape).encode())
        voxels.update(np.ascontiguousarray(slices).data)
        drawn = _drawn(case, image)
    except InputError as error:
        return CaseOutcome(case.name, problem=_about(case, str(error)))
    forget_case(job)
    if is_gzipped_nifti(case.image):
        place_file(case.image, job.image, job.link)
    else:
        write_image(job.image, image.data, image.affine, header=image.header)
    if drawn.unchanged is not None:
        # Small, and what humans go on drawing in, with programs that write into the file that is there.
        place_file(drawn.unchanged, job.label, "copy")
    else:
        write_labels(job.label, drawn.labels, image.affine, header=image.header)
    try:
        if is_gzipped_nifti(case.image):
            _check_placed(case.image, job.image, image_sha)
        if drawn.unchanged is not None:
            _check_placed(drawn.unchanged, job.label, drawn.sha256)
    except InputError as error:
        forget_case(job)
        return CaseOutcome(case.name, problem=_about(case, str(error)))
    request = _request(job, image_sha, drawn.sha256)
    counts = _histogram(drawn.labels)[1 : job.organs + 1].tolist()
    warnings = list(dict.fromkeys((*image.warnings, *drawn.warnings)))
    made = MadeCase(
        SCHEMA, request, job.link, image_sha, drawn.sha256, voxels.hexdigest(), counts, warnings, _sizes(job)
    )
    write_record(job.record, vars(made))
    return CaseOutcome(case.name, request, made)


def forget_case(job: CaseJob) -> None:
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


def _request(job: CaseJob, image_sha256: str, labels_sha256: str) -> str:
    """SHA-256 of all that the case follows from."""
    return json_digest([image_sha256, labels_sha256, job.case.drawn.meaning(), job.organs])


def _joined(drawn: DrawnMap | DrawnMasks, digests: Sequence[str]) -> str:
    """One digest of the files that the labels are made of."""
    return digests[0] if isinstance(drawn, DrawnMap) else json_digest(list(digests))


def _hashed(read: Callable[[Path, Digest], Volume], path: Path) -> tuple[Volume, str]:
    """A volume, and the SHA-256 of the very bytes that it was read from."""
    digest = hashlib.sha256()
    volume = read(path, digest)
    return volume, digest.hexdigest()


def _check_placed(source: Path, target: Path, digest: str) -> None:
    """Refuse a file that is another one than what was read.

    Raises:
        InputError: it is.
    """
    if sha256(target) != digest:
        raise InputError(f"{source}: changed while it was read; repeat the command when nobody writes it")


def _made(job: CaseJob, request: str) -> MadeCase | None:
    """The record of an earlier call, if the files are those that it made of the same."""
    try:
        found = read_record(job.record, MadeCase, SCHEMA, _REMEDY)
        same = found.request == request and found.link == job.link and found.sizes == _sizes(job)
    except (InputError, OSError):
        return None
    return found if same else None


def _sizes(job: CaseJob) -> tuple[int, int]:
    return job.image.stat().st_size, job.label.stat().st_size


def _about(case: PlannedCase, sentence: str) -> str:
    named = case.name in sentence or case.original in sentence
    return sentence if named else f"case {case.source}/{case.original}: {sentence}"


@dataclass(frozen=True)
class _Drawn:
    """The labels of a case.

    Attributes:
        labels: [X, Y, Z] on the image's grid.
        sha256: of the files that they were made of, see `MadeCase`.
        warnings: what has to be known of the headers of these.
        unchanged: the file that holds just these labels, if there is one.
    """

    labels: NDArray[np.uint8]
    sha256: str
    warnings: tuple[str, ...]
    unchanged: Path | None = None


def _drawn(case: PlannedCase, image: Volume) -> _Drawn:
    if isinstance(case.drawn, DrawnMasks):
        return _painted(case, case.drawn, image)
    drawn, digest = _hashed(read_drawn, case.drawn.path)
    placed = labels_on_image(_raw(case, case.drawn.path), image, drawn)
    used = np.flatnonzero(_histogram(drawn.data)).tolist()
    values = case.drawn.values
    if strange := [value for value in used if values[value] == REFUSED]:
        raise InputError(
            f"{case.drawn.path}: case {case.original} has the label value {listed(list(map(str, strange)), 5)}, which "
            f"means nothing; {case.drawn.advice}"
        )
    if all(values[value] == value for value in used):
        unchanged = case.drawn.path if is_gzipped_nifti(case.drawn.path) else None
        return _Drawn(placed, digest, drawn.warnings, unchanged)
    ours = np.array([max(value, 0) for value in values], np.uint8)
    return _Drawn(np.asfortranarray(ours[placed]), digest, drawn.warnings)


def _painted(case: PlannedCase, drawn: DrawnMasks, image: Volume) -> _Drawn:
    labels = np.zeros(image.data.shape, np.uint8, order="F")
    unordered = np.zeros(LABEL_VALUES, bool)  # values of organs of which nobody said that they win
    owner: dict[int, str] = {}
    digests: list[str] = []
    warnings: list[str] = []
    for organ, path, value in drawn.masks:
        read, digest = _hashed(read_drawn, path)
        digests.append(digest)
        warnings += read.warnings
        mask = _mask(case, read, image)
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
    return _Drawn(labels, _joined(drawn, digests), tuple(warnings))


def _mask(case: PlannedCase, read: Volume, image: Volume) -> NDArray[np.bool_]:
    """Where a mask is set: at its one value that is not 0, which programs write as 1 or 255."""
    placed = labels_on_image(_raw(case, read.path), image, read)
    values = [value for value in np.flatnonzero(_histogram(read.data)).tolist() if value]
    if len(values) > 1:
        raise InputError(
            f"{read.path}: case {case.original} has the values {listed(list(map(str, values)), 5)} in what should be a "
            "mask of one organ; give one file an organ, or name a label map with --labels"
        )
    return np.asarray(placed != 0)


def _histogram(labels: NDArray[np.uint8]) -> NDArray[np.int64]:  # [X, Y, Z] -> [256]
    return np.asarray(slice_histograms(labels.T).sum(axis=0))  # a slice is what lies together in a file


def _raw(case: PlannedCase, label: Path) -> RawCase:
    """The case as the sentences about grids name it."""
    return RawCase(case.original, case.split, case.image, label)
