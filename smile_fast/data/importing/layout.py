"""Where the files of a cohort lie, as patterns: `{case}` stands for a case's name, `{organ}` for an organ's.

`{case}/ct` is TotalSegmentator's, `{case}/imaging` KiTS', `imagesTr/{case}` that of the Medical Segmentation Decathlon;
endings may be left out, and are those of any format that is read.
"""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smile_fast.data.importing.formats import scan_stem
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.io.scan_files import refuse_dicom
from smile_runtime.names import normal_name

CASE, ORGAN = "{case}", "{organ}"
_IMAGES = tuple(f"{CASE}/{name}" for name in ("ct", "image", "imaging", "img", "volume", "scan", CASE))
_MASKS = tuple(f"{CASE}/{folder}/{ORGAN}" for folder in ("segmentations", "segmentation", "masks", "labels"))
_LABELS = tuple(
    f"{CASE}/{name}" for name in ("segmentation", "labels", "label", "seg", "mask", "combined_labels", f"{CASE}_seg")
)
_FIELD = re.compile(r"\{(case|organ)\}")


@dataclass(frozen=True)
class FolderLayout:
    """The patterns of a cohort, relative to its folder.

    Attributes:
        images: of the scans.
        drawn: of the label maps, or of the masks.
    """

    images: str
    drawn: str

    @property
    def has_masks(self) -> bool:
        """Whether there is one file an organ."""
        return ORGAN in self.drawn


def as_layout(image: str | None, masks: str | None, labels: str | None) -> tuple[str | None, str | None, str | None]:
    """The patterns that --image, --masks and --labels mean, which may be names alone.

    Raises:
        InputError: one of them is no pattern, or --masks and --labels are given both.
    """
    if masks is not None and labels is not None:
        raise InputError("--masks, --labels: one file an organ, or one label map; give one of the options")
    if image is not None and CASE not in image:
        image = f"{CASE}/{image}"
    if masks is not None and ORGAN not in masks:
        masks = os.path.normpath(f"{CASE}/{masks.rstrip('/')}/{ORGAN}")
    if labels is not None and CASE not in labels:
        labels = f"{CASE}/{labels}"
    for option, pattern in (("--image", image), ("--masks", masks), ("--labels", labels)):
        if pattern is None:
            continue
        if CASE not in pattern or (ORGAN in pattern) != (option == "--masks") or pattern.count(ORGAN) > 1:
            wanted = f"'{CASE}/segmentations/{ORGAN}'" if option == "--masks" else f"'{CASE}/NAME'"
            raise InputError(f"{option}: '{pattern}' does not say where the files of a case lie; write e.g. {wanted}")
        if os.path.isabs(pattern) or ".." in pattern.split("/"):
            raise InputError(f"{option}: '{pattern}' leads out of SOURCE; write it relative to that folder")
    return image, masks, labels


def find_layout(source: Path, image: str | None, masks: str | None, labels: str | None) -> FolderLayout:
    """The patterns that fit a folder, given those that are known.

    Raises:
        InputError: none fits.
    """
    try:
        if not source.is_dir():
            refuse_dicom(source)
            raise InputError(f"{source}: there is no such folder; give the one that holds the cases")
        os.listdir(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({reason(error)}); check its permissions") from error
    images = _first(source, (image,) if image else _IMAGES)
    if images is None:
        refuse_dicom(source)
        tried = "'" + "', '".join([image] if image else list(_IMAGES[:3])) + "'"
        raise InputError(
            f"{source}: holds no scan that is named like {tried}, nor imagesTr; say where they lie with --image, e.g. "
            f"--image '{CASE}/ct'"
        )
    if labels is None:
        # Masks beside the scan are the last guess: they are everything else there.
        beside = (f"{images.rpartition('/')[0]}/{ORGAN}",) if images.startswith(f"{CASE}/") else ()
        found = _first(source, (masks,) if masks else _MASKS)
        if found is None and masks is None:
            labels = _first(source, tuple(pattern for pattern in _LABELS if pattern != images))
            found = None if labels else next((p for p in beside if find_masks(source, p, images)), None)
        if found is not None:
            return FolderLayout(images, found)
    elif not find_files(source, labels):
        labels = None
    if labels is None:
        raise InputError(
            f"{source}: holds no masks or label maps where they were looked for; say where with --masks, e.g. --masks "
            f"segmentations, or --labels '{CASE}/labels'"
        )
    return FolderLayout(images, labels)


def find_files(source: Path, pattern: str) -> dict[str, Path]:
    """Case -> its file.

    Raises:
        InputError: two files are of one case, or a name cannot be used.
    """
    found: dict[str, Path] = {}
    for file, fields in _matches(source, pattern):
        _take(found, fields["case"], file)
    return found


def find_masks(source: Path, pattern: str, images: str) -> dict[str, dict[str, Path]]:
    """Case -> organ -> its mask; the scans themselves, where they lie among the masks, are none.

    Raises:
        InputError: two files are of one organ, or a name cannot be used.
    """
    scans = {file for file, _ in _matches(source, images)}
    found: dict[str, dict[str, Path]] = {}
    for file, fields in _matches(source, pattern):
        if file not in scans:
            _take(found.setdefault(fields["case"], {}), fields["organ"], file)
    return found


def _first(source: Path, patterns: Sequence[str]) -> str | None:
    """The first pattern that some file fits."""
    return next((pattern for pattern in patterns if any(True for _ in _matches(source, pattern))), None)


def _matches(source: Path, pattern: str) -> list[tuple[Path, dict[str, str]]]:
    """The files that fit a pattern, by name, with what stands for its fields."""
    ending = scan_stem(pattern.rpartition("/")[2]) is not None
    wild, expression, last = "", "", 0
    for field in _FIELD.finditer(pattern):
        literal = pattern[last : field.start()]
        known = f"(?P<{field[1]}>" in expression
        wild += glob.escape(literal) + "*"
        expression += re.escape(literal) + (f"(?P={field[1]})" if known else f"(?P<{field[1]}>[^/]+)")
        last = field.end()
    wild += glob.escape(pattern[last:]) + ("" if ending else ".*")
    expression += re.escape(pattern[last:])
    found = []
    for name in sorted(glob.glob(wild, root_dir=source)):
        folder, _, file = name.rpartition("/")
        stem = scan_stem(file)
        if stem is None or not (source / name).is_file():
            continue
        compared = name if ending else f"{folder}/{stem}" if folder else stem
        if match := re.fullmatch(expression, compared):
            found.append((source / name, {key: normal_name(text) for key, text in match.groupdict().items()}))
    return found


def _take(found: dict[str, Path], name: str, file: Path) -> None:
    if not name or not name.isprintable():
        raise InputError(f"{str(file)!r}: not a usable name for a case or an organ; rename it")
    if name in found:
        raise InputError(f"{file}: is {name} a second time, beside {found[name]}; move one of them away")
    found[name] = file


def refuse_unpaired(source: Path, images: Sequence[str], labels: Sequence[str], what: str) -> None:
    """Refuse label files without a scan.

    Raises:
        InputError: there are some.
    """
    if alone := sorted(set(labels) - set(images)):
        raise InputError(f"{source}: {what} without a scan in {listed(alone, 5)}; add the scan or remove the case")
