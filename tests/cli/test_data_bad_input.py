"""Bad input to declare, simulate-missing, audit and prepare: one sentence, exit status 2, nothing half-written."""

import gzip
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from smile_fast.cli.main import main
from tests.cohorts import AFFINE, SHAPE, annotate, describe, label_map, make_cohort, tree, write_nifti


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort")
    annotate(path)
    return path


@dataclass
class Bad:
    """One mistake: what is done to a good cohort, the command, and what its message must name."""

    name: str
    spoil: Callable[[Path], object]
    message: str
    command: list[str] = field(default_factory=lambda: ["prepare", "{cohort}", "{out}", "--workers", "1", "--strict"])


AUDIT = ["audit", "{cohort}", "--json", "{out}"]
DECLARE = ["declare", "{cohort}", "--assume-missing", "--output", "{out}"]
SIMULATE = ["simulate-missing", "{cohort}", "--output", "{out}", "--alpha"]


def rows(change: Callable[[str], str]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        file = path / "annotations.csv"
        file.write_text(change(file.read_text()))

    return spoil


def image(data) -> Callable[[Path], object]:
    return lambda path: write_nifti(path / "imagesTr" / "case_01_0000.nii.gz", data)


def label(data, affine=AFFINE) -> Callable[[Path], object]:
    return lambda path: write_nifti(path / "labelsTr" / "case_01.nii.gz", data, affine)


def image_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        file = path / "imagesTr" / "case_01_0000.nii.gz"
        file.write_bytes(change(file.read_bytes()))

    return spoil


def header(offset: int, packed: bytes) -> Callable[[Path], object]:
    """Overwrite bytes of the NIfTI header of an image."""

    def change(content: bytes) -> bytes:
        raw = bytearray(gzip.decompress(content))
        raw[offset : offset + len(packed)] = packed
        return gzip.compress(bytes(raw))

    return image_bytes(change)


def with_voxel(value: float) -> np.ndarray:
    data = np.zeros(SHAPE, np.float32)
    data[3, 4, 5] = value
    return data


def nothing(path: Path) -> None:
    """The command line alone is wrong."""


LABELS = {"background": 0, "liver": 1, "pancreas": 2, "spleen": 3}
CASE = "case_01"
BAD = [
    Bad(
        "no annotations.csv", lambda path: (path / "annotations.csv").unlink(), "annotations.csv: there is no such file"
    ),
    Bad(
        "header of annotations.csv",
        rows(lambda text: text.replace("case,", "patient,", 1)),
        "line 1: the header is",
    ),
    Bad("contradiction", rows(lambda text: text + f"{CASE},liver,missing\n"), "contradicts annotated on line 5"),
    Bad("duplicate", rows(lambda text: text + f"{CASE},liver,annotated\n"), "repeats line 5"),
    Bad(
        "incomplete",
        rows(lambda text: text.replace(f"{CASE},liver,annotated\n", "")),
        f"no row for 1 of the 9 (case, organ) pairs: {CASE}/liver",
    ),
    Bad("unknown organ", rows(lambda text: text + f"{CASE},appendix,missing\n"), "no organ 'appendix'"),
    Bad("unknown case", rows(lambda text: text + "case_99,liver,missing\n"), "no case 'case_99'"),
    Bad("unknown state", rows(lambda text: text.replace("annotated", "drawn", 1)), "unknown state 'drawn'"),
    Bad("undecided", rows(lambda text: text.replace("annotated", "?", 1)), "is still undecided"),
    Bad(
        "undecided, simulate",
        rows(lambda text: text.replace("annotated", "?", 1)),
        "is still undecided",
        [*SIMULATE, "0.5"],
    ),
    Bad("undecided, audit", rows(lambda text: text.replace("annotated", "?", 1)), "is still undecided", AUDIT),
    Bad(
        "absent with voxels",
        lambda path: annotate(path, {(CASE, "spleen"): "absent"}),
        "has 90 voxels of spleen, which is declared absent",
    ),
    Bad(
        "absent with voxels, audit",
        lambda path: annotate(path, {(CASE, "spleen"): "absent"}),
        "which is declared absent",
        AUDIT,
    ),
    Bad(
        "annotations file not there",
        nothing,
        "nowhere.csv: there is no such file",
        ["prepare", "{cohort}", "{out}", "--annotations", "{cohort}/nowhere.csv"],
    ),
    Bad(
        "DICOM among the images",
        lambda path: (path / "imagesTr" / "IM0001").write_bytes(b"\0" * 128 + b"DICM"),
        "holds scans that are no NIfTI files ('IM0001'); convert them (DICOM with: dcm2niix -z y -o OUT ",
    ),
    Bad(
        "DICOM in a label map's name",
        lambda path: (path / "labelsTr" / "case_01.nii.gz").write_bytes(b"\0" * 128 + b"DICM"),
        "case_01.nii.gz: is a DICOM file, not NIfTI; convert it with: dcm2niix -z y -o OUT ",
    ),
    Bad("no dataset", nothing, "nowhere: there is no such folder", ["prepare", "{cohort}/nowhere", "{out}"]),
    Bad(
        "no dataset.json", lambda path: (path / "dataset.json").unlink(), "dataset.json: there is no such file", DECLARE
    ),
    Bad("bad JSON", lambda path: (path / "dataset.json").write_text("{"), "dataset.json: not valid JSON"),
    Bad(
        "two channels",
        lambda path: describe(path, LABELS, 3, channel_names={"0": "CT", "1": "PET"}),
        "has 2 channels; name exactly one",
    ),
    Bad("gap in labels", lambda path: describe(path, {**LABELS, "spleen": 4}, 3), "use 1..3 without gap"),
    Bad(
        "127 organs",
        lambda path: describe(path, {"background": 0} | {f"o{v}": v for v in range(1, 128)}, 3),
        "names 127 organs; name 1 to 126",
    ),
    Bad("numTraining", lambda path: describe(path, LABELS, 4), "numTraining is 4, but imagesTr holds 3 cases"),
    Bad("label map for an image", image(label_map()), f"{CASE}_0000.nii.gz: not in Hounsfield units, its rounded"),
    Bad("HU / 1000", image(np.float32(label_map()) - 1), "not in Hounsfield units, its rounded values lie between -1"),
    Bad("image of air", image(np.full(SHAPE, -1000, np.int16)), f"{CASE}_0000.nii.gz: shows nothing, all its voxels"),
    Bad(
        "image without label",
        lambda path: (path / "labelsTr" / f"{CASE}.nii.gz").unlink(),
        f"case {CASE} is in imagesTr",
    ),
    Bad(
        "label without image",
        lambda path: (path / "imagesTr" / f"{CASE}_0000.nii.gz").unlink(),
        f"case {CASE} is in labelsTr",
    ),
    Bad("label value", label(np.full(SHAPE, 77, np.uint8)), f"case {CASE} has the label value 77"),
    Bad("label value, declare", label(np.full(SHAPE, 77, np.uint8)), f"case {CASE} has the label value 77", DECLARE),
    Bad("label value, audit", label(np.full(SHAPE, 77, np.uint8)), f"case {CASE} has the label value 77", AUDIT),
    Bad("fractional labels", label(with_voxel(1.5)), "has label value 1.5 at (3, 4, 5), which is no whole number"),
    Bad(
        "a label of 1.0011", label(with_voxel(1.0011)), "has label value 1.0011 at (3, 4, 5), which is no whole number"
    ),
    Bad("negative labels", label(np.full(SHAPE, -1, np.int16)), "has label value -1"),
    Bad("labels above 255", label(np.full(SHAPE, 256, np.int16)), "has label value 256"),
    Bad("NaN label", label(with_voxel(np.nan)), "has a NaN or infinite voxel at (3, 4, 5)"),
    Bad(
        "shape", label(label_map()[..., :-1]), f"case {CASE} has an image of 20x24x8 voxels and a label map of 20x24x7"
    ),
    Bad(
        "affine",
        label(label_map(), AFFINE + np.eye(4, k=3)),
        f"case {CASE} has a label map that lies 1 mm off its image",
    ),
    Bad("mirrored affine", label(label_map(), AFFINE * [-1, 1, 1, 1]), "mm off its image"),
    Bad("NaN voxel", image(with_voxel(np.nan)), "has a NaN or infinite voxel at (3, 4, 5)"),
    Bad("infinite voxel", image(with_voxel(np.inf)), "has a NaN or infinite voxel at (3, 4, 5)"),
    Bad("NaN affine", header(280, struct.pack("<f", np.nan)), "NaN or infinite numbers in its affine"),
    Bad("singular affine", header(280, struct.pack("<f", 0.0)), "damaged header, its affine makes voxels of"),
    Bad("4D image", image(np.zeros((*SHAPE, 2), np.int16)), "has 4 dimensions"),
    Bad("2D image", image(np.zeros(SHAPE[:2], np.int16)), "has 2 dimensions"),
    Bad("complex image", image(np.zeros(SHAPE, np.complex64)), "has complex voxels"),
    Bad("empty file", image_bytes(lambda content: b""), ": cut short"),
    Bad("truncated gz", image_bytes(lambda content: content[: len(content) // 2]), ": cut short"),
    Bad("not a gz", image_bytes(lambda content: b"hello" * 100), ": damaged"),
    Bad("damaged gz", image_bytes(lambda content: content[:200] + b"\x00" * 50 + content[250:]), ": damaged"),
    Bad(
        "header claims 10^12 voxels",
        header(42, struct.pack("<3h", 10_000, 10_000, 10_000)),
        "claims 10000 x 10000 x 10000 voxels",
    ),
    Bad("header claims a bit more", header(42, struct.pack("<3h", 20, 24, 9)), ": cut short"),
    Bad("header claims nothing", header(42, struct.pack("<3h", 20, 0, 8)), ": empty, it has"),
    Bad("infinite slope", header(112, struct.pack("<f", np.inf)), "make scl_slope and scl_inter finite"),
    Bad(
        "image is a folder",
        lambda path: (
            (path / "imagesTr" / f"{CASE}_0000.nii.gz").unlink(),
            (path / "imagesTr" / f"{CASE}_0000.nii.gz").mkdir(),
        ),
        "cannot be read",
    ),
    Bad(
        "store in a file",
        nothing,
        "the store cannot be written there",
        ["prepare", "{cohort}", "{cohort}/dataset.json/store"],
    ),
    Bad(
        "store is a file",
        nothing,
        "the store cannot be written there",
        ["prepare", "{cohort}", "{cohort}/dataset.json"],
    ),
    Bad(
        "store where nothing can be made",
        nothing,
        "the store cannot be written there",
        ["prepare", "{cohort}", "/proc/store"],
    ),
    Bad("store in the dataset", nothing, "holds other files", ["prepare", "{cohort}", "{cohort}"]),
    Bad(
        "no workers",
        nothing,
        "--workers: 0 is not a number of processes; give 1 or more",
        ["prepare", "{cohort}", "{out}", "--workers", "0"],
    ),
    Bad(
        "nothing to finish",
        nothing,
        "out: no store, none of its cases is converted; make one with 'smile-fast prepare'",
        ["prepare", "{cohort}", "{out}", "--finish"],
    ),
    *(
        Bad(
            f"finish and {option[0]}",
            nothing,
            f"--finish: converts nothing, so it does not go with {option[0]}; leave one out",
            ["prepare", "{cohort}", "{out}", "--finish", *option],
        )
        for option in (["--shard", "1/2"], ["--force"], ["--rehash"], ["--workers", "1"])
    ),
    Bad("no share", nothing, "is no share of the work", ["prepare", "{cohort}", "{out}", "--shard", "3/2"]),
    Bad("alpha above 1", nothing, "--alpha: 1.2 is not a share", [*SIMULATE, "1.2"]),
    Bad("alpha NaN", nothing, "--alpha: nan is not a share", [*SIMULATE, "nan"]),
    Bad("seed", nothing, "--seed: -1 is negative; give 0 or more", [*SIMULATE, "0.5", "--seed", "-1"]),
    Bad(
        "simulate into a folder",
        nothing,
        "cannot be written",
        ["simulate-missing", "{cohort}", "--alpha", "0", "--output", "{cohort}"],
    ),
    Bad("audit into nowhere", nothing, "cannot be written", ["audit", "{cohort}", "--json", "{cohort}/no/where.json"]),
    Bad(
        "declare into nowhere",
        nothing,
        "cannot be written",
        ["declare", "{cohort}", "--output", "{cohort}/no/where.csv"],
    ),
    Bad(
        "audit of a split without cases",
        nothing,
        "--split: there is no case to audit",
        [*AUDIT, "--split", "test"],
    ),
    *(
        Bad(f"{command[0]} over {file}", nothing, "would overwrite the input", [*command, f"{{cohort}}/{file}"])
        for file in ("dataset.json", "imagesTr/case_00_0000.nii.gz", "labelsTr/../labelsTr/case_02.nii.gz")
        for command in (
            ["audit", "{cohort}", "--json"],
            ["declare", "{cohort}", "--assume-missing", "--force", "--output"],
            ["simulate-missing", "{cohort}", "--alpha", "0.5", "--output"],
        )
    ),
    Bad(
        "audit over annotations.csv",
        nothing,
        "would overwrite the input",
        ["audit", "{cohort}", "--json", "{cohort}/annotations.csv"],
    ),
    Bad("declare again", nothing, "annotations.csv: already there", ["declare", "{cohort}", "--assume-missing"]),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_one_sentence(bad, cohort, tmp_path, capsys):
    bad.spoil(cohort)
    before, out = tree(cohort), tmp_path / "out"
    assert main([part.format(cohort=cohort, out=out) for part in bad.command]) == 2
    printed, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert bad.message in printed + err
    assert "Traceback" not in printed + err
    assert max(map(len, errors)) < 500
    assert tree(cohort) == before
    if out.is_dir():  # a store: the good cases may stay, the broken one and the index may not be there
        assert not (out / "index.json").exists()
        assert [file.name for file in (out / "cases" / CASE).iterdir()] == ["broken.json"]
        assert list(json.loads((out / "quarantine.json").read_text())["cases"]) == [CASE]
        for file in tree(out):
            assert re.fullmatch(r"(quarantine|broken|case)\.json|(image|labels)-[0-9a-f]{16}\.b2nd", Path(file).name)
    else:
        assert not out.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["declare", "{cohort}", "--force"],
        ["simulate-missing", "{cohort}", "--alpha", "0.5"],
        ["audit", "{cohort}", "--json", "{out}"],
        ["prepare", "{cohort}", "{out}", "--workers", "1"],
    ],
    ids=lambda command: command[0],
)
def test_a_full_disk_is_one_sentence(command, cohort, tmp_path, capsys, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    before, out = tree(cohort), tmp_path / "out"
    monkeypatch.setattr(os, "fsync", full)  # what was written meanwhile is in memory only
    assert main([part.format(cohort=cohort, out=out) for part in command]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no space left on device" in errors[0]
    assert tree(cohort) == before
    assert not out.exists() or tree(out) == {}
