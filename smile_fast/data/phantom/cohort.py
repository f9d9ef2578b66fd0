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
from smile_fast.data.importing.sources import FILE_NAME as SOURCES
from smile_fast.data.importing.sources import CaseSource, write_sources
from smile_fast.data.phantom.anatomy import procedural, synthetic, synthetic_names
from smile_fast.data.phantom.deformation import LabelMaps, painted
from smile_fast.data.phantom.fields import Grid
from smile_fast.data.phantom.painting import ORGANS, Canvas
from smile_fast.data.phantom.scanners import Scanner, deal_organs, source_name
from smile_fast.data.processes import run_jobs
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason, sha256, write_json
from smile_runtime.io.nifti import write_image, write_labels
from smile_runtime.label_map import MAX_ORGANS
from smile_runtime.progress import progress

# The axis orders that scanners and archives really use; a cohort cycles through them.
_ORIENTATIONS = ("LPS", "RAS", "LAS", "LPI")
_ATTEMPTS = 20
_MOST_SOURCES = 26  # they are called by letters
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
        synthetic: the organs are ellipsoids, `synthetic_names` of as many; no anatomy.
        sources: how many sources the cases are dealt out to, each with a scanner of its own; 0 for none.
        source_organs: what each source draws in its training cases; empty deals the organs out in turn.
    """

    train: int = 32
    test: int = 8
    size: int = 96
    slices: int = 24
    seed: int = 0
    organs: tuple[str, ...] = ("liver", "pancreas", "stomach")
    labelmaps: Path | None = None
    synthetic: bool = False
    sources: int = 0
    source_organs: tuple[tuple[str, ...], ...] = ()

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
        known = self._known()
        for organ in self.organs:
            if organ not in known:
                raise InputError(f"--organs: unknown organ '{organ}'; choose from {', '.join(known)}")
        self._check_sources()
        if len(set(self.organs)) < len(self.organs):
            raise InputError(f"--organs: an organ stands there twice ({', '.join(self.organs)}); name every organ once")

    def _known(self) -> tuple[str, ...]:
        """The organs that can be labelled."""
        if not self.synthetic:
            return ORGANS if self.labelmaps is None else tuple(LabelMaps.open(self.labelmaps).values)
        if self.labelmaps is not None:
            raise InputError("--synthetic-organs: stand in no label map; leave --labelmaps out")
        if len(self.organs) > MAX_ORGANS:
            raise InputError(f"--synthetic-organs: {len(self.organs)} are too many; give 1 to {MAX_ORGANS}")
        return synthetic_names(len(self.organs))

    def _check_sources(self) -> None:
        if not (self.sources == 0 or 2 <= self.sources <= _MOST_SOURCES):
            raise InputError(f"--sources: {self.sources} is out of range; give 2 to {_MOST_SOURCES}, or 0 for none")
        if self.sources > self.train:
            raise InputError(
                f"--sources, --train: {self.train} training cases cannot be dealt out to {self.sources} sources; give "
                "one case a source at least"
            )
        if not self.source_organs:
            return
        if len(self.source_organs) != self.sources:
            raise InputError(
                f"--source-organs: names the organs of {len(self.source_organs)} sources, --sources says "
                f"{self.sources}; give one group a source, with semicolons between them"
            )
        drawn = {organ for organs in self.source_organs for organ in organs}
        if strange := sorted(drawn - set(self.organs)):
            raise InputError(f"--source-organs: '{strange[0]}' is none of {', '.join(self.organs)}; correct it")
        if undrawn := [organ for organ in self.organs if organ not in drawn]:
            raise InputError(f"--source-organs: no source draws {', '.join(undrawn)}; add it to one")

    def source(self, index: int) -> int:
        """The source of the case of this index within its split."""
        return index % self.sources

    def scanner(self, index: int) -> Scanner | None:
        """What a case is scanned with; None without sources."""
        return Scanner.draw(self.seed, self.source(index), self.sources) if self.sources else None

    def drawn(self) -> tuple[tuple[str, ...], ...]:
        """What each source draws."""
        return self.source_organs or deal_organs(self.organs, self.sources)


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
        paint = synthetic if options.synthetic else procedural
        return paint(rng, options.organs, options.size, options.slices, options.scanner(index))
    maps = LabelMaps.open(options.labelmaps)
    patient = index // max(options.sources, 1)  # every source sees every patient
    path = maps.pick(split, patient)
    return painted(rng, maps, path, options.organs, options.size, options.slices, options.scanner(index))


def _cases(options: PhantomOptions, folder: Path) -> Iterator[_Case]:
    for split, (prefix, count) in enumerate((("case", options.train), ("test", options.test))):
        for index in range(count):
            yield _Case(f"{prefix}_{index:04d}", split, index, folder, options)


def _write_case(case: _Case) -> None:
    image, labels, grid = make_case(case.options, case.split, case.index)
    codes = _ORIENTATIONS[case.index % len(_ORIENTATIONS)]
    image_file, labels_file = _files(case, case.folder)
    write_image(image_file, *_oriented(image, grid, codes))
    write_labels(labels_file, *_oriented(labels, grid, codes), organs=case.options.organs)


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
    states = {case.name: _states(case) for case in cases}
    write_annotations(folder / "annotations.csv", states, names, options.organs)
    if options.sources:
        write_sources(folder / SOURCES, (_source(folder, case) for case in cases))


def _states(case: _Case) -> dict[str, State]:
    """A training case shows what its source draws: the rest is there, and training must not know it."""
    options = case.options
    drawn = options.organs if case.split or not options.sources else options.drawn()[options.source(case.index)]
    return {organ: State.ANNOTATED if organ in drawn else State.HIDDEN for organ in options.organs}


def _source(folder: Path, case: _Case) -> CaseSource:
    image, labels = _files(case, folder)
    return CaseSource(case.name, source_name(case.options.source(case.index)), case.name, sha256(image), sha256(labels))


def _files(case: _Case, folder: Path) -> tuple[Path, Path]:
    side = "Ts" if case.split else "Tr"
    return folder / f"images{side}" / f"{case.name}_0000.nii.gz", folder / f"labels{side}" / f"{case.name}.nii.gz"


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
    for name in ("dataset.json", "annotations.csv", SOURCES, "imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        target, made = out / name, folder / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if made.exists():
            made.replace(target)
