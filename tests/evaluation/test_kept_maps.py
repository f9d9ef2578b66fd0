"""`evaluate --write DIR`: the predicted label maps, in a folder that appears as a whole."""

import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation import Scoring, evaluate_run, evaluate_share, finish_evaluation
from smile_fast.evaluation.kept_maps import RECORD
from smile_fast.training.inference import predict_labels
from smile_runtime.errors import InputError
from smile_runtime.sharding import Shard
from tests.evaluation.test_evaluation_shares import change_weights

TEST = Scoring(nsd_tolerance_mm=None)
NAMES = {RECORD, "test_0.nii.gz", "test_1.nii.gz", "test_2.nii.gz"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_label_maps_are_those_of_the_network_on_the_grid_of_the_case(run, tmp_path, capsys):
    out = tmp_path / "some" / "maps"
    assert main(["evaluate", str(run.path), "--no-surface", "--device", "cpu", "--write", str(out)]) == 0
    assert f"kept 3 label maps in {out}" in capsys.readouterr().out
    assert names(out) == NAMES
    assert os.listdir(out.parent) == ["maps"]
    volume = nib.load(out / "test_1.nii.gz")
    np.testing.assert_allclose(volume.affine, run.store.cases["test_1"].affine)
    predicted = predict_labels(run.load_model(), run.store.read_image("test_1"))
    np.testing.assert_array_equal(np.asarray(volume.dataobj).transpose(2, 1, 0), predicted)
    own, again = (evaluate_run(run, nsd_tolerance_mm=None, predictions=folder) for folder in (None, out))
    assert [pair.dice for pair in own.pairs] == [pair.dice for pair in again.pairs]


def test_shares_write_the_folder_of_one_process_and_finish_lets_it_appear(run, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    evaluate_run(run, nsd_tolerance_mm=None, write=alone)
    assert evaluate_share(run, TEST, Shard(1, 2), write=shared) == 2
    assert not shared.exists()
    with pytest.raises(InputError, match=r"shared: 1 of 3 label maps are not written \(test_1\); run 'smile-fast eval"):
        finish_evaluation(run, TEST, shared)
    assert not shared.exists()
    assert evaluate_share(run, TEST, Shard(2, 2), write=shared) == 1
    for _ in range(2):
        finish_evaluation(run, TEST, shared)
        assert content(shared) == content(alone)
        assert evaluate_share(run, TEST, Shard(1, 2), write=shared) is None
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_a_share_that_is_scored_but_not_kept_is_predicted_again(run, tmp_path):
    assert evaluate_share(run, TEST, Shard(1, 2)) == 2
    assert evaluate_share(run, TEST, Shard(1, 2), write=tmp_path / "maps") == 2
    assert evaluate_share(run, TEST, Shard(1, 2), write=tmp_path / "maps") == 0
    assert evaluate_share(run, TEST, Shard(2, 2), write=tmp_path / "maps") == 1
    finish_evaluation(run, TEST, tmp_path / "maps")
    assert names(tmp_path / "maps") == NAMES


def test_label_maps_of_an_earlier_evaluation_are_replaced_as_a_whole(run, tmp_path, monkeypatch):
    out = tmp_path / "maps"
    out.mkdir()
    evaluate_run(run, nsd_tolerance_mm=None, write=out)
    before = content(out)
    change_weights(run)

    def fails(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, nsd_tolerance_mm=None, write=out)
    assert content(out) == before
    other = tmp_path / ".maps.of.somebody.maps"
    other.mkdir()
    evaluate_run(run, nsd_tolerance_mm=None, write=out)
    assert names(out) == NAMES
    assert content(out) != before
    assert {path for path in tmp_path.iterdir() if path.name.startswith(".")} == {other}  # nothing of ours is left


@pytest.mark.parametrize("name", ["notes.txt", "test_0.nii.gz", RECORD])
def test_a_folder_of_other_files_is_refused_before_anything_is_predicted(run, tmp_path, name):
    out = tmp_path / "maps"
    out.mkdir()
    (out / name).write_bytes(b"precious")
    with pytest.raises(InputError, match=f"maps: holds files that no evaluation has written there .{name}.; "):
        evaluate_run(run, nsd_tolerance_mm=None, write=out)
    assert content(out) == {name: b"precious"}


def test_a_file_that_was_put_beside_them_is_not_lost(run, tmp_path):
    out = tmp_path / "maps"
    evaluate_run(run, nsd_tolerance_mm=None, write=out)
    (out / "corrected.nii.gz").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"holds files that no evaluation has written there \(corrected.nii.gz\)"):
        evaluate_run(run, nsd_tolerance_mm=None, write=out)


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b"corrected"), lambda file: file.unlink()])
def test_a_label_map_that_somebody_corrected_is_not_replaced(run, tmp_path, change):
    out = tmp_path / "maps"
    evaluate_run(run, nsd_tolerance_mm=None, write=out)
    change(out / "test_1.nii.gz")
    before = content(out)
    with pytest.raises(InputError, match=r"that were changed since they were written \(test_1.nii.gz\); give"):
        evaluate_run(run, nsd_tolerance_mm=None, write=out)
    assert content(out) == before


def test_places_and_options_that_do_not_go_are_one_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="maps: the label maps cannot be kept"):
        evaluate_run(run, write=tmp_path / "file" / "maps")
    with pytest.raises(InputError, match="file: cannot be read"):
        evaluate_run(run, write=tmp_path / "file")
    with pytest.raises(InputError, match="--write: keeps what the network predicts; leave it out with --predictions"):
        evaluate_share(run, replace(TEST, predictions=tmp_path), Shard(1, 2), write=tmp_path / "maps")
