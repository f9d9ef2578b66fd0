"""What `smile-fast import` refuses, warns of, or leaves out: tables, names, broken files, sources that change."""

import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from smile_fast.cli.main import main
from smile_fast.data.importing import case_files
from smile_fast.data.importing.sources import read_sources_table
from smile_runtime.io.files import sha256
from tests.cohorts import (
    SHAPE,
    annotate,
    make_cohort,
    other_image,
    write_nifti,
)
from tests.data.importing.layouts import labels_of, mask, opened, run


def test_what_is_hidden_does_not_become_void(tmp_path, capsys):
    source = make_cohort(tmp_path / "source", train=2)
    annotate(source, {("case_01", "spleen"): "hidden"})
    table = tmp_path / "t.csv"
    for text in ("name,organ\nspleen,void\n", "value,organ\n1,liver\n2,pancreas\n3,void\n"):
        table.write_text(text)
        assert run(source, tmp_path / "out", "--map", table) == 2
        assert "annotations.csv: 'spleen' is hidden in case_01 and would become void" in capsys.readouterr().err
    table.write_text("name,organ\nspleen,\n")  # no organ any more, and background as it is to training
    assert run(source, tmp_path / "dropped", "--map", table) == 0
    assert np.unique(labels_of(tmp_path / "dropped", "case_01")).tolist() == [0, 1, 2]
    table.write_text("name,organ\npancreas,void\n")
    assert run(source, tmp_path / "out", "--map", table) == 0


def test_folders_whose_names_are_strange(source, tmp_path, capsys):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9s")
    shutil.copytree(source, folder)
    assert run(folder, tmp_path / "out") == 0
    assert {row.dataset for row in read_sources_table(tmp_path / "out" / "sources.csv").values()} == {"d\\xe9s"}
    capsys.readouterr()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cohort, long = make_cohort(tmp_path / "cohort", train=1), tmp_path / ("x" * 300)
    for command in (
        ("import", tmp_path / "loop", tmp_path / "o"),
        ("import", long, tmp_path / "o"),
        ("import", source, long),
        ("import", source, tmp_path / "loop"),
        ("merge", cohort, long, tmp_path / "o", "--all-annotated", "*"),
        ("merge", cohort, tmp_path / "loop", tmp_path / "o", "--all-annotated", "*"),
        ("merge", cohort, source, tmp_path / "o", "--map", f"{'y' * 300}={long}"),
    ):
        assert main([*map(str, command)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("value,organ\n0,liver\n", "the value 0 is background and no organ"),
        ("value,organ\n256,liver\n", "'256' is no label value"),
        ("value,organ\n-1,liver\n", "'-1' is no label value"),
        ("value,organ\n00000000099999,liver\n", "'00000000099999' is no label value"),
        (f"value,organ\n{'9' * 5000},liver\n", "is no label value"),
        ("value,organ\n1,liver\n01,spleen\n", "line 3: label '1' stands on line 2 already"),
        ("value,organ\n1,liver\n1,spleen\n", "line 3: label '1' stands on line 2 already"),
        ("value,organ\n", "has no row for source"),
        ("source,value,organ\nother,1,liver\n", "has no row for source, its sources are other"),
        ("label,organ\n1,liver\n", "line 1: the header is 'label,organ'; write 'name,organ' or 'value,organ'"),
        ("value,organ\n1,liver,\n", "line 2: a row of 3 fields"),
        ("value,organ\n1,liver\n2,Liver\n3,\n", "look like one organ under two names"),
    ],
)
def test_tables_that_cannot_be(tmp_path, capsys, text, words):
    source = make_cohort(tmp_path / "source", train=1)
    (tmp_path / "t.csv").write_text(text)
    assert run(source, tmp_path / "out", "--map", tmp_path / "t.csv") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_one_sentence(source, tmp_path, capsys):
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in (
        ((empty, out), "holds no scan that is named like"),
        ((tmp_path / "none", out), "there is no such folder"),
        ((source, out, "--image", "mr"), "holds no scan that is named like '{case}/mr'"),
        ((source, out, "--masks", "nowhere"), "holds no masks or label maps"),
        ((source, out, "--masks", "a", "--labels", "b"), "give one of the options"),
        ((source, out, "--image", "../{case}/ct"), "leads out of SOURCE"),
        ((source, out, "--organs", "liver,,"), "has an empty name"),
        ((source, out, "--without", "s99"), "matches no case"),
        ((source, out, "--without", "*"), "no training case is left"),
        ((source, source / "out"), "is, lies in or holds"),
        ((source, out, "--all-annotated"), "a mask that is there says"),
        ((source, out, "--map", tmp_path / "none.csv"), "there is no such file"),
    ):
        assert run(*arguments) == 2, words
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "source"]


def test_names_that_cannot_be(source, tmp_path, capsys):
    background = source / "s01" / "segmentations" / "background.nii.gz"
    write_nifti(background, np.zeros(SHAPE, np.uint8))
    assert run(source, tmp_path / "out") == 2
    assert "a mask is called background" in capsys.readouterr().err
    background.rename(background.with_name("line\nbreak.nii.gz"))
    assert run(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "not a usable name" in error
    assert error.count("\n") == 1
    (source / "s01" / "segmentations" / "line\nbreak.nii.gz").unlink()
    (source / "s03" / "segmentations").mkdir(parents=True)
    write_nifti(source / "s03" / "segmentations" / "liver.nii.gz", mask("liver"))
    assert run(source, tmp_path / "out") == 2
    assert "masks without a scan in s03" in capsys.readouterr().err


def test_broken_files_are_named_and_the_rest_is_kept(source, tmp_path, capsys):
    write_nifti(source / "s01" / "segmentations" / "liver.nii.gz", np.zeros((*SHAPE, 2), np.uint8))
    assert run(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "liver.nii.gz" in error
    assert "1 finished cases are kept" in error
    (source / "s02 ü" / "ct.nii.gz").write_bytes(b"\x1f\x8b nothing")
    assert run(source, tmp_path / "out") == 2
    assert "1 more cases cannot be used: s02 ü" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(source, tmp_path / "out", "--without", "s01") == 2
    write_nifti(source / "s02 ü" / "ct.nii.gz", other_image())
    assert run(source, tmp_path / "out", "--without", "s01") == 0
    assert opened(tmp_path / "out")[0].names() == ["s02 ü"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_header_without_directions_is_warned_of_once_a_case(source, tmp_path, capsys):
    for case in ("s01", "s02 ü"):
        file = source / case / "ct.nii.gz"
        image = nib.load(file)
        voxels = np.asfortranarray(image.dataobj).astype("<i2").tobytes(order="F")
        header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {' '.join(map(str, SHAPE))}\nencoding: raw\n"
        file.with_name("ct.nrrd").write_bytes(f"{header}endian: little\n\n".encode() + voxels)
        file.unlink()
        for own in (source / case / "segmentations").iterdir():
            nib.save(nib.Nifti1Image(np.asarray(nib.load(own).dataobj), np.diag([-1.0, -1, 1, 1])), own)
    assert run(source, tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert error.count("warning: s01, s02 ü: the header does not say how the volume lies (no space") == 1
    assert error.count("warning") == 1


def test_what_is_recorded_is_what_was_read(source, tmp_path, monkeypatch):
    shutil.rmtree(source / "s02 ü")
    image = source / "s01" / "ct.nii"
    write_nifti(image, other_image())
    (source / "s01" / "ct.nii.gz").unlink()
    mask_file = source / "s01" / "segmentations" / "liver.nii.gz"
    for name, file in (("read_scan", image), ("read_drawn", mask_file)):
        real = getattr(case_files, name)

        def changing(path, digest, real=real, file=file):
            if path == file:
                write_nifti(file, np.asarray(nib.load(file).dataobj).copy()[::-1])
            return real(path, digest)

        monkeypatch.setattr(case_files, name, changing)
    assert run(source, tmp_path / "out", "--order", "liver") == 0
    row = read_sources_table(tmp_path / "out" / "sources.csv")["s01"]
    assert row.image_sha256 == sha256(image)
    np.testing.assert_array_equal(
        nib.load(tmp_path / "out" / "imagesTr" / "s01_0000.nii.gz").dataobj, other_image()[::-1]
    )
    monkeypatch.undo()
    assert run(source, tmp_path / "again", "--order", "liver") == 0
    assert read_sources_table(tmp_path / "again" / "sources.csv")["s01"] == row


@pytest.mark.parametrize("link", ["hard", "copy", "symbolic"])
def test_a_scan_that_changes_before_it_is_placed_is_refused(source, tmp_path, monkeypatch, capsys, link):
    image = source / "s01" / "ct.nii.gz"
    real = case_files.place_file

    def changing(path, target, how):
        if path == image:
            write_nifti(image, other_image()[::-1])
        real(path, target, how)

    monkeypatch.setattr(case_files, "place_file", changing)
    assert run(source, tmp_path / "out", "--link", link) == 2
    assert f"{image}: changed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_nrrd_that_changes_while_it_is_read_is_refused(source, tmp_path, monkeypatch, capsys):
    image = source / "s01" / "ct.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(source / "s01" / "ct.nii.gz")), str(image))
    (source / "s01" / "ct.nii.gz").unlink()
    real = sitk.GetArrayViewFromImage

    def changing(read):
        with open(image, "ab") as file:
            file.write(b"more")
        return real(read)

    monkeypatch.setattr(sitk, "GetArrayViewFromImage", changing)
    assert run(source, tmp_path / "out") == 2
    assert f"{image}: changed while it was read" in capsys.readouterr().err
