"""Splits from a file: by patient, and said where they cannot be."""

import json

import pytest

from smile_fast.data.splits import SplitsFile, drawn_fold
from smile_runtime.errors import InputError

CASES = {"a1": "train", "a2": "train", "b1": "train", "c1": "train", "t1": "test"}


def written(path, text):
    path.write_text(text)
    return path


def split(tmp_path, text, folds=0, fold=0, cases=CASES, name="splits.csv"):
    return SplitsFile.read(written(tmp_path / name, text)).split(cases, folds, fold)


def test_a_table_says_all(tmp_path):
    text = "case,patient,split\na1,A,train\na2,A,train\nb1,,validation\nc1,C,test\n"
    assert split(tmp_path, text) == {"train": ["a1", "a2"], "validation": ["b1"], "test": ["c1", "t1"]}


def test_columns_may_stand_in_any_order_and_patients_be_left_out(tmp_path):
    text = "split;case\ntrain;a1\ntrain;a2\ntrain;b1\nvalidation;c1\n"
    assert split(tmp_path, text) == {"train": ["a1", "a2", "b1"], "validation": ["c1"], "test": ["t1"]}


def test_a_patient_in_two_parts_is_refused_by_name(tmp_path):
    text = "case,patient,split\na1,A,train\na2,A,validation\nb1,B,train\nc1,C,train\n"
    with pytest.raises(InputError, match="patient A is in two parts, with a1 in train and a2 in validation"):
        split(tmp_path, text)


def test_a_patient_in_training_and_held_out_is_refused(tmp_path):
    text = "case,patient\na1,A\na2,A\nb1,B\nc1,C\nt1,C\n"
    with pytest.raises(InputError, match="patient C is in two parts, with c1 in train and t1 in test"):
        split(tmp_path, text)


def test_drawn_folds_keep_patients_together(tmp_path):
    text = "case,patient\na1,A\na2,A\nb1,B\nc1,C\n"
    folds = [split(tmp_path, text, 3, fold) for fold in range(3)]
    assert sorted(case for found in folds for case in found["validation"]) == ["a1", "a2", "b1", "c1"]
    assert {tuple(found["validation"]) for found in folds} == {("a1", "a2"), ("b1",), ("c1",)}
    assert all(found["test"] == ["t1"] for found in folds)
    with pytest.raises(InputError, match="4 folds need at least as many patients in training, there are 3"):
        split(tmp_path, text, 4)


def test_without_patients_the_fold_is_the_one_that_always_was(tmp_path):
    names = [f"case_{number:02}" for number in range(10)]
    # As it has been drawn since the first version: runs of today are compared with runs of then.
    assert drawn_fold(names, 5, 0, {}) == ["case_04", "case_05"]


def test_nnunets_list(tmp_path):
    folds = [{"train": ["a1", "a2"], "val": ["b1", "c1"]}, {"train": ["b1", "c1"], "val": ["a1", "a2"]}]
    text = json.dumps(folds)
    found = split(tmp_path, text, 2, 1, name="splits_final.json")
    assert found == {"train": ["b1", "c1"], "validation": ["a1", "a2"], "test": ["t1"]}
    with pytest.raises(InputError, match=r"--folds: .* holds 2 of them; say --folds 2"):
        split(tmp_path, text, name="splits_final.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no list of names"),
        ("[1, 2]", "no list of names"),
        ('[{"train": ["a1"], "val": [1]}]', "no list of names"),
        ('[{"train": ["a1"], "val": ["a1"]}]', "in train and in val"),
        ('[{"train": ["a1"], "val": ["b1"]}]', "holds 1 folds"),
        ("[[[", "no list of folds"),
    ],
)
def test_lists_that_are_none(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        split(tmp_path, text, name="splits.json")


@pytest.mark.parametrize(
    ("text", "folds", "words"),
    [
        ("case,patient,split\na1,A,train\n", 0, "does not name 3 training cases of the store"),
        ("case,patient\na1,A\na2,A\nb1,B\nc11,C\n", 0, r"does not name 1 training cases of the store \(c1\); add them"),
        ("case,patient\na1,A\nb1,B\nc1,C\n", 2, r"does not name 1 training cases of the store \(a2\); add them"),
        ("case,split\na1,train\na1,test\n", 0, "line 3: case 'a1' stands on line 2 already"),
        ("case,split\na1,val\n", 0, "write one of train, validation, test"),
        ("case,part\na1,val\n", 0, "write 'case,patient,split' or"),
        ("case,split\n", 0, "names no case"),
        ("case,split\na1,test\na2,test\nb1,test\nc1,test\n", 0, "leaves no case to train on"),
        ("case,split\na1,train\na2,train\nb1,train\nc1,train\nt1,train\n", 0, "which the dataset holds out"),
        ("case,split\na1,train\na2,train\nb1,train\nc1,validation\n", 2, "leave --folds out"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, folds, words):
    with pytest.raises(InputError, match=words) as error:
        split(tmp_path, text, folds)
    assert "\n" not in str(error.value)


def test_names_that_the_store_does_not_have_are_listed(tmp_path):
    file = SplitsFile.read(written(tmp_path / "s.csv", "case,patient\na1,A\nx9,A\n"))
    assert file.strangers(CASES) == ["x9"]
