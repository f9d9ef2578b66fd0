"""Several datasets become one: labels by name, states as they were declared, files as they were."""

import json

import nibabel as nib
import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.annotations import read_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.folder_lock import locked
from smile_fast.data.importing import case_files
from smile_fast.data.importing.sources import read_sources_table
from smile_fast.supervision import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import sha256
from tests.cohorts import BOXES, annotate, describe, edit_label, make_cohort, tree, write_nifti


def reseed(path, shift):
    """Other voxels than `make_cohort` writes: it always draws the same."""
    for file in path.glob("imagesT*/*.nii.gz"):
        image = nib.load(file)
        write_nifti(file, np.asarray(image.dataobj) + np.int16(shift), image.affine)


@pytest.fixture
def parts(tmp_path):
    """a: liver and pancreas, with a test case; b: spleen and liver in another order, without annotations.csv."""
    one = make_cohort(tmp_path / "a", train=2, test=1, organs=("liver", "pancreas"))
    annotate(one, {("case_01", "pancreas"): "missing", ("case_02", "liver"): "hidden"}, ("liver", "pancreas"))
    edit_label(one, "case_01", lambda labels: np.where(labels == 2, 0, labels).astype(np.uint8))
    two = make_cohort(tmp_path / "b", train=2, organs=("spleen", "liver"))
    reseed(two, 5)
    return one, two


def merge(*arguments):
    return main(["merge", *map(str, arguments), "--workers", "1"])


def opened(out):
    dataset = RawDataset.open(out)
    return dataset, read_annotations(out / "annotations.csv", dataset.names(), dataset.organs)


def labels_of(out, case, split="Tr"):
    return np.asarray(nib.load(out / f"labels{split}" / f"{case}.nii.gz").dataobj)


def test_organs_go_by_name_and_what_nobody_knows_is_missing(parts, tmp_path, capsys):
    before = [tree(part) for part in parts]
    out = tmp_path / "out"
    assert merge(*parts, out, "--all-annotated", "b") == 0
    dataset, states = opened(out)
    assert dataset.organs == ("liver", "pancreas", "spleen")
    assert dataset.names("train") == ["a_case_00", "a_case_01", "b_case_00", "b_case_01"]
    assert dataset.names("test") == ["case_02"]
    annotated, missing, hidden = State.ANNOTATED, State.MISSING, State.HIDDEN
    assert states == {
        "a_case_00": {"liver": annotated, "pancreas": annotated, "spleen": missing},
        "a_case_01": {"liver": annotated, "pancreas": missing, "spleen": missing},
        "b_case_00": {"liver": annotated, "pancreas": missing, "spleen": annotated},
        "b_case_01": {"liver": annotated, "pancreas": missing, "spleen": annotated},
        "case_02": {"liver": hidden, "pancreas": annotated, "spleen": missing},
    }
    drawn = labels_of(out, "b_case_00")
    assert (drawn[BOXES["liver"]] == 1).all()
    assert (drawn[BOXES["spleen"]] == 3).all()
    assert np.isin(drawn, (0, 1, 3)).all()
    assert [tree(part) for part in parts] == before
    printed = capsys.readouterr().out
    assert "4 training and 1 held-out cases (5 made, 0 kept from before), 3 organs" in printed
    assert "pancreas  annotated in 2, missing in 3" in printed


def test_files_that_stay_as_they_are_are_shared_or_copied(parts, tmp_path):
    # Humans go on drawing in label maps: those of OUT must not be those of a source.
    for link, kinds in (("hard", (True, False)), ("copy", (False, False)), ("symbolic", (True, False))):
        out = tmp_path / link
        assert merge(*parts, out, "--all-annotated", "b", "--link", link) == 0
        names = (("imagesTr", "case_00_0000", "a_case_00_0000"), ("labelsTr", "case_00", "a_case_00"))
        for (folder, old, new), shared in zip(names, kinds, strict=True):
            source, target = parts[0] / folder / f"{old}.nii.gz", out / folder / f"{new}.nii.gz"
            assert source.read_bytes() == target.read_bytes()
            assert source.samefile(target) == shared
            assert target.is_symlink() == (link == "symbolic" and shared)
        changed = out / "labelsTr" / "b_case_00.nii.gz"
        assert not changed.is_symlink()
        assert changed.stat().st_nlink == 1


def test_sources_say_where_each_case_comes_from(parts, tmp_path):
    out = tmp_path / "out"
    assert merge(*parts, out, "--all-annotated", "a") == 2  # it has annotations.csv, which says it
    assert merge(*parts, out, "--all-annotated", "*") == 0  # whoever has none
    assert opened(out)[1]["case_02"]["liver"] is State.HIDDEN
    found = read_sources_table(out / "sources.csv")
    assert list(found) == ["a_case_00", "a_case_01", "b_case_00", "b_case_01", "case_02"]
    row = found["b_case_01"]
    assert (row.dataset, row.original) == ("b", "case_01")
    assert row.image_sha256 == sha256(parts[1] / "imagesTr" / "case_01_0000.nii.gz")
    assert row.labels_sha256 == sha256(parts[1] / "labelsTr" / "case_01.nii.gz")


def test_a_dataset_without_declarations_is_refused(parts, tmp_path, capsys):
    assert merge(*parts, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{parts[1] / 'annotations.csv'}: there is no such file" in error
    assert "--all-annotated b" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_same_again_does_nothing_and_something_else_is_refused(parts, tmp_path, capsys):
    out = tmp_path / "out"
    assert merge(*parts, out, "--all-annotated", "b", "--link", "copy") == 0
    before = tree(out)
    assert merge(*parts, out, "--all-annotated", "b") == 0
    assert "nothing was done" in capsys.readouterr().out
    assert merge(*parts, out, "--all-annotated", "b", "--organs", "liver") == 2
    assert "not made of the same" in capsys.readouterr().err
    reseed(parts[0], 1)
    assert merge(*parts, out, "--all-annotated", "b") == 2
    assert tree(out) == before
    (out / "sources.csv").unlink()
    assert merge(*parts, out, "--all-annotated", "b") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_changed_declarations_are_another_cohort(parts, tmp_path, capsys):
    annotate(parts[1], organs=("spleen", "liver"))
    out = tmp_path / "out"
    assert merge(*parts, out) == 0
    annotate(parts[1], {("case_00", "spleen"): "missing"}, organs=("spleen", "liver"))
    assert merge(*parts, out) == 2
    assert "not made of the same" in capsys.readouterr().err


def test_a_table_joins_names_and_drops_labels(parts, tmp_path):
    describe(parts[1], {"background": 0, "Milz": 1, "Leber": 2}, 2)
    annotate(parts[1], {("case_00", "Milz"): "missing"}, organs=("Milz", "Leber"))
    table = tmp_path / "names.csv"
    table.write_text("source;name;organ\nb;Leber;liver\nb;Milz;\na;pancreas;void\n")
    out = tmp_path / "out"
    assert merge(*parts, out, "--map", table) == 0
    dataset, states = opened(out)
    assert dataset.organs == ("liver",)
    assert {row["liver"] for case, row in states.items() if case.startswith("b_")} == {State.ANNOTATED}
    assert np.unique(labels_of(out, "b_case_00")).tolist() == [0, 1]
    assert np.unique(labels_of(out, "a_case_00")).tolist() == [0, 1, 255]


def test_what_is_hidden_does_not_become_void(parts, tmp_path, capsys):
    table = tmp_path / "names.csv"
    table.write_text("name,organ\nliver,void\n")
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b", "--map", f"a={table}") == 2
    assert "annotations.csv: 'liver' is hidden in case_02 and would become void" in capsys.readouterr().err
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b", "--map", f"b={table}") == 0


def test_a_union_is_annotated_where_all_of_it_is(tmp_path):
    one = make_cohort(tmp_path / "a", train=3, organs=("liver", "spleen"))
    describe(one, {"background": 0, "left lung": 1, "right lung": 2}, 3)
    states = {("case_01", "left lung"): "missing", ("case_02", "left lung"): "absent"}
    annotate(one, states, ("left lung", "right lung"))
    edit_label(one, "case_01", lambda labels: np.where(labels == 1, 0, labels).astype(np.uint8))
    edit_label(one, "case_02", lambda labels: np.where(labels == 1, 0, labels).astype(np.uint8))
    two = make_cohort(tmp_path / "b", train=1)
    reseed(two, 7)
    annotate(two)
    table = tmp_path / "lungs.csv"
    table.write_text("value,organ\n1,lungs\n2,lungs\n")
    assert merge(one, two, tmp_path / "out", "--map", f"a={table}") == 0
    _, states = opened(tmp_path / "out")
    assert [states[case]["lungs"] for case in ("a_case_00", "case_01", "case_02")] == [
        State.ANNOTATED,
        State.MISSING,
        State.ANNOTATED,
    ]
    assert np.unique(labels_of(tmp_path / "out", "a_case_00")).tolist() == [0, 1]


def test_ignored_voxels_are_void(parts, tmp_path):
    describe(parts[1], {"background": 0, "spleen": 1, "liver": 2, "ignore": 3}, 2)
    edit_label(parts[1], "case_00", lambda labels: np.where(labels == 0, 3, labels).astype(np.uint8))
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 0
    assert np.unique(labels_of(tmp_path / "out", "b_case_00")).tolist() == [1, 3, 255]


def test_the_same_scan_under_two_names_is_reported_and_can_be_left_out(parts, tmp_path, capsys):
    image = nib.load(parts[0] / "imagesTs" / "case_02_0000.nii.gz")
    turned = image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))  # another file, the same voxels
    nib.save(turned, parts[1] / "imagesTr" / "case_01_0000.nii.gz")
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 0
    error = capsys.readouterr().err
    assert "warning: the same scan is in training and among the held-out cases: b_case_01 (b/case_01) and" in error
    for name in ("b_case_01", "b/case_01"):
        out = tmp_path / name.replace("/", "-")
        assert merge(*parts, out, "--all-annotated", "b", "--without", name) == 0
        assert "the same scan" not in capsys.readouterr().err
        assert opened(out)[0].names("train") == ["a_case_00", "a_case_01", "b_case_00"]


def test_labels_of_one_scan_under_two_names_are_not_joined_and_that_is_said(parts, tmp_path, capsys):
    image = (parts[0] / "imagesTr" / "case_00_0000.nii.gz").read_bytes()
    (parts[1] / "imagesTr" / "case_01_0000.nii.gz").write_bytes(image)
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 0
    error = capsys.readouterr().err
    assert "under several names: a_case_00 (a/case_00) and b_case_01 (b/case_01)" in error
    assert "is not joined with what was drawn in the other: leave all but one out with --without CASE" in error


def test_held_out_scans_without_labels_are_left_out_and_said(parts, tmp_path, capsys):
    image = parts[0] / "imagesTs" / "case_02_0000.nii.gz"
    image.with_name("case_07_0000.nii.gz").write_bytes(image.read_bytes())
    for command, sources, out in (("merge", parts, tmp_path / "out"), ("import", parts[:1], tmp_path / "in")):
        options = ["--all-annotated", "b"] if command == "merge" else []
        assert main([command, *map(str, (*sources, out)), *options, "--workers", "1"]) == 0
        said = capsys.readouterr().out
        assert "note: 1 images of imagesTs of a have no label map and are left out: case_07" in said
        assert "case_07" not in RawDataset.open(out).names()


def test_a_case_that_is_half_made_again_is_not_taken_for_the_one_before(parts, tmp_path, monkeypatch):
    edit_label(parts[1], "case_01", lambda labels: labels + 100)
    options = ("--all-annotated", "b", "--link", "copy")
    assert merge(*parts, tmp_path / "out", *options) == 2  # the others are finished
    image = parts[0] / "imagesTr" / "case_00_0000.nii.gz"
    first = image.read_bytes()
    image.write_bytes(first[:4] + b"\7" + first[5:])  # the time in the gzip header: as many bytes
    with monkeypatch.context() as patch:
        patch.setattr(case_files, "write_record", raising)
        assert merge(*parts, tmp_path / "out", *options) == 2
    image.write_bytes(first)
    edit_label(parts[1], "case_01", lambda labels: labels - 100)
    assert merge(*parts, tmp_path / "out", *options) == 0
    assert (tmp_path / "out" / "imagesTr" / "a_case_00_0000.nii.gz").read_bytes() == first


def raising(path, record):
    raise InputError(f"{path}: cannot be written (no space left on device); free some")


def test_a_second_merge_into_one_folder_is_told_so(parts, tmp_path, capsys):
    work = tmp_path / ".out.unfinished"
    work.mkdir()
    with locked(work):
        assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 2
        assert "another smile-fast process is at work there now" in capsys.readouterr().err
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 0


def test_processes_make_the_same(parts, tmp_path):
    assert merge(*parts, tmp_path / "one", "--all-annotated", "b") == 0
    assert main(["merge", *map(str, parts), str(tmp_path / "two"), "--all-annotated", "b", "--workers", "2"]) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_two_spellings_of_an_organ_are_refused(parts, tmp_path, capsys):
    describe(parts[1], {"background": 0, "spleen": 1, "Liver": 2}, 2)
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 2
    assert "'liver' and 'Liver' look like one organ" in capsys.readouterr().err


def test_a_label_map_on_another_grid_or_with_a_strange_value_is_named(parts, tmp_path, capsys):
    edit_label(parts[1], "case_01", lambda labels: labels + 100)
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 2
    error = capsys.readouterr().err
    assert f"{parts[1] / 'labelsTr' / 'case_01.nii.gz'}: case case_01 has the label value 100, 101, 102" in error
    assert not (tmp_path / "out").exists()
    edit_label(parts[1], "case_01", lambda labels: labels[:, :, 1:] - 100)
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 2
    assert "case case_01 has an image of 20x24x8 voxels and a label map of 20x24x7" in capsys.readouterr().err
    edit_label(parts[1], "case_01", lambda labels: np.zeros((20, 24, 8), np.uint8))
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 0
    assert "1 made, 4 kept from before" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_what_an_unfinished_other_merge_left_is_swept(parts, tmp_path):
    edit_label(parts[1], "case_01", lambda labels: labels + 100)
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b") == 2
    assert (tmp_path / ".out.unfinished").is_dir()
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b", "--without", "b/*", "--organs", "pancreas") == 0
    assert {path.name for path in (tmp_path / "out" / "labelsTr").iterdir()} == {"a_case_00.nii.gz", "a_case_01.nii.gz"}


def test_places_that_cannot_be(parts, tmp_path, capsys):
    a, b = parts
    for arguments, words in (
        ((a, b, a), "is, lies in or holds"),
        ((a, b, a / "out"), "is, lies in or holds"),
        ((a, b, tmp_path), "is, lies in or holds"),
        ((a, a, tmp_path / "out"), "was given 2 times"),
        ((a, tmp_path / "out"), "two datasets or more"),
        ((a, tmp_path / "none", tmp_path / "out"), "none"),
    ):
        assert merge(*arguments, "--all-annotated", "b") == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert merge(a, b, full, "--all-annotated", "b") == 2
    assert "already there" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "full"]


def test_datasets_of_one_name_are_told_apart_by_their_folders(tmp_path):
    parts = [make_cohort(tmp_path / site / "cohort", train=1) for site in ("north", "south")]
    reseed(parts[1], 3)
    for part in parts:
        annotate(part)
    assert merge(*parts, tmp_path / "out") == 0
    assert opened(tmp_path / "out")[0].names() == ["north_cohort_case_00", "south_cohort_case_00"]


def test_a_disk_that_is_too_small_is_refused_before_the_work(parts, tmp_path, capsys, monkeypatch):
    from smile_fast.data.importing import build

    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert merge(*parts, tmp_path / "out", "--all-annotated", "b", "--link", "copy") == 2
    assert "GB free, and the dataset may need" in capsys.readouterr().err


def test_too_many_organs(tmp_path, capsys):
    parts = []
    for name, first in (("a", 0), ("b", 100)):
        organs = tuple(f"organ {number}" for number in range(first, first + 100))
        part = make_cohort(tmp_path / name, train=1)
        describe(part, {"background": 0} | {organ: value for value, organ in enumerate(organs, 1)}, 1)
        parts.append(part)
    assert merge(*parts, tmp_path / "out", "--all-annotated", "*") == 2
    assert "200 organs were found; name 1 to 126" in capsys.readouterr().err
    assert merge(*parts, tmp_path / "out", "--all-annotated", "*", "--organs", "organ 1,organ 150") == 0
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]["organ 150"] == 2
