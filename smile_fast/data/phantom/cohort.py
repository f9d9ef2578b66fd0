"""Writes a cohort of phantoms as an nnU-Net raw folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from smile_fast.data.annotations import write_annotations
from smile_fast.data.phantom.anatomy import procedural
from smile_fast.data.phantom.deformation import LabelMaps, painted
from smile_fast.data.phantom.fields import Grid
from smile_fast.data.phantom.painting import ORGANS, Canvas
from smile_fast.data.processes import run_jobs
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason, write_json
from smile_runtime.io.nifti import write_image, write_labels
from smile_runtime.progress import progress

# The axis orders that scanners and archives really use; a cohort cycles through them.
_ORIENTATIONS = ("LPS", "RAS", "LAS", "LPI")
_ATTEMPTS = 20
_GENERATOR = "smile-fast phantom"


@dataclass(frozen=True)
class PhantomOptions:
    """What to make.

    Attributes:
        train, test: number of training and of held-out cases.
        size: rows and columns of a slice, at least 32.
        slices: slices of a case, at least 8.
        seed: same seed, same bytes.
        organs: the labelled organs, value 1 first.
        labelmaps: folder of label maps to paint on; None for procedural anatomy.
    """

    train: int = 32
    test: int = 8
    size: int = 96
    slices: int = 24
    seed: int = 0
    organs: tuple[str, ...] = ("liver", "pancreas", "stomach")
    labelmaps: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be made.

        Raises:
            InputError: one option has no meaning.
        """
        if self.train < 1 or self.test < 0:
            raise InputError(
                f"--train, --test: {self.train} and {self.test} cases make no cohort; give at least 1 training case "
                "and 0 test cases"
            )
        if not 32 <= self.size <= 1024:
            raise InputError(f"--size: {self.size} is out of range; give 32 to 1024 pixels")
        if not 8 <= self.slices <= 1024:
            raise InputError(f"--slices: {self.slices} is out of range; give 8 to 1024")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is negative; give 0 or more")
        if not self.organs:
            raise InputError("--organs: empty; name at least one organ")
        known = ORGANS if self.labelmaps is None else tuple(LabelMaps.open(self.labelmaps).values)
        for organ in self.organs:
            if organ not in known:
                raise InputError(f"--organs: unknown organ '{organ}'; choose from {', '.join(known)}")
        if len(set(self.organs)) < len(self.organs):
            raise InputError(f"--organs: an organ stands there twice ({', '.join(self.organs)}); name every organ once")


@dataclass(frozen=True)
class _Case:
    """One case to make; the only thing that a worker needs."""

    name: str
    split: int  # 0 training, 1 held out
    index: int  # within the split
    folder: Path
    options: PhantomOptions


def write_cohort(out: Path, options: PhantomOptions, *, workers: int = 1, force: bool = False) -> None:
    """Make a cohort and write it to a folder.

    Args:
        out: the folder; must be new or empty.
        options: what to make.
        workers: processes; the files do not depend on it.
        force: replace an earlier phantom in ``out``.

    Raises:
        InputError: bad options, ``out`` cannot be written or holds something else, or a worker was killed.
    """
    options.check()
    out = Path(os.path.abspath(out))  # "." has no name to derive a temporary one from
    _check_target(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
            folder = Path(name)
            for sub in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if options.test else ())):
                (folder / sub).mkdir()
            cases = list(_cases(options, folder))
            made = run_jobs(_write_case, cases, workers, advice="give fewer --workers, or smaller or fewer slices")
            for _ in progress(made, total=len(cases), label="phantom"):
                pass
            _write_tables(folder, cases, options)
            _move(folder, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)}); give another folder") from error


def make_case(options: PhantomOptions, split: int, index: int) -> tuple[NDArray[np.int16], NDArray[np.uint8], Grid]:
    """Make one case in memory; it depends on (seed, split, index) and the options only, never on the cohort's size.

    Returns:
        Image [D, H, W] int16 HU, labels [D, H, W] uint8, and the grid.
    """
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(split, index, attempt)))
        canvas = _draw(rng, options, split, index)
        labels = canvas.labels
        # Rarely an organ falls out of the scan or is covered by its neighbours: draw another patient.
        if options.labelmaps or np.bincount(labels.ravel(), minlength=len(options.organs) + 1).all():
            return canvas.scan(rng), labels, canvas.grid
    raise InputError(
        f"--slices, --size: no patient with all of {', '.join(options.organs)} fits in {options.slices} slices of "
        f"{options.size} pixels; give more slices or larger ones"
    )


def _draw(rng: np.random.Generator, options: PhantomOptions, split: int, index: int) -> Canvas:
    if options.labelmaps is None:
        return procedural(rng, options.organs, options.size, options.slices)
    maps = LabelMaps.open(options.labelmaps)
    return painted(rng, maps, maps.pick(split, index), options.organs, options.size, options.slices)


def _cases(options: PhantomOptions, folder: Path) -> Iterator[_Case]:
    for split, (prefix, count) in enumerate((("case", options.train), ("test", options.test))):
        for index in range(count):
            yield _Case(f"{prefix}_{index:04d}", split, index, folder, options)


def _write_case(case: _Case) -> None:
    image, labels, grid = make_case(case.options, case.split, case.index)
    codes = _ORIENTATIONS[case.index % len(_ORIENTATIONS)]
    side = "Ts" if case.split else "Tr"
    write_image(case.folder / f"images{side}" / f"{case.name}_0000.nii.gz", *_oriented(image, grid, codes))
    write_labels(
        case.folder / f"labels{side}" / f"{case.name}.nii.gz",
        *_oriented(labels, grid, codes),
        organs=case.options.organs,
    )


def _oriented(data: NDArray[Any], grid: Grid, codes: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A slices-order volume [D, H, W] as a file with axis codes ``codes`` stores it, and the file's affine."""
    volume = data.transpose(2, 1, 0)
    z, y, x = grid.spacing
    affine = np.diag([-x, -y, z, 1.0])  # axis codes LPS: world coordinates point right, anterior, superior
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2)
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes))
    return apply_orientation(volume, turn), affine @ inv_ornt_aff(turn, volume.shape)


def _write_tables(folder: Path, cases: Sequence[_Case], options: PhantomOptions) -> None:
    write_json(
        folder / "dataset.json",
        {
            "name": "phantom",
            "generator": _GENERATOR,
            "seed": options.seed,
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **{organ: value for value, organ in enumerate(options.organs, 1)}},
            "numTraining": options.train,
            "file_ending": ".nii.gz",
        },
    )
    names = [case.name for case in cases]
    states = {name: dict.fromkeys(options.organs, State.ANNOTATED) for name in names}
    write_annotations(folder / "annotations.csv", states, names, options.organs)


def _check_target(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a new folder")
    if not out.exists() or not os.listdir(out):
        return
    if not force:
        raise InputError(f"{out}: is not empty; give a new folder, or --force to replace a phantom cohort in it")
    description = out / "dataset.json"
    if not description.is_file() or _GENERATOR not in description.read_text(errors="replace"):
        raise InputError(f"{out}: holds something that smile-fast phantom did not write; give a new folder")


def _move(folder: Path, out: Path) -> None:
    """Put finished files in their place; other files of ``out`` stay."""
    out.mkdir(exist_ok=True)
    for name in ("dataset.json", "annotations.csv", "imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        target, made = out / name, folder / name
        if target.is_dir():
            shutil.rmtree(target)
        if made.exists():
            made.replace(target)
