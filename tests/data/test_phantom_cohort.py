import hashlib
import json
import stat
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from smile_fast.cli.main import main
from smile_fast.data import processes
from smile_fast.data.annotations import read_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.phantom import ORGANS, PhantomOptions, make_case, write_cohort
from smile_fast.data.phantom import cohort as cohort_module
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.nifti import read_image, read_labels
from smile_runtime.volume.preprocessing import to_slices
from tests.cohorts import ThreadsForProcesses
from tests.tolerances import REPEATED_HU, VOXELS_ON_A_SURFACE

SMALL = PhantomOptions(train=4, test=2, size=48, slices=12)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    write_cohort(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def patients():
    """Six whole patients with every organ: image, labels, grid."""
    return [make_case(PhantomOptions(organs=ORGANS), 0, index) for index in range(6)]


def test_same_seed_same_bytes_whatever_the_workers(cohort, tmp_path):
    write_cohort(tmp_path / "again", SMALL, workers=2)
    assert digests(tmp_path / "again") == digests(cohort)
    assert len(digests(cohort)) == 2 * 6 + 2


def test_a_phantom_without_sources_is_the_one_that_it_always_was():
    """Recorded before there were sources: voxels of every label, and one of twelve HU in both directions."""
    image, labels, grid = make_case(replace(SMALL, train=1, test=0), 0, 0)
    assert grid.spacing == pytest.approx((12.5, 7.415170138453575, 7.415170138453575))
    counts = np.bincount(labels.ravel())
    assert np.abs(counts - [25482, 1550, 255, 361]).max() <= VOXELS_ON_A_SURFACE * labels.size
    recorded = [
        [[-995, -1003, -1021, -984], [26, 33, 20, -33], [73, -22, 102, 93], [-1013, -929, -922, -1006]],
        [[-996, -990, -989, -1004], [9, 51, -39, -64], [65, 15, -43, 40], [-1011, -920, -916, -967]],
        [[-1000, -995, -1009, -994], [73, 71, 54, -15], [-14, 39, -54, -359], [-997, -907, -916, -983]],
    ]
    np.testing.assert_allclose(image[2::4, 5::12, 5::12], recorded, **REPEATED_HU)


def test_a_killed_worker_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def killed(*args):
        raise BrokenProcessPool

    monkeypatch.setattr(processes, "ProcessPoolExecutor", ThreadsForProcesses)
    monkeypatch.setattr(cohort_module, "write_image", killed)
    options = ["--train", "2", "--test", "0", "--size", "32", "--slices", "8"]
    assert main(["phantom", str(tmp_path / "cohort"), *options, "--workers", "2"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: memory: a worker process was killed, perhaps for want of it, or the script that starts them lacks "
        "if __name__ == '__main__'; give fewer --workers, or smaller or fewer slices"
    ]
    assert list(tmp_path.iterdir()) == []


def test_another_seed_gives_other_patients(cohort, tmp_path):
    write_cohort(tmp_path / "other", PhantomOptions(train=1, test=1, size=48, slices=12, seed=1))
    ours, other = digests(cohort), digests(tmp_path / "other")
    for name in ("imagesTr/case_0000_0000.nii.gz", "labelsTs/test_0000.nii.gz"):
        assert ours[name] != other[name]


def test_a_case_does_not_depend_on_the_size_of_the_cohort(cohort, tmp_path):
    write_cohort(tmp_path / "fewer", PhantomOptions(train=2, test=1, size=48, slices=12))
    ours, fewer = digests(cohort), digests(tmp_path / "fewer")
    shared = [name for name in fewer if name.endswith(".nii.gz")]
    assert len(shared) == 6
    assert all(ours[name] == fewer[name] for name in shared)


def test_cases_of_a_cohort_differ(cohort):
    images = [digest for name, digest in digests(cohort).items() if name.startswith("images")]
    assert len(set(images)) == 6


def test_it_is_a_raw_dataset_with_everything_annotated(cohort):
    dataset = RawDataset.open(cohort)
    assert dataset.organs == ("liver", "pancreas", "stomach")
    assert len(dataset.names("train")) == 4
    assert len(dataset.names("test")) == 2
    declarations = read_annotations(cohort / "annotations.csv", dataset.names(), dataset.organs)
    assert {state for row in declarations.values() for state in row.values()} == {State.ANNOTATED}
    assert json.loads((cohort / "dataset.json").read_text())["generator"] == "smile-fast phantom"
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


def test_geometry_and_orientations(cohort):
    codes = set()
    for case in RawDataset.open(cohort).cases:
        image, labels = read_image(case.image), read_labels(case.label)
        assert image.data.shape == labels.data.shape
        assert (image.affine == labels.affine).all()
        codes.add("".join(nib.aff2axcodes(image.affine)))
        slices, geometry = to_slices(image.data, image.affine)
        assert slices.shape == (12, 48, 48)
        assert geometry.spacing[0] == pytest.approx(12.5)  # 150 mm
        assert geometry.spacing[1] == pytest.approx(geometry.spacing[2])
        assert 6 < geometry.spacing[1] < 9
        split, index = (0, 1)[case.split == "test"], int(case.name[-4:])
        hu, truth, _ = make_case(SMALL, split, index)
        assert (slices == hu).all()
        assert (to_slices(labels.data, labels.affine)[0] == truth).all()
    assert codes == {"LPS", "RAS", "LAS", "LPI"}


def test_files_can_be_read_by_others(cohort):
    for path in [cohort, *cohort.rglob("*")]:
        assert path.stat().st_mode & stat.S_IRUSR


def test_every_organ_is_in_every_patient(patients):
    for _, labels, _ in patients:
        assert set(np.unique(labels)) == set(range(len(ORGANS) + 1))


def test_organs_have_plausible_volumes(patients):
    limits = {"liver": (700, 2200), "pancreas": (60, 260), "stomach": (90, 800), "spleen": (40, 400), "aorta": (15, 90)}
    for _, labels, grid in patients:
        for organ, (low, high) in limits.items():
            millilitres = (labels == ORGANS.index(organ) + 1).sum() * np.prod(grid.spacing) / 1000
            assert low < millilitres < high, organ


def test_organs_lie_where_they_belong(patients):
    for hu, labels, grid in patients:
        centre = {
            organ: np.argwhere(labels == value).mean(axis=0) * grid.spacing for value, organ in enumerate(ORGANS, 1)
        }
        z, y, x = range(3)
        assert centre["liver"][x] < centre["pancreas"][x] < centre["spleen"][x]
        assert centre["liver"][x] < centre["stomach"][x]
        assert centre["kidney_right"][x] < centre["inferior_vena_cava"][x] < centre["aorta"][x]
        assert centre["aorta"][x] < centre["kidney_left"][x]
        assert centre["stomach"][y] < centre["pancreas"][y] < centre["kidney_left"][y]
        assert centre["small_bowel"][z] < centre["pancreas"][z] < centre["stomach"][z] < centre["esophagus"][z]
        # Bone stands behind the aorta, air around the patient, lung in the highest slice.
        behind = hu[:, int(np.round(centre["aorta"][y] / grid.spacing[1])) :]
        assert (behind > 250).sum() > 3 * (hu[:, : behind.shape[1] // 2] > 250).sum()
        assert (hu[:, :3, :3] < -900).all()
        body = ndimage.binary_fill_holes(hu[-1] > -400)
        assert (body & (hu[-1] < -600)).sum() > 20


def test_organs_share_their_hu(patients):
    """Mean HU of the organs and their neighbours overlap between patients."""
    means = {
        organ: [hu[labels == ORGANS.index(organ) + 1].mean() for hu, labels, _ in patients]
        for organ in ("liver", "spleen", "pancreas")
    }
    assert max(means["pancreas"]) > min(means["liver"])
    assert max(means["liver"]) > min(means["spleen"])
    assert max(means["spleen"]) > min(means["liver"])


def test_organs_are_labelled_in_the_order_given():
    _, forward, _ = make_case(PhantomOptions(size=48, slices=12, organs=("liver", "spleen")), 0, 0)
    _, backward, _ = make_case(PhantomOptions(size=48, slices=12, organs=("spleen", "liver")), 0, 0)
    assert ((forward == 1) == (backward == 2)).all()
    assert ((forward == 2) == (backward == 1)).all()
    assert (forward == 1).any()


def test_small_and_flat_grids_hold_the_organs():
    _, labels, grid = make_case(PhantomOptions(size=32, slices=8), 1, 0)
    assert labels.shape == grid.shape == (8, 32, 32)
    assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_without_held_out_cases_there_is_no_folder_for_them(tmp_path):
    write_cohort(tmp_path, PhantomOptions(train=1, test=0, size=32, slices=8))  # an empty folder is welcome
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "annotations.csv",
        "dataset.json",
        "imagesTr",
        "labelsTr",
    ]


def test_force_replaces_a_phantom_and_nothing_else(tmp_path):
    options = PhantomOptions(train=2, test=1, size=32, slices=8)
    write_cohort(tmp_path, options)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_cohort(tmp_path, options)
    write_cohort(tmp_path, PhantomOptions(train=1, test=0, size=32, slices=8), force=True)
    assert RawDataset.open(tmp_path).names() == ["case_0000"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_spares_a_real_dataset(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match="did not write"):
        write_cohort(tmp_path, PhantomOptions(train=1, test=0), force=True)
    assert (tmp_path / "imagesTr").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "31"], "--size: 31 is out of range; give"),
        (["--slices", "7"], "--slices: 7 is out of range; give"),
        (["--train", "0"], "make no cohort; give at least 1 training"),
        (["--test", "-1"], "make no cohort; give at least 1 training"),
        (["--seed", "-1"], "--seed: -1 is negative; give"),
        (["--organs", "liver,appendix"], "--organs: unknown organ 'appendix'; choose from"),
        (["--organs", "liver,liver"], "twice"),
        (["--organs", ","], "--organs: empty; name"),
        (["--labelmaps", "nowhere"], "nowhere: not a folder; give"),
    ],
    ids=["size", "slices", "train", "test", "seed", "organ", "twice", "none", "labelmaps"],
)
def test_bad_arguments_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_file_or_a_used_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["phantom", str(tmp_path / "file")]) == 2
    assert main(["phantom", str(tmp_path)]) == 2
    assert main(["phantom", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smile_fast.data.phantom.cohort.write_labels", full_disk)
    with pytest.raises(InputError, match=r"out: cannot be written .no space left on device.; give"):
        write_cohort(tmp_path / "out", PhantomOptions(train=1, test=0, size=32, slices=8))
    assert not any(tmp_path.iterdir())


def test_the_command_writes_a_cohort(tmp_path):
    arguments = ["--train", "1", "--test", "1", "--size", "32", "--slices", "8", "--organs", "liver, spleen"]
    assert main(["phantom", str(tmp_path / "a" / "b"), *arguments, "--workers", "1"]) == 0
    assert RawDataset.open(tmp_path / "a" / "b").organs == ("liver", "spleen")
