import gzip
import json
import re

import pytest

from smile_fast.data.dataset import RawDataset
from smile_runtime.errors import InputError
from tests.cohorts import describe, make_cohort

LABELS = {"background": 0, "liver": 1, "pancreas": 2, "spleen": 3}


def test_lists_cases_and_organs(tmp_path):
    dataset = RawDataset.open(make_cohort(tmp_path, train=2, test=1))
    assert dataset.organs == ("liver", "pancreas", "spleen")
    assert dataset.ignore is None
    assert dataset.names() == ["case_00", "case_01", "case_02"]
    assert dataset.names("train") == ["case_00", "case_01"]
    assert dataset.names("test") == ["case_02"]
    last = dataset.cases[-1]
    assert last.image == tmp_path / "imagesTs" / "case_02_0000.nii.gz"
    assert last.label == tmp_path / "labelsTs" / "case_02.nii.gz"


def test_test_images_without_labels_folder_are_no_cases(tmp_path):
    make_cohort(tmp_path, train=2, test=1)
    (tmp_path / "labelsTs" / "case_02.nii.gz").unlink()
    (tmp_path / "labelsTs").rmdir()
    assert RawDataset.open(tmp_path).names() == ["case_00", "case_01"]


def test_files_of_other_kinds_are_ignored(tmp_path):
    make_cohort(tmp_path, train=1)
    for name in (".DS_Store", "._case_00_0000.nii.gz", "notes.txt", "case_00.json"):
        (tmp_path / "imagesTr" / name).write_bytes(b"x")
    assert RawDataset.open(tmp_path).names() == ["case_00"]


@pytest.mark.parametrize(
    ("labels", "organs", "ignore"),
    [
        ({"spleen": 2, "background": 0, "liver": 1}, ("liver", "spleen"), None),
        ({"0": "background", "1": "liver", "2": "spleen"}, ("liver", "spleen"), None),
        ({"background": "0", "liver": "1", "spleen": " 2 "}, ("liver", "spleen"), None),
        ({"background": 0.0, "liver": 1.0, "spleen": "2.0"}, ("liver", "spleen"), None),
        ({" background": 0, "liver ": 1, "Mu\u0308ller": 2}, ("liver", "M\u00fcller"), None),
        ({"background": 0, "liver": 1, "ignore": 2}, ("liver",), 2),
        ({"background": 0, "liver": 1, "ignore": 255}, ("liver",), None),
        ({"background": 0, "liver": 1, "void": 255}, ("liver",), None),
        (
            {"background": 0} | {f"o{value}": value for value in range(1, 127)},
            tuple(f"o{v}" for v in range(1, 127)),
            None,
        ),
    ],
    ids=["by-value", "older-form", "texts", "floats", "spelling", "ignore", "ignore-255", "void", "126-organs"],
)
def test_reads_the_forms_of_labels(tmp_path, labels, organs, ignore):
    make_cohort(tmp_path, train=1)
    describe(tmp_path, labels, 1)
    dataset = RawDataset.open(tmp_path)
    assert dataset.organs == organs
    assert dataset.ignore == ignore


@pytest.mark.parametrize("number", ["1", "1.0", " 1 ", 1.0])
def test_the_number_of_cases_may_be_a_text_or_a_float(tmp_path, number):
    make_cohort(tmp_path, train=1)
    describe(tmp_path, LABELS, 1, numTraining=number, file_ending=".NII.GZ")
    assert RawDataset.open(tmp_path).names() == ["case_00"]


@pytest.mark.parametrize(
    ("image", "label", "case"),
    [
        ("A_0000.NII.GZ", "A.nii.gz", "A"),
        ("A_0000.nii.gz", "A.Nii.Gz", "A"),
        (" A B _0000.nii.gz", "A B .nii.gz", "A B"),
        ("A_0000 .nii.gz", " A.nii.gz", "A"),
        ("A_0000.nii.gz ", "A.nii.gz\u00a0", "A"),
        ("Mu\u0308ller_0000.nii.gz", "M\u00fcller.nii.gz", "M\u00fcller"),
    ],
)
def test_a_case_has_one_name_however_its_files_are_spelled(tmp_path, image, label, case):
    make_cohort(tmp_path, train=1)
    image_path = (tmp_path / "imagesTr" / "case_00_0000.nii.gz").rename(tmp_path / "imagesTr" / image)
    label_path = (tmp_path / "labelsTr" / "case_00.nii.gz").rename(tmp_path / "labelsTr" / label)
    (only,) = RawDataset.open(tmp_path).cases
    assert (only.name, only.image, only.label) == (case, image_path, label_path)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize(
    ("first", "second"), [("M\u00fc", "Mu\u0308"), ("a", " a"), ("a", "a ")], ids=["letters", "before", "behind"]
)
def test_refuses_two_files_of_one_case(tmp_path, folder, first, second):
    make_cohort(tmp_path, train=1)
    channel = "_0000" if folder == "imagesTr" else ""
    for name in (first, second):
        (tmp_path / folder / f"{name}{channel}.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{folder}: '.*' and '.*' would get one name; move one of them away"):
        RawDataset.open(tmp_path)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr", "imagesTs", "labelsTs"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.MHA", "a.dcm", "a.hdr", "a.img.gz", "a.nii.bz2"])
def test_scans_of_other_formats_are_named(tmp_path, folder, name):
    make_cohort(tmp_path, train=1, test=1)
    (tmp_path / folder / name).write_bytes(b"x")
    with pytest.raises(
        InputError, match=re.escape(f"{folder}: holds scans that are no NIfTI files ({name!r}); convert")
    ):
        RawDataset.open(tmp_path)


def test_dicom_is_named_with_the_command_that_converts_it(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    for path, kind in ((series, "a folder of DICOM files"), (series / "IM0001", "a DICOM file")):
        wanted = f"{path}: is {kind}, not NIfTI; convert it with: dcm2niix -z y -o OUT {series}"
        with pytest.raises(InputError, match=re.escape(wanted)):
            RawDataset.open(path)
    make_cohort(tmp_path / "cohort", train=1)
    images = tmp_path / "cohort" / "imagesTr"
    series.rename(images / "case_01")
    wanted = f"no NIfTI files ('case_01'); convert them (DICOM with: dcm2niix -z y -o OUT {images}), or move them away"
    with pytest.raises(InputError, match=re.escape(wanted)):
        RawDataset.open(tmp_path / "cohort")


def test_test_images_without_labels_are_left_alone(tmp_path):
    make_cohort(tmp_path, train=1, test=3)
    (tmp_path / "labelsTs" / "case_02.nii.gz").unlink()
    dataset = RawDataset.open(tmp_path)
    assert dataset.names("test") == ["case_01", "case_03"]
    assert dataset.unlabelled == ("case_02",)
    (tmp_path / "imagesTs" / "case_03_0000.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"case case_03 is in labelsTs, but imagesTs/case_03_0000.nii.gz does not exist"
    ):
        RawDataset.open(tmp_path)


def test_reads_an_older_dataset_json(tmp_path):
    make_cohort(tmp_path, train=1)
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": LABELS}))
    assert RawDataset.open(tmp_path).names() == ["case_00"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": {"0": "CT", "1": "PET"}}, '"channel_names" has 2 channels; name exactly one'),
        ({"channel_names": None}, "has no channels"),
        ({"file_ending": ".nrrd"}, '"file_ending" is ".nrrd"; convert the files to ".nii.gz"'),
        ({"dataset": {}}, 'a "dataset" list of files is not supported'),
        ({"numTraining": 7}, "numTraining is 7, but imagesTr holds 1 cases"),
        ({"labels": None}, '"labels" does not map names to values; write'),
        ({"labels": {}}, '"labels" does not map names to values; write'),
        ({"labels": {"liver": 1}}, '"labels" does not hold "background": 0; add'),
        ({"labels": {"background": 1, "liver": 0}}, '"labels" does not hold "background": 0; add'),
        ({"labels": {"background": 0}}, "names 0 organs; name 1 to 126"),
        ({"labels": {"background": 0} | {f"o{v}": v for v in range(1, 128)}}, "names 127 organs; name 1 to 126"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 3}}, "[1, 3]; use 1..2 without gap or repetition"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, "[1, 1]; use 1..2 without gap or repetition"),
        (
            {"labels": {"background": 0, "kidneys": [1, 2]}},
            "the label 'kidneys' has the value [1, 2]; give it one",
        ),
        ({"labels": {"background": 0, "liver": True}}, "the label 'liver' has the value true"),
        ({"labels": {"background": 0, "liver": 1.5}}, "the label 'liver' has the value 1.5"),
        ({"labels": {"background": 0, "liver": "one"}}, "the label 'liver' has the value \"one\""),
        ({"labels": {"background": 0, "liver": "1_0"}}, "the label 'liver' has the value \"1_0\""),
        ({"labels": {"background": 0, "liver": ""}}, "the label 'liver' has the value \"\""),
        ({"labels": {"background": 0, "liver": -1.0}}, "[-1]; use 1..1 without gap or repetition"),
        ({"labels": {"background": 0, "liver": 1, " liver": 2}}, "the label 'liver' occurs twice"),
        ({"labels": {"background": 0, "M\u00fc": 1, "Mu\u0308": 2}}, "the label 'M\u00fc' occurs twice"),
        ({"numTraining": "7"}, 'numTraining is "7", but imagesTr holds 1 cases'),
        ({"numTraining": "one"}, 'numTraining is "one", but imagesTr holds 1 cases'),
        ({"numTraining": True}, "numTraining is true, but imagesTr holds 1 cases"),
        ({"numTraining": 1.5}, "numTraining is 1.5, but imagesTr holds 1 cases"),
        ({"numTraining": None}, "numTraining is null, but imagesTr holds 1 cases"),
        ({"labels": {"background": 0, "": 1}}, "is no usable organ name"),
        ({"labels": {"background": 0, "a\nb": 1}}, "is no usable organ name"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, "the label 'liver' occurs twice"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 9}}, 'the label "ignore" has the value 9'),
        ({"labels": {"background": 0, "liver": 1, "void": 2}}, 'the label "void" has the value 2; give it 255'),
    ],
)
def test_refuses_what_dataset_json_says(tmp_path, changes, message):
    make_cohort(tmp_path, train=1)
    describe(tmp_path, **{"labels": LABELS, "train": 1, **changes})
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        RawDataset.open(tmp_path)
    assert str(tmp_path / "dataset.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xff", "not a text file in UTF-8"),
        (b"[]", "object"),
    ],
)
def test_refuses_broken_json(tmp_path, text, message):
    make_cohort(tmp_path, train=1)
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        RawDataset.open(tmp_path)


def test_refuses_folders_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        RawDataset.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"dataset\.json: there is no such file"):
        RawDataset.open(tmp_path)
    make_cohort(tmp_path, train=2, test=1)
    label = tmp_path / "labelsTr" / "case_01.nii.gz"
    content = label.read_bytes()
    label.unlink()
    with pytest.raises(InputError, match=r"case case_01 is in imagesTr, but labelsTr/case_01.nii.gz does not exist"):
        RawDataset.open(tmp_path)
    label.write_bytes(content)
    (tmp_path / "imagesTr" / "case_00_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case case_00 is in labelsTr, but imagesTr/case_00_0000.nii.gz does not"):
        RawDataset.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("case_00_0001.nii.gz", "single-channel images are named CASE_0000.nii.gz"),
        ("case_09_0000.nii", "single-channel images are named CASE_0000.nii.gz"),
        ("case_09_0000.NII", "single-channel images are named CASE_0000.nii.gz"),
        ("case_00_0001.NII.GZ", "single-channel images are named CASE_0000.nii.gz"),
        (" .._0000.nii.gz", "single-channel images are named CASE_0000.nii.gz"),
        ("_0000.nii.gz", "single-channel images are named CASE_0000.nii.gz"),
        ("a\nb_0000.nii.gz", "single-channel images are named CASE_0000.nii.gz"),
    ],
)
def test_refuses_file_names(tmp_path, name, message):
    make_cohort(tmp_path, train=1)
    (tmp_path / "imagesTr" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message) as caught:
        RawDataset.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_refuses_a_case_in_both_splits_and_an_empty_dataset(tmp_path):
    make_cohort(tmp_path, train=1, test=1)
    for folder, suffix in (("images", "_0000"), ("labels", "")):
        source = tmp_path / f"{folder}Ts" / f"case_01{suffix}.nii.gz"
        source.rename(source.with_name(f"case_00{suffix}.nii.gz"))
    with pytest.raises(InputError, match="case case_00 is both in imagesTr and imagesTs"):
        RawDataset.open(tmp_path)
    for file in tmp_path.glob("*Tr/*"):
        file.unlink()
    with pytest.raises(InputError, match="no case found; name the images"):
        RawDataset.open(tmp_path)


def test_nii_files_where_dataset_json_says_so(tmp_path):
    path = make_cohort(tmp_path / "cohort", train=1)
    for file in [*path.glob("imagesTr/*"), *path.glob("labelsTr/*")]:
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    labels = {"background": 0, "liver": 1, "pancreas": 2, "spleen": 3}
    describe(path, labels, 1, file_ending=".nii")
    dataset = RawDataset.open(path)
    assert [case.image.name for case in dataset.cases] == ["case_00_0000.nii"]
    describe(path, labels, 1)
    with pytest.raises(InputError, match=r"single-channel images are named CASE_0000.nii.gz"):
        RawDataset.open(path)
    describe(path, labels, 1, file_ending=".nrrd")
    with pytest.raises(InputError, match="see smile-fast import"):
        RawDataset.open(path)
