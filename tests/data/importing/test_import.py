"""Cohorts in other layouts: a folder a case, a mask an organ, label maps with gaps and regions."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from smile_fast.cli.main import main
from smile_fast.data.annotations import read_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.importing import case_files
from smile_fast.data.importing.sources import read_sources_table
from smile_fast.supervision import State
from smile_runtime.io.files import sha256
from tests.cohorts import (
    AFFINE,
    BOXES,
    ORGANS,
    SHAPE,
    annotate,
    describe,
    label_map,
    make_cohort,
    other_image,
    tree,
    write_nifti,
)


def mask(organ, value=1):
    data = np.zeros(SHAPE, np.uint8)
    data[BOXES[organ]] = value
    return data


def write_case(source, case, organs=ORGANS, image="ct.nii.gz", folder="segmentations"):
    path = source / case
    (path / folder).mkdir(parents=True)
    write_nifti(path / image, (other_image() + len(case) + sum(map(ord, case))).astype(np.int16))
    for organ in organs:
        write_nifti(path / folder / f"{organ}.nii.gz", mask(organ))


@pytest.fixture
def source(tmp_path):
    """TotalSegmentator's layout; the pancreas of the second case was not drawn."""
    path = tmp_path / "source"
    write_case(path, "s01")
    write_case(path, "s02 ü", ("liver", "spleen"))
    return path


def run(*arguments):
    return main(["import", *map(str, arguments), "--workers", "1"])


def opened(out):
    dataset = RawDataset.open(out)
    return dataset, read_annotations(out / "annotations.csv", dataset.names(), dataset.organs)


def labels_of(out, case):
    return np.asarray(nib.load(out / "labelsTr" / f"{case}.nii.gz").dataobj)


def test_masks_become_label_maps_and_a_missing_file_a_missing_annotation(source, tmp_path, capsys):
    before = tree(source)
    assert run(source, tmp_path / "out") == 0
    dataset, states = opened(tmp_path / "out")
    assert dataset.organs == ORGANS
    assert dataset.names() == ["s01", "s02 ü"]
    assert set(states["s01"].values()) == {State.ANNOTATED}
    assert [states["s02 ü"][organ] for organ in ORGANS] == [State.ANNOTATED, State.MISSING, State.ANNOTATED]
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "s01"), label_map())
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "s02 ü"), label_map(["pancreas"]))
    assert (tmp_path / "out" / "imagesTr" / "s01_0000.nii.gz").samefile(source / "s01" / "ct.nii.gz")
    assert tree(source) == before
    assert "pancreas  annotated in 1, missing in 1" in capsys.readouterr().out


def test_an_empty_mask_is_an_annotation_without_a_voxel(source, tmp_path, capsys):
    write_nifti(source / "s02 ü" / "segmentations" / "pancreas.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run(source, tmp_path / "out") == 0
    assert opened(tmp_path / "out")[1]["s02 ü"]["pancreas"] is State.ANNOTATED
    printed = capsys.readouterr().out
    assert "note: pancreas is declared annotated but has no voxel in 1 cases (s02 ü)" in printed


def test_a_mask_has_any_one_value(source, tmp_path, capsys):
    write_nifti(source / "s01" / "segmentations" / "liver.nii.gz", mask("liver", 255))
    write_nifti(source / "s01" / "segmentations" / "spleen.nii.gz", mask("spleen").astype(np.float64))
    assert run(source, tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "s01"), label_map())
    write_nifti(source / "s01" / "segmentations" / "liver.nii.gz", label_map())
    assert run(source, tmp_path / "other") == 2
    assert "case s01 has the values 1, 2, 3 in what should be a mask of one organ" in capsys.readouterr().err


def test_overlaps_are_decided_by_the_order_or_refused(source, tmp_path, capsys):
    both = mask("liver")
    both[BOXES["pancreas"]] = 1
    write_nifti(source / "s01" / "segmentations" / "liver.nii.gz", both)
    assert run(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    voxels = int(mask("pancreas").sum())
    assert f"case s01 has {voxels} voxels of both liver and pancreas" in error
    assert "--order" in error
    for order, winner in (("pancreas,liver", 2), ("liver,pancreas", 1), ("liver", 1), ("pancreas", 2)):
        out = tmp_path / order
        assert run(source, out, "--order", order) == 0
        assert (labels_of(out, "s01")[BOXES["pancreas"]] == winner).all()
        assert opened(out)[0].organs == ORGANS
    assert run(source, tmp_path / "none", "--order", "heart") == 2
    assert "--order: there is no organ heart" in capsys.readouterr().err


def test_masks_in_another_order_of_axes_are_turned_and_others_refused(source, tmp_path, capsys):
    turned = nib.Nifti1Image(mask("liver"), AFFINE).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, source / "s01" / "segmentations" / "liver.nii.gz")
    assert run(source, tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "s01"), label_map())
    write_nifti(source / "s01" / "segmentations" / "liver.nii.gz", mask("liver"), AFFINE + np.eye(4)[:, [3, 0, 1, 2]])
    assert run(source, tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "case s01 has a label map that lies" in error
    assert not (tmp_path / "other").exists()


def test_organs_are_chosen_renamed_joined_and_dropped(source, tmp_path, capsys):
    table = tmp_path / "names.csv"
    table.write_text("name,organ\nliver,Leber\npancreas,Bauch\nspleen,Bauch\n")
    assert run(source, tmp_path / "out", "--map", table) == 0
    dataset, states = opened(tmp_path / "out")
    assert dataset.organs == ("Leber", "Bauch")
    assert states["s02 ü"] == {"Leber": State.ANNOTATED, "Bauch": State.MISSING}  # half of it was not drawn
    assert run(source, tmp_path / "few", "--organs", "spleen,liver") == 0
    assert opened(tmp_path / "few")[0].organs == ("spleen", "liver")
    assert np.unique(labels_of(tmp_path / "few", "s01")).tolist() == [0, 1, 2]
    table.write_text("name,organ\nliver,\npancreas,void\n")
    assert run(source, tmp_path / "void", "--map", table) == 0
    assert np.unique(labels_of(tmp_path / "void", "s01")).tolist() == [0, 1, 255]
    table.write_text("name,organ\nlivver,liver\n")
    assert run(source, tmp_path / "wrong", "--map", table) == 2
    assert "the dataset has no label livver" in capsys.readouterr().err
    table.write_text("value,organ\n1,liver\n")
    assert run(source, tmp_path / "wrong", "--map", table) == 2
    assert "masks have names and no values" in capsys.readouterr().err
    assert run(source, tmp_path / "wrong", "--organs", "heart") == 2
    assert "there is no heart, only liver, pancreas, spleen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "folder", "options"),
    [
        ("ct.nii", "masks", ()),
        ("imaging.nii.gz", ".", ()),
        ("scan 1.nii.gz", "organs", ("--image", "scan 1.nii.gz", "--masks", "organs")),
        ("x.nii.gz", ".", ("--image", "x", "--masks", ".")),
        ("x.nii.gz", "deep/er", ("--image", "{case}/x", "--masks", "{case}/deep/er/{organ}.nii.gz")),
    ],
)
def test_layouts_of_masks(tmp_path, image, folder, options):
    write_case(tmp_path / "source", "p1", image=image, folder=folder)
    assert run(tmp_path / "source", tmp_path / "out", *options) == 0
    assert opened(tmp_path / "out")[0].organs == ORGANS
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "p1"), label_map())
    read = nib.load(tmp_path / "out" / "imagesTr" / "p1_0000.nii.gz")
    np.testing.assert_array_equal(read.dataobj, nib.load(tmp_path / "source" / "p1" / image).dataobj)
    np.testing.assert_array_equal(read.affine, AFFINE)


def test_label_maps_in_folders_of_cases_need_a_table(tmp_path, capsys):
    source = tmp_path / "kits"
    for case in ("case_1", "case_2"):
        write_case(source, case, organs=(), image="imaging.nii.gz")
        shutil.rmtree(source / case / "segmentations")
        write_nifti(source / case / "segmentation.nii.gz", label_map() * 10)
    assert run(source, tmp_path / "out") == 2
    assert "give a table with the columns value,organ with --map" in capsys.readouterr().err
    table = tmp_path / "values.csv"
    table.write_text("value\torgan\n10\tliver\n20\tliver\n30\tvoid\n")
    assert run(source, tmp_path / "out", "--map", table, "--all-annotated") == 0
    assert opened(tmp_path / "out")[0].organs == ("liver",)
    assert np.unique(labels_of(tmp_path / "out", "case_1")).tolist() == [0, 1, 255]
    table.write_text("value\torgan\n10\tliver\n20\tliver\n")
    assert run(source, tmp_path / "other", "--map", table) == 2
    assert "case case_1 has the label value 30, which means nothing" in capsys.readouterr().err
    assert run(source, tmp_path / "pattern", "--map", table, "--labels", "seg{case}") == 2
    assert "--labels" in capsys.readouterr().err


def test_a_folder_of_images_and_one_of_labels_by_patterns(tmp_path):
    source = tmp_path / "btcv"
    for folder in ("img", "label"):
        (source / folder).mkdir(parents=True)
    write_nifti(source / "img" / "img0001.nii.gz", other_image())
    write_nifti(source / "label" / "label0001.nii.gz", label_map())
    (tmp_path / "t.csv").write_text("value,organ\n1,liver\n2,pancreas\n3,spleen\n")
    options = ("--image", "img/img{case}", "--labels", "label/label{case}", "--map", tmp_path / "t.csv")
    assert run(source, tmp_path / "out", *options, "--all-annotated") == 0
    assert opened(tmp_path / "out")[0].names() == ["0001"]


def test_decathlon_without_channels_in_names(tmp_path, capsys):
    source = make_cohort(tmp_path / "Task09", train=2)
    for file in (source / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    (source / "imagesTs").mkdir()
    write_nifti(source / "imagesTs" / "case_09.nii.gz", other_image())
    labels = dict(enumerate(["background", *ORGANS]))  # the older spelling: value to name
    (source / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": labels}))
    assert run(source, tmp_path / "out") == 0
    assert RawDataset.open(tmp_path / "out").names() == ["case_00", "case_01"]
    assert not (tmp_path / "out" / "annotations.csv").exists()
    assert f"smile-fast declare {tmp_path / 'out'}" in capsys.readouterr().out
    assert main(["declare", str(tmp_path / "out"), "--yes"]) == 0


def test_gaps_and_regions_of_nnunet(tmp_path, capsys):
    source = make_cohort(tmp_path / "source", train=1, test=1)
    for file in source.glob("labelsT*/*.nii.gz"):
        labels = np.asarray(nib.load(file).dataobj)
        write_nifti(file, np.where(labels == 3, 5, labels).astype(np.uint8))
    describe(source, {"background": 0, "kidney and tumour": [1, 2], "tumour": 2, "spleen": 5}, 1)
    assert run(source, tmp_path / "out") == 2
    assert "the label value 2 is of kidney and tumour, tumour; say with --order" in capsys.readouterr().err
    assert run(source, tmp_path / "out", "--order", "tumour", "--all-annotated") == 0
    dataset, _ = opened(tmp_path / "out")
    assert dataset.organs == ("kidney and tumour", "tumour", "spleen")
    assert dataset.names("test") == ["case_01"]
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "case_00"), label_map())
    describe(source, {"background": 0, "kidney": [1, 2]}, 1)
    assert run(source, tmp_path / "other") == 2
    assert "case case_00 has the label value 5, which means nothing; name it in" in capsys.readouterr().err


def test_an_organ_that_is_not_wanted_takes_no_voxel_of_a_region(tmp_path, capsys):
    source = make_cohort(tmp_path / "source", train=1)
    describe(source, {"background": 0, "kidney": [1, 2], "tumour": [2, 3], "cyst": 3}, 1)
    assert run(source, tmp_path / "out", "--organs", "kidney", "--all-annotated") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "case_00"), label_map(["spleen"]) > 0)
    assert run(source, tmp_path / "none", "--organs", "kidny") == 2
    assert "there is no kidny, only" in capsys.readouterr().err
    assert run(source, tmp_path / "two", "--organs", "kidney,tumour") == 2
    assert "the label value 2 is of kidney, tumour; say with --order" in capsys.readouterr().err
    assert run(source, tmp_path / "two", "--organs", "kidney,tumour", "--order", "tumour", "--all-annotated") == 0
    assert (labels_of(tmp_path / "two", "case_00") == np.array([0, 1, 2, 2])[label_map()]).all()


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


def test_zero_is_background_whatever_it_is_called(tmp_path, capsys):
    source = make_cohort(tmp_path / "source", train=1)
    describe(source, {"Clear Label": 0, "liver": 1, "pancreas": 2, "spleen": 3, "unsure": 9}, 1)
    assert run(source, tmp_path / "out", "--all-annotated", "--organs", "liver,spleen") == 0
    assert np.unique(labels_of(tmp_path / "out", "case_00")).tolist() == [0, 1, 2]
    for labels, words in (
        ({"background": 0, "body": [0, 1]}, "the region body holds 0"),
        ({"background": 0, "body": [1, 300]}, "whole number in 0..255"),
        ({"background": 0, "body": "00000000099999"}, "whole number in 0..255"),
        ({"background": 0, "body": []}, "has no value"),
        ({"background": 0, "liver": 1, "liver ": 2}, "occurs twice"),
        ([], "does not map names to values"),
    ):
        describe(source, labels, 1)
        assert run(source, tmp_path / "other") == 2
        assert words in capsys.readouterr().err


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


def test_declarations_of_the_source_stay(tmp_path):
    source = make_cohort(tmp_path / "source", train=1)
    describe(source, {"background": 0, "liver": 1, "pancreas": 2, "spleen": 3}, 1)
    (source / "annotations.csv").write_text(
        "case,organ,state\ncase_00,liver,hidden\ncase_00,pancreas,missing\ncase_00,spleen,absent\n"
    )
    table = tmp_path / "t.csv"
    table.write_text("name,organ\npancreas,abdomen\nspleen,abdomen\n")
    assert run(source, tmp_path / "out", "--map", table) == 0
    assert opened(tmp_path / "out")[1]["case_00"] == {"liver": State.HIDDEN, "abdomen": State.MISSING}


def test_other_formats_are_converted(tmp_path):
    source = tmp_path / "source"
    write_case(source, "p1")
    for file in [source / "p1" / "ct.nii.gz", *(source / "p1" / "segmentations").iterdir()]:
        suffix = ".mha" if file.name.startswith("liver") else ".nrrd"
        sitk.WriteImage(sitk.ReadImage(str(file)), str(file).replace(".nii.gz", suffix))
        if file.name != "ct.nii.gz":
            file.unlink()
    image = np.asarray(nib.load(source / "p1" / "ct.nii.gz").dataobj)
    (source / "p1" / "ct.nii.gz").unlink()
    assert run(source, tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "p1"), label_map())
    read = nib.load(tmp_path / "out" / "imagesTr" / "p1_0000.nii.gz")
    np.testing.assert_array_equal(read.dataobj, image)
    np.testing.assert_allclose(read.affine, AFFINE)


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
