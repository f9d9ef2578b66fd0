"""A picture never lies beside other labels than those that it shows."""

import json

import numpy as np
import pytest
from nifti_files import random_hu, write
from tiny_models import threshold_card, write_threshold_model

from smile_runtime.io.nifti import read_note
from smile_runtime.predict.cli import main
from smile_runtime.predict.preview import fingerprint, picture_path, shown_labels, write_png

SHAPE = (12, 10, 4)
PICTURE = np.zeros((3, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another file, so other settings, and other labels."""
    card = threshold_card(provenance={"run": "other"})
    return write_threshold_model(tmp_path_factory.mktemp("model") / "other.onnx", card=card)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        write(folder / f"{number}.nii.gz", random_hu(SHAPE, number))
    return folder


@pytest.fixture(params=["folder", "scan"])
def segment(request, scans, tmp_path):
    """Run a model on the folder, or on its first scan alone; the label map of that scan."""
    out = tmp_path / "out"
    out.mkdir()
    labels = out / "0.nii.gz"
    paths = (scans, out) if request.param == "folder" else (scans / "0.nii.gz", labels)

    def run(model, *options):
        assert main([str(model), str(paths[0]), "-o", str(paths[1]), *options]) == 0
        return labels

    return run


def matches(labels):
    """Whether there is a picture, and it shows the labels beside it."""
    return shown_labels(picture_path(labels)) == fingerprint(read_note(labels)[1])


def test_a_picture_of_an_earlier_run_goes_with_its_labels(segment, threshold_model, other_model):
    labels = segment(threshold_model, "--preview")
    first = picture_path(labels).read_bytes()
    assert matches(labels)
    segment(threshold_model)  # the same labels: the picture stays
    assert picture_path(labels).read_bytes() == first
    segment(other_model)
    assert not picture_path(labels).exists()
    segment(other_model, "--preview")
    assert matches(labels)
    segment(threshold_model, "--preview")
    assert picture_path(labels).read_bytes() == first


def test_a_picture_of_somebody_else_stays_unless_one_is_asked_for(segment, threshold_model, tmp_path):
    mine = tmp_path / "out" / "0.png"
    mine.write_bytes(b"\x89PNG\r\n\x1a\n a screenshot")
    labels = segment(threshold_model)
    assert mine.read_bytes().endswith(b"a screenshot")
    segment(threshold_model, "--preview")
    assert matches(labels)


def test_continue_draws_a_picture_that_shows_other_labels_again(scans, tmp_path, threshold_model):
    """Two label maps that are complete; one has the other one's picture, as a copy by hand leaves it."""
    out, report = tmp_path / "out", tmp_path / "run.json"
    arguments = [str(threshold_model), str(scans), "-o", str(out), "--preview", "--continue", "--report", str(report)]
    assert main(arguments) == 0
    pictures = [(out / f"{number}.png").read_bytes() for number in range(2)]
    (out / "1.png").write_bytes(pictures[0])
    assert main(arguments) == 0
    files = json.loads(report.read_text())["files"]
    assert [file["status"] for file in files] == ["already complete", "written"]
    assert [(out / f"{number}.png").read_bytes() for number in range(2)] == pictures


def test_labels_stay_as_they_are_where_the_picture_cannot_be_written(scans, tmp_path, threshold_model, capsys):
    (tmp_path / "out" / "0.png").mkdir(parents=True)
    assert main([str(threshold_model), str(scans), "-o", str(tmp_path / "out"), "--preview"]) == 2
    assert f"{tmp_path / 'out' / '0.png'}: cannot be written, it is a folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / "0.nii.gz").exists()
    assert matches(tmp_path / "out" / "1.nii.gz")


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"GIF89a" * 40])
def test_what_shows_no_labels_of_ours(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert shown_labels(tmp_path / "a.png") is None
    assert shown_labels(tmp_path) is None
    assert shown_labels(tmp_path / "none.png") is None


def test_a_picture_that_is_cut_short_shows_nothing(tmp_path):
    write_png(tmp_path / "a.png", PICTURE, fingerprint("labels"))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    assert shown_labels(tmp_path / "a.png") != fingerprint("labels")


@pytest.mark.parametrize("name", ["a b.nii.gz", "a b.nii", "A b.NII.GZ"])
def test_a_picture_is_named_like_its_labels(tmp_path, name):
    assert picture_path(tmp_path / name) == tmp_path / f"{name[:3]}.png"
