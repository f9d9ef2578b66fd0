"""Cohorts in other layouts: a folder a case, a mask an organ, label maps with gaps and regions."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from smile_fast.cli.main import main
from smile_fast.data.dataset import RawDataset
from smile_fast.supervision import State
from tests.cohorts import (
    AFFINE,
    BOXES,
    ORGANS,
    SHAPE,
    describe,
    label_map,
    make_cohort,
    other_image,
    tree,
    write_nifti,
)
from tests.data.importing.layouts import labels_of, mask, opened, run, write_case


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
