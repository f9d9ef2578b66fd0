"""Mistakes with a finished store: one sentence, exit status 2, and the store stays as it was."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.store import CASES
from tests.cohorts import SHAPE, annotate, array_file, damage_array, edit_label, make_cohort, tree, write_nifti
from tests.runs import make_run, make_store, truth


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort", train=2)
    annotate(path, {("case_01", "spleen"): "hidden"})
    assert main(["prepare", str(path), str(tmp_path / "store"), "--workers", "1"]) == 0
    return path


@dataclass
class Bad:
    """One mistake: what is done to the cohort and its store, the command, and what its message must name."""

    name: str
    spoil: Callable[[Path, Path], object]
    message: str
    command: list[str]


def nothing(cohort: Path, store: Path) -> None:
    """The command line alone is wrong."""


def other_files(cohort: Path, store: Path) -> None:
    for case in ("case_00", "case_01"):
        write_nifti(cohort / "imagesTr" / f"{case}_0000.nii.gz", np.zeros(SHAPE, np.int16))
        edit_label(cohort, case, lambda labels: np.roll(labels, 1, axis=2))


def damaged_labels(cohort: Path, store: Path) -> None:
    damage_array(array_file(store / CASES / "case_01", "labels"))


AUDIT = ["audit", "{store}"]
OTHER = ["--annotations", "{cohort}/annotations.csv"]
PREPARE = ["prepare", "{cohort}", "{store}", "--workers", "1"]
BAD = [
    Bad(
        "damaged labels",
        lambda _, store: damage_array(array_file(store / CASES / "case_01", "labels")),
        "damaged",
        AUDIT,
    ),
    Bad(
        "hidden organ declared absent",
        lambda cohort, _: annotate(cohort, {("case_01", "spleen"): "absent"}),
        "case case_01, organ spleen is declared absent, but the store has voxels of it",
        [*AUDIT, *OTHER],
    ),
    Bad("audit over the index", nothing, "would overwrite the input", [*AUDIT, "--json", "{store}/index.json"]),
    Bad(
        "audit over an array",
        nothing,
        "would overwrite the input",
        [*AUDIT, "--json", "{image}"],
    ),
    Bad(
        "audit over other declarations",
        nothing,
        "would overwrite the input",
        [*AUDIT, *OTHER, "--json", "{cohort}/annotations.csv"],
    ),
    Bad("another cohort", other_files, "made from other files than those of", PREPARE),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_one_sentence(bad, cohort, tmp_path, capsys):
    store = tmp_path / "store"
    bad.spoil(cohort, store)
    before = tree(tmp_path)
    capsys.readouterr()
    image = array_file(store / CASES / "case_00", "image")
    assert main([part.format(cohort=cohort, store=store, image=image) for part in bad.command]) == 2
    printed, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert bad.message in errors[0]
    assert "Traceback" not in printed + err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("file", ["image", "labels"])
def test_evaluating_on_a_damaged_store_is_one_sentence(file, tmp_path, capsys):
    store = make_store(tmp_path / "store", dict.fromkeys(("train_0", "train_1", "test_0"), truth()))
    run = make_run(tmp_path / "run", store)
    damaged = store.array_path(run.cases("test")[0], file)
    damage_array(damaged)
    assert main(["evaluate", str(run.path)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{damaged}: damaged" in errors[0]
    assert not (run.path / "evaluation.json").exists()
