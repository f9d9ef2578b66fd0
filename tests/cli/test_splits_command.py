"""`smile-fast train --splits`: a file says what is trained on, by patient."""

import pytest

from smile_fast.cli.main import main
from smile_fast.training.run import Run
from tests.trainings import tiny_store

TINY = "--backbone resnet18 --width 8 --crop-size 32 --batch-size 2 --epochs 0.1".split()


@pytest.fixture
def store(tmp_path, one_thread):
    return tiny_store(tmp_path / "store")


def train(store, run, *options):
    return main(["train", str(store.path), str(run), *map(str, options)])


def table(path, store, split_of, patient_of=lambda case: case):
    rows = [f"{case},{patient_of(case)},{split_of(case)}" for case in store.cases]
    path.write_text("\n".join(["case,patient,split", *rows]) + "\n")
    return path


def test_the_run_has_the_parts_of_the_file(store, tmp_path, capsys):
    training = [case for case, info in store.cases.items() if info.split == "train"]
    held = [case for case, info in store.cases.items() if info.split == "test"]
    splits = {case: "test" for case in held} | {case: "train" for case in training} | {training[0]: "validation"}
    file = table(tmp_path / "splits.csv", store, splits.__getitem__)
    file.write_text(file.read_text() + "stranger,,train\n")
    assert train(store, tmp_path / "run", "--splits", file, *TINY) == 0
    assert "note: " in (error := capsys.readouterr().err)
    assert "stranger" in error
    run = Run.open(tmp_path / "run")
    assert run.cases("validation") == [training[0]]
    assert run.cases("train") == training[1:]
    assert run.cases("test") == held
    assert train(store, tmp_path / "run", "--splits", file, "--resume") == 2
    assert "leave --weights, --annotations, --splits and --fill out" in capsys.readouterr().err


def test_a_patient_in_two_parts_leaves_no_run(store, tmp_path, capsys):
    first = next(case for case, info in store.cases.items() if info.split == "train")

    def split_of(case):
        return "validation" if case == first else store.cases[case].split

    file = table(tmp_path / "splits.csv", store, split_of, patient_of=lambda case: "P")
    assert train(store, tmp_path / "run", "--splits", file, *TINY) == 2
    assert f"error: {file}: patient P is in two parts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(store, tmp_path / "run", "--splits", tmp_path / "none.csv", *TINY) == 2
    assert "there is no such file" in capsys.readouterr().err
