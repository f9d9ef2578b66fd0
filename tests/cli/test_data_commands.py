"""declare, simulate-missing, audit and prepare as a user meets them."""

import errno
import json
import os
import stat
import subprocess
import sys
import unicodedata

import pytest

from smile_fast.cli.main import main
from smile_fast.data.annotations import read_annotations
from smile_fast.data.store import Store
from smile_fast.supervision.states import State
from smile_runtime.volume.hounsfield import range_warning
from tests.cohorts import (
    ORGANS,
    annotate,
    describe,
    edit_label,
    label_map,
    make_cohort,
    other_image,
    tree,
    write_nifti,
)

CASES = ["case_00", "case_01", "case_02"]


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort")
    annotate(path)
    return path


@pytest.fixture
def undeclared(tmp_path):
    return make_cohort(tmp_path / "cohort", without={"case_01": ["pancreas"], "case_02": ["pancreas", "spleen"]})


SPELLINGS = ("Mu\u0308ller", "\u017cona", "case_02")  # the first as macOS writes it, the second beyond Latin-1


def respelled(folder):
    """A cohort whose names have accents, blanks and endings as three systems write them; organs and table differ."""
    make_cohort(folder, test=1)
    describe(folder, {"background": "0", "liver ": "1", "Ro\u0308hre": "2", "s\u0142ezina": 3.0}, 3, numTraining="3")
    for number, name in enumerate(SPELLINGS):
        (folder / "imagesTr" / f"case_{number:02}_0000.nii.gz").rename(folder / "imagesTr" / f"{name} _0000.NII.GZ")
        (folder / "labelsTr" / f"case_{number:02}.nii.gz").rename(folder / "labelsTr" / f" {name}.Nii.gz")
    (folder / "labelsTs" / "case_03.nii.gz").unlink()
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_of_any_spelling_work_in_every_command_on_any_terminal(tmp_path, encoding):
    cohort, store = respelled(tmp_path / "cohort"), tmp_path / "st\u00f3re"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    names, organs = ["M\u00fcller", "case_02", "\u017cona"], ["liver", "R\u00f6hre", "s\u0142ezina"]
    printed = ""
    for command in (
        ["declare", cohort, "--assume-missing"],
        ["simulate-missing", cohort, "--alpha", "0"],
        ["audit", cohort],
        ["prepare", cohort, store, "--workers", "1"],
        ["audit", store],
    ):
        arguments = [sys.executable, "-m", "smile_fast", *map(str, command)]
        done = subprocess.run(arguments, capture_output=True, env=environment, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        printed += done.stdout.decode(encoding)
    assert organs[2].encode(encoding, "backslashreplace").decode(encoding) in printed
    assert "note: 1 images of imagesTs have no label map in labelsTs and are left alone: case_03\n" in printed
    declared = read_annotations(cohort / "annotations.csv", names, organs)
    assert {state for case in declared.values() for state in case.values()} == {State.ANNOTATED}
    table = (cohort / "annotations.csv").read_text(encoding="utf-8")
    (cohort / "annotations.csv").write_text(unicodedata.normalize("NFD", table).replace(",", " , "), encoding="utf-8")
    assert main(["prepare", str(cohort), str(store), "--workers", "1"]) == 0
    opened = Store.open(store)
    assert (list(opened.cases), list(opened.organs)) == (names, organs)


def test_commands_work_where_folders_cannot_be_flushed(cohort, tmp_path, monkeypatch, capsys):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["simulate-missing", str(cohort), "--alpha", "0"]) == 0
    assert main(["prepare", str(cohort), str(tmp_path / "store"), "--workers", "1"]) == 0
    assert list(Store.open(tmp_path / "store").cases) == CASES


def states(path, cases=CASES):
    return read_annotations(path, cases, ORGANS)


@pytest.fixture
def terminal(monkeypatch):
    """Answers to the questions of a command on a terminal."""

    def answer(*answers):
        remaining = list(answers)
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True)

        def reply(question):
            questions.append(question)
            if not remaining:
                raise EOFError
            return remaining.pop(0)

        questions: list[str] = []
        monkeypatch.setattr("builtins.input", reply)
        return questions

    return answer


def test_declare_writes_a_draft_and_asks_for_a_human(undeclared, capsys):
    assert main(["declare", str(undeclared)]) == 2
    out, err = capsys.readouterr()
    assert "pancreas  annotated in 1; missing or absent? in 2: case_01, case_02" in out
    assert "3 (case, organ) pairs have no voxel and are undecided" in err
    assert not (undeclared / "annotations.csv").exists()
    draft = undeclared / "annotations.draft.csv"
    assert draft.read_text().count(",?\n") == 3
    # The human fills it in and renames it.
    draft.write_text(draft.read_text().replace("?", "absent"))
    assert main(["declare", str(undeclared)]) == 2  # what was filled in is not overwritten
    assert "already there; replace every '?' in it and rename it" in capsys.readouterr().err
    assert "?" not in draft.read_text()
    draft.rename(undeclared / "annotations.csv")
    assert states(undeclared / "annotations.csv")["case_02"]["spleen"] is State.ABSENT


@pytest.mark.parametrize(("flag", "state"), [("--assume-missing", State.MISSING), ("--assume-absent", State.ABSENT)])
def test_declare_takes_an_explicit_assumption(undeclared, capsys, flag, state):
    assert main(["declare", str(undeclared), flag]) == 0
    declared = states(undeclared / "annotations.csv")
    assert declared["case_02"] == {"liver": State.ANNOTATED, "pancreas": state, "spleen": state}
    assert declared["case_00"] == dict.fromkeys(ORGANS, State.ANNOTATED)
    assert f"6 annotated, 3 {state.value}" in capsys.readouterr().out
    assert main(["declare", str(undeclared), flag]) == 2
    assert "annotations.csv: already there; edit it" in capsys.readouterr().err
    assert main(["declare", str(undeclared), flag, "--force"]) == 0


def test_an_update_keeps_what_was_declared_and_drafts_the_rest(undeclared, capsys):
    file = undeclared / "annotations.csv"
    assert main(["declare", str(undeclared), "--assume-missing", "--set", "case_00:liver=missing"]) == 0
    before = states(file)
    rows = file.read_text().splitlines()
    file.write_text("\n".join(row for row in rows if not row.startswith("case_02,")) + "\n")  # a case that is new
    assert main(["declare", str(undeclared), "--assume-absent"]) == 2
    assert "pass --update to draft what it does not declare yet" in capsys.readouterr().err
    assert main(["declare", str(undeclared), "--update", "--assume-absent"]) == 0
    assert "annotated in 2, missing in 1" in capsys.readouterr().out  # the liver
    after = states(file)
    assert after.pop("case_02") == {"liver": State.ANNOTATED, "pancreas": State.ABSENT, "spleen": State.ABSENT}
    assert after == {case: declared for case, declared in before.items() if case != "case_02"}


def test_declare_sets_states_by_patterns(undeclared, capsys):
    rules = ["--set", "case_0[01]:liver=missing", "--set=case_01:liver=annotated", "--set=*_02:*=missing"]
    assert main(["declare", str(undeclared), *rules, "--assume-absent"]) == 0
    path = undeclared / "annotations.csv"
    assert states(path) == {
        "case_00": {"liver": State.MISSING, "pancreas": State.ANNOTATED, "spleen": State.ANNOTATED},
        "case_01": {"liver": State.ANNOTATED, "pancreas": State.ABSENT, "spleen": State.ANNOTATED},
        "case_02": dict.fromkeys(ORGANS, State.MISSING),
    }
    out = capsys.readouterr().out
    assert "set case_0[01]:liver=missing: 2 (case, organ) pairs" in out
    assert out.splitlines()[-1] == f"wrote {path}: 4 missing, 4 annotated, 1 absent"


def test_declare_drafts_what_no_rule_has_set(undeclared, capsys):
    assert main(["declare", str(undeclared), "--set", "case_02:*=missing"]) == 2
    draft = undeclared / "annotations.draft.csv"
    assert [line for line in draft.read_text().splitlines() if line.endswith("?")] == ["case_01,pancreas,?"]
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {draft}: a draft"


def test_declare_refuses_a_rule_that_matches_nothing(undeclared, capsys):
    before = tree(undeclared)
    assert main(["declare", str(undeclared), "--assume-missing", "--set", "site_b_*:liver=missing"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: --set: 'site_b_*:liver=missing' matches no case; write")
    assert (out, tree(undeclared)) == ("", before)  # before a label map is read


def test_declare_and_audit_say_what_seems_to_be_drawn_in_part(cohort, capsys):
    """Every other slice of the liver in one case: 3 of its 6 slices, 2 gaps between them."""

    def every_other_slice(labels):
        labels[:, :, 2::2] *= labels[:, :, 2::2] != 1

    edit_label(cohort, "case_01", every_other_slice)
    assert main(["audit", str(cohort)]) == 0
    (sentence,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("liver: ")]
    assert "no method sees a wrong label" not in sentence
    assert "In 1 of the 3 cases in which it should be drawn" in sentence
    assert "2 of the 5 slices between its first and its last do not show it (case_01)" in sentence
    assert main(["declare", str(cohort), "--force"]) == 0
    said = "note: liver is not in every slice between its first and its last in 1 cases (case_01)"
    assert said in capsys.readouterr().out
    assert main(["declare", str(cohort), "--force", "--set", "case_01:liver=missing"]) == 0
    assert "note: " not in capsys.readouterr().out
    assert main(["audit", str(cohort)]) == 0
    assert "Drawn in part in 1 of the 1 cases in which it is declared missing." in capsys.readouterr().out


def test_declare_needs_no_assumption_where_everything_is_drawn(cohort, tmp_path):
    (cohort / "annotations.csv").unlink()
    output = tmp_path / "elsewhere.csv"
    assert main(["declare", str(cohort), "--output", str(output)]) == 0
    assert states(output) == dict.fromkeys(CASES, dict.fromkeys(ORGANS, State.ANNOTATED))
    assert not (cohort / "annotations.csv").exists()


def test_declare_asks_on_a_terminal(undeclared, terminal):
    questions = terminal("what?", "m", "absent", "y")
    assert main(["declare", str(undeclared)]) == 0
    assert "pancreas, no voxel in 2 cases: [m]issing, [a]bsent, or Enter for '?' in a draft? " == questions[0]
    assert "spleen, no voxel in 1 cases" in questions[2]
    declared = states(undeclared / "annotations.csv")
    assert declared["case_02"] == {"liver": State.ANNOTATED, "pancreas": State.MISSING, "spleen": State.ABSENT}


def test_declare_writes_nothing_without_confirmation(undeclared, terminal, capsys):
    for answers in (["m", "a", "n"], ["m", "a"]):  # no, and the end of the input
        terminal(*answers)
        assert main(["declare", str(undeclared)]) == 2
        assert "annotations.csv: not confirmed, not written" in capsys.readouterr().err
    assert not list(undeclared.glob("*.csv"))
    terminal("m", "")  # an organ left open: a draft with what was said
    assert main(["declare", str(undeclared)]) == 2
    draft = (undeclared / "annotations.draft.csv").read_text()
    assert "case_01,pancreas,missing" in draft
    assert "case_02,spleen,?" in draft
    questions = terminal()
    assert main(["declare", str(undeclared), "--yes", "--force"]) == 2  # yes is no answer to "missing or absent?"
    assert main(["declare", str(undeclared), "--yes", "--assume-missing"]) == 0
    assert questions == []
    assert "annotations.draft.csv is no longer needed" in capsys.readouterr().out


def test_simulate_missing_hides_and_restores(tmp_path, capsys):
    path = make_cohort(tmp_path / "cohort", train=10, test=2)
    file = annotate(path, {("case_00", "spleen"): "missing"})
    before = tree(path)
    full = file.read_text()
    assert main(["simulate-missing", str(path), "--alpha", "0.7", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "liver: 7 of 10 annotations hidden" in out
    assert "spleen: 6 of 9 annotations hidden" in out
    hidden = file.read_text()
    assert hidden.count("hidden") == 7 + 7 + 6
    assert "case_10,liver,annotated" in hidden
    assert main(["simulate-missing", str(path), "--alpha", "0.7", "--seed", "3"]) == 0
    assert file.read_text() == hidden
    other = tmp_path / "alpha100.csv"
    assert main(["simulate-missing", str(path), "--alpha", "1", "--output", str(other)]) == 0
    assert "liver: 9 of 10 annotations hidden; one annotated case must remain" in capsys.readouterr().out
    assert file.read_text() == hidden
    assert main(["simulate-missing", str(path), "--alpha", "0"]) == 0
    assert file.read_text() == full
    assert tree(path) == before


def test_audit_of_a_dataset_and_of_its_store_agree(cohort, tmp_path, capsys):
    annotate(cohort, {("case_00", "liver"): "hidden", ("case_01", "liver"): "hidden", ("case_02", "spleen"): "missing"})
    dataset_json, store_json, store = tmp_path / "dataset.json", tmp_path / "store.json", tmp_path / "store"
    assert main(["audit", str(cohort), "--json", str(dataset_json)]) == 0
    out = capsys.readouterr().out
    assert (
        "liver: 67% of the annotations are missing (2 of 3 cases, 67% of the slices, 67% of the voxels); "
        "a background-for-missing training sees 2.0"
    ) in out
    assert main(["prepare", str(cohort), str(store), "--workers", "1"]) == 0
    assert main(["audit", str(store), "--json", str(store_json)]) == 0
    assert dataset_json.read_text() == store_json.read_text()
    liver = json.loads(store_json.read_text())["organs"][0]
    assert liver["baseline"]["fn"] == 2 * 8 * 10 * 6
    everything = annotate(cohort)
    assert main(["audit", str(store), "--annotations", str(everything), "--json", str(store_json)]) == 0
    assert json.loads(store_json.read_text())["organs"][0]["alpha"] == 0


def test_audit_takes_a_split(tmp_path, capsys):
    path = make_cohort(tmp_path / "cohort", train=2, test=1)
    annotate(path)
    for split, cases in (("train", 2), ("test", 1), ("all", 3)):
        assert main(["audit", str(path), "--split", split]) == 0
        assert f"{cases} cases, " in capsys.readouterr().out


def test_prepare_reports_and_skips(cohort, tmp_path, capsys):
    edit_label(cohort, "case_00", lambda labels: labels[..., :-1])
    edit_label(cohort, "case_01", lambda labels: label_map(without=["spleen"]))
    store = tmp_path / "store"
    assert main(["prepare", str(cohort), str(store), "--workers", "1", "--strict"]) == 2
    out, err = capsys.readouterr()
    assert "case case_00 has an image of 20x24x8 voxels" in out
    assert "error: " in err
    assert "the store is not finished, 1 of 3 cases are broken" in err
    assert main(["prepare", str(cohort), str(store), "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "case case_00 has an image of 20x24x8 voxels" in out
    assert err.splitlines()[-1] == (
        f"warning: {store}: 1 of 3 cases are broken and left out, see {store / 'quarantine.json'}"
    )
    assert "2 training and 0 held-out cases (0 converted, 2 unchanged, 1 quarantined), 3 organs" in out
    note = "note: spleen is declared annotated but has no voxel in 1 cases (case_01)"
    assert note in out
    assert main(["audit", str(store)]) == 0
    assert capsys.readouterr().out.count(note) == 1
    assert list(Store.open(store).cases) == ["case_01", "case_02"]


def test_prepare_doubts_images_without_air(tmp_path, capsys):
    """As smile-predict does, also of the cases that are kept."""
    path = make_cohort(tmp_path / "cohort", train=12)
    annotate(path)
    for number in range(10, 12):
        write_nifti(path / "imagesTr" / f"case_{number}_0000.nii.gz", other_image() + number)
    names = ", ".join(f"case_{number:02}" for number in range(8))
    for kept in (0, 12):
        assert main(["prepare", str(path), str(tmp_path / "store"), "--workers", "1"]) == 0
        out, err = capsys.readouterr()
        assert f"({12 - kept} converted, {kept} unchanged" in out
        (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert warning == f"warning: {names}, ... (2 more): {range_warning((-199, 100))}"


@pytest.mark.parametrize("state", ["hidden", "missing"])
def test_prepare_refuses_a_cohort_without_annotations(tmp_path, capsys, state):
    """In the training cases; the held-out one is drawn."""
    path = make_cohort(tmp_path / "cohort", train=2, test=1)
    if state == "missing":
        for case in CASES[:2]:
            edit_label(path, case, lambda labels: label_map(without=ORGANS))
    file = annotate(path, {(case, organ): state for case in CASES[:2] for organ in ORGANS})
    store = tmp_path / "store"
    assert main(["prepare", str(path), str(store), "--workers", "1"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error == (
        f"error: {store}: nothing is annotated, no training case shows a voxel of an organ that training may see; "
        "correct annotations.csv or the label maps, and run again"
    )
    assert not (store / "index.json").exists()
    edit_label(path, "case_00", lambda labels: label_map())
    file.write_text(file.read_text().replace("case_00,liver,hidden", "case_00,liver,annotated"))
    assert main(["prepare", str(path), str(store), "--workers", "1"]) == 0


def test_prepare_names_the_organs_that_are_annotated_nowhere(tmp_path, capsys):
    without = {case: ["spleen"] for case in CASES[:2]}
    path = make_cohort(tmp_path / "cohort", train=2, test=1, without=without)
    annotate(
        path, {(case, "pancreas"): "hidden" for case in CASES[:2]} | {(case, "spleen"): "missing" for case in CASES}
    )
    store = tmp_path / "store"
    for _ in range(2):  # kept cases, too
        assert main(["prepare", str(path), str(store), "--workers", "1"]) == 0
        (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no training case" in line]
        assert warning == (
            f"warning: {store}: no training case shows a voxel of pancreas, spleen that training may see, so it cannot "
            "be learned; annotate it in some of them"
        )


def test_prepare_names_the_organs_that_are_drawn_in_part_only(tmp_path, capsys):
    path = make_cohort(tmp_path / "cohort", train=2, test=1)
    annotate(path, {(case, "liver"): "missing" for case in CASES[:2]})
    store = tmp_path / "store"
    assert main(["prepare", str(path), str(store), "--workers", "1"]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no training case" in line]
    assert warning == (
        f"warning: {store}: liver is annotated in no training case, only drawn in part; declare it annotated where it "
        "is drawn as a whole"
    )


def test_help_needs_nothing_heavy():
    commands = ["declare", "simulate_missing", "audit", "prepare"]
    script = (
        "import argparse, importlib, sys\n"
        f"for name in {commands}:\n"
        "    module = importlib.import_module('smile_fast.cli.' + name)\n"
        "    parser = argparse.ArgumentParser()\n"
        "    module.add_arguments(parser)\n"
        "    assert module.HELP in module.HELP and parser.format_help()\n"
        "print(sorted({'numpy', 'torch', 'nibabel', 'blosc2'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
