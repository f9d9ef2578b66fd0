import gzip
import hashlib
import json
import re
import struct
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest

from smile_fast.data.arrays import array_name, verify_array
from smile_fast.data.case_info import IMAGE
from smile_fast.data.store import CASES, Store
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.nifti_geometry import CONTRADICTORY, NO_ORIENTATION
from smile_runtime.volume.preprocessing import BodyRule, body_box
from tests.cohorts import (
    AFFINE,
    SHAPE,
    annotate,
    describe,
    edit_label,
    label_map,
    make_cohort,
    other_image,
    stored,
    tree,
    write_nifti,
)
from tests.data.prepared import run


def test_stores_images_and_labels_in_slices_order(cohort, out):
    done = run(cohort, out)
    assert (done.converted, done.kept, done.quarantined, done.empty) == (4, 0, {}, {})
    store = Store.open(out)
    assert store == done.store
    assert store.organs == ("liver", "pancreas", "spleen")
    assert {name: info.split for name, info in store.cases.items()} == {
        "case_00": "train",
        "case_01": "train",
        "case_02": "train",
        "case_03": "test",
    }
    info = store.cases["case_01"]
    assert info.shape == (8, 24, 20)
    assert info.spacing == (3.0, 1.5, 1.5)
    assert info.states == dict.fromkeys(store.organs, State.ANNOTATED)
    # The files run right to left and back to front: x and y are reversed on the way to slices order.
    raw = np.asarray(nib.load(cohort / "imagesTr" / "case_01_0000.nii.gz").dataobj)
    np.testing.assert_array_equal(store.read_image("case_01"), raw[::-1, ::-1].transpose(2, 1, 0))
    np.testing.assert_array_equal(store.read_labels("case_01"), label_map()[::-1, ::-1].transpose(2, 1, 0))
    assert store.read_image("case_01").dtype == np.int16
    assert store.read_labels("case_01").dtype == np.uint8
    assert blosc2.open(str(store.array_path("case_01", IMAGE)), mode="r").chunks == (1, 24, 20)
    # The same voxel has the same place in both orders.
    np.testing.assert_allclose(np.array(info.affine) @ [19, 23, 5, 1], AFFINE @ [0, 0, 5, 1])


def test_counts_are_those_of_the_stored_labels(cohort, out):
    store = run(cohort, out).store
    labels = store.read_labels("case_00")
    expected = [[int((one == value).sum()) for value in (1, 2, 3)] for one in labels]
    assert store.cases["case_00"].counts().tolist() == expected
    assert sum(map(sum, expected)) == sum(int((label_map() == value).sum()) for value in (1, 2, 3))


def test_the_index_knows_the_body_and_the_bytes_of_every_case(cohort, out):
    image = np.full(SHAPE, -1000, np.int16)
    image[:, :, 3:5] = 40
    write_nifti(cohort / "imagesTr" / "case_00_0000.nii.gz", image)
    store = run(cohort, out).store
    for name, info in store.cases.items():
        assert info.body.answers(BodyRule())
        assert info.body.box == body_box(store.read_image(name), info.spacing, BodyRule())
        names = {array_name(array, digest) for array, digest in info.arrays.items()}
        assert {file.name for file in (out / CASES / name).glob("*.b2nd")} == names
        for array, digest in info.arrays.items():
            verify_array(store.array_path(name, array), digest)
    assert store.cases["case_00"].body.box.slices == (1, 2, 3, 4, 5, 6)  # 5 mm are two slices


def test_a_box_of_another_version_is_found_again(cohort, out, monkeypatch):
    run(cohort, out)
    first = stored(out)
    monkeypatch.setattr(BodyRule, "VERSION", 2)
    assert run(cohort, out).converted == 4
    assert Store.open(out).cases["case_00"].body.version == 2
    monkeypatch.undo()
    assert run(cohort, out).converted == 4
    assert stored(out) == first


def as_schema_1(cohort, store):
    """Make a store what the version before wrote: its index and case.json from there, of these source files."""
    fixture = Path(__file__).parent / "schema_1"
    sources = {
        case: {
            "image": hashlib.sha256((cohort / f"images{suffix}" / f"{case}_0000.nii.gz").read_bytes()).hexdigest(),
            "label": hashlib.sha256((cohort / f"labels{suffix}" / f"{case}.nii.gz").read_bytes()).hexdigest(),
        }
        for case, suffix in (("case_00", "Tr"), ("case_01", "Tr"), ("case_02", "Ts"))
    }
    index = json.loads((fixture / "index.json").read_text())
    for entry in index["cases"]:
        entry["sources"] = sources[entry["name"]]
    (store / "index.json").write_text(json.dumps(index))
    case = json.loads((fixture / "case_00.json").read_text())
    for entry in index["cases"]:
        folder = store / CASES / entry["name"]
        arrays = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.b2nd")}
        (folder / "case.json").write_text(json.dumps(case | entry | {"arrays": arrays}))


@pytest.fixture
def old(tmp_path, out):
    """A cohort and its store of schema 1."""
    cohort = make_cohort(tmp_path / "old", train=2, test=1)
    annotate(cohort, {("case_01", "pancreas"): "hidden"})
    run(cohort, out)
    as_schema_1(cohort, out)
    with pytest.raises(InputError, match="make the store again with 'smile-fast prepare' from the same dataset"):
        Store.open(out)
    return cohort


def test_a_store_of_schema_1_is_converted_again_from_its_dataset(old, out, tmp_path):
    expected = stored(run(old, tmp_path / "new").store.path)
    (out / CASES / "case_00" / "image.b2nd").write_bytes(b"of schema 1")
    done = run(old, out)
    assert (done.converted, done.kept) == (3, 0)
    assert stored(out) == expected
    assert run(old, out).kept == 3


def test_a_store_of_schema_1_of_another_dataset_is_replaced_only_by_force(old, cohort, out, tmp_path):
    before = tree(out)
    small = make_cohort(tmp_path / "small", train=1, organs=("liver",))
    annotate(small, organs=("liver",))
    for other, message in ((small, "holds a store of other organs"), (cohort, "made from other files")):
        for case in ("case_00", "case_01", "case_02", "case_03"):
            image, label = (next(other.glob(f"{kind}T*/{case}*"), None) for kind in ("images", "labels"))
            if image is not None:
                write_nifti(image, other_image())
                write_nifti(label, np.roll(np.asarray(nib.load(label).dataobj).astype(np.uint8), 1, axis=0))
        with pytest.raises(InputError, match=message):
            run(other, out)
        assert tree(out) == before
    assert run(cohort, out, force=True).converted == 4


def test_an_interrupted_conversion_of_schema_1_leaves_its_index(old, out, monkeypatch):
    def killed(folder, name, array):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("smile_fast.data.preparing.one_case.write_array", killed)
        with pytest.raises(KeyboardInterrupt):
            run(old, out)
    with pytest.raises(InputError, match="make the store again with 'smile-fast prepare' from the same dataset"):
        Store.open(out)
    assert run(old, out).converted == 3


@pytest.mark.parametrize("damage", [{"cases": None}, {"cases": [{"name": "a"}]}, {"organs": 3}], ids=str)
def test_a_damaged_index_of_schema_1_is_refused(old, out, damage):
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | damage))
    with pytest.raises(InputError, match=r"index\.json: damaged .*prepare --force"):
        run(old, out)


def test_a_store_of_a_later_schema_is_replaced_only_by_force(cohort, out):
    run(cohort, out)
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | {"schema": 5}))
    with pytest.raises(InputError, match=r"is of schema 5, this version reads 4; .*prepare --force"):
        run(cohort, out)
    assert run(cohort, out, force=True).converted == 4


def test_hidden_organs_count_nothing_but_stay_in_the_labels(cohort, out):
    annotate(cohort, {("case_00", "liver"): "hidden", ("case_00", "pancreas"): "missing"})
    store = run(cohort, out).store
    counts = np.array(store.cases["case_00"].counts())
    assert counts[:, 0].sum() == 0
    assert counts[:, 1].sum() == 4 * 3 * 3  # partially drawn
    assert (store.read_labels("case_00") == 1).sum() == 8 * 10 * 6
    assert store.declarations()["case_00"]["liver"] is State.HIDDEN


def test_no_bit_of_a_hidden_label_reaches_the_statistics(cohort, tmp_path):
    """The hidden organ's voxels are redrawn at random; all that a store says about them stays the same."""
    states = {("case_00", "liver"): "hidden", ("case_01", "spleen"): "hidden", ("case_02", "pancreas"): "hidden"}
    annotate(cohort, states)
    values = {"liver": 1, "pancreas": 2, "spleen": 3}

    def texts(name):
        store = run(cohort, tmp_path / name).store.path
        files = {name: text for name, text in stored(store).items() if name.endswith(".json")}
        cases = {name: json.loads(text) for name, text in files.items() if name != "index.json"}
        for entry in cases.values():
            del entry["sizes"]  # of compressed files
        return [re.sub(r"[0-9a-f]{64}", "", str(text)) for text in (files["index.json"], cases)]

    before = texts("before")
    for seed, ((case, organ), _) in enumerate(states.items()):
        value = values[organ]

        def scramble(labels, value=value, seed=seed):
            free = (labels == 0) | (labels == value)
            labels[free] = np.random.default_rng(seed).choice([0, value], int(free.sum()))

        edit_label(cohort, case, scramble)
    assert texts("after") == before
    annotate(cohort)  # were they not hidden, it would show
    assert texts("annotated")[0] != before[0]


def test_ignore_and_255_are_void(cohort, out):
    describe(cohort, {"background": 0, "liver": 1, "pancreas": 2, "ignore": 3}, 3)
    annotate(cohort, organs=("liver", "pancreas"))

    def void(labels):
        labels[0, 0, 0] = 255

    edit_label(cohort, "case_00", void)
    labels = run(cohort, out).store.read_labels("case_00")
    assert set(np.unique(labels)) == {0, 1, 2, 255}
    assert (labels == 255).sum() == 5 * 6 * 3 + 1


def test_an_annotated_organ_without_voxels_is_reported(cohort, out):
    edit_label(cohort, "case_01", lambda labels: label_map(without=["spleen"]))
    annotate(cohort, {("case_02", "liver"): "missing"})
    edit_label(cohort, "case_02", lambda labels: label_map(without=["liver"]))
    assert run(cohort, out).empty == {"spleen": ["case_01"]}
    assert run(cohort, out).empty == {"spleen": ["case_01"]}  # also when the case is kept


def test_repeating_keeps_what_has_not_changed(cohort, out):
    run(cohort, out)
    first = stored(out)
    again = run(cohort, out)
    assert (again.converted, again.kept) == (0, 4)
    assert stored(out) == first
    edit_label(cohort, "case_01", lambda labels: np.roll(labels, 1, axis=2))
    annotate(cohort, {("case_02", "liver"): "hidden"})
    changed = run(cohort, out)
    assert (changed.converted, changed.kept) == (2, 2)
    assert changed.store.cases["case_02"].counts()[3][0] == 0
    assert (run(cohort, out, force=True).converted, run(cohort, out).kept) == (4, 4)


def test_an_absent_organ_with_voxels_is_a_contradiction(cohort, out):
    annotate(cohort, {("case_01", "spleen"): "absent"})
    sentences = []
    assert list(run(cohort, out, report=sentences.append).quarantined) == ["case_01"]
    assert "case case_01 has 90 voxels of spleen, which is declared absent" in sentences[0]
    edit_label(cohort, "case_01", lambda labels: label_map(without=["spleen"]))
    assert run(cohort, out).store.cases["case_01"].states["spleen"] is State.ABSENT


def shift_labels(cohort, shift):  # mm, along x
    affine = AFFINE.copy()
    affine[0, 3] += shift
    write_nifti(cohort / "labelsTr" / "case_00.nii.gz", label_map(), affine)


@pytest.mark.parametrize("shift", [0.0, 0.014], ids=["same", "rounded"])
def test_grids_that_coincide_but_for_rounding_fit(cohort, out, shift):
    shift_labels(cohort, shift)
    assert run(cohort, out).quarantined == {}


@pytest.mark.parametrize("shift", [0.16, 3.0], ids=["off", "far"])  # of voxels of 1.5 mm
def test_grids_must_coincide(cohort, out, shift):
    shift_labels(cohort, shift)
    assert list(run(cohort, out).quarantined) == ["case_00"]
    quarantined = (out / "quarantine.json").read_text()
    assert f"lies {shift:.3g} mm off its image (shifted by {shift:.3g}, 0, 0 mm); resample the label map" in quarantined
    assert "header" not in quarantined


@pytest.mark.parametrize("codes", ["LPS", "SRA", "PIL"])
def test_a_label_map_in_another_order_of_axes_gives_the_same_bytes(cohort, tmp_path, codes):
    plain = run(cohort, tmp_path / "plain").store
    file = cohort / "labelsTr" / "case_00.nii.gz"
    image = nib.load(file)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), file)
    turned = run(cohort, tmp_path / "turned").store
    assert turned.cases["case_00"].arrays == plain.cases["case_00"].arrays
    assert turned.cases["case_00"].runs == plain.cases["case_00"].runs


def test_a_mirrored_label_map_does_not_fit(cohort, out):
    """Its first voxel coincides with the image's, its last one does not."""
    write_nifti(cohort / "labelsTr" / "case_00.nii.gz", label_map(), AFFINE * [-1, 1, 1, 1])
    done = run(cohort, out)
    assert list(done.quarantined) == ["case_00"]


def without_codes(file):
    image = nib.load(file)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, file)


def test_headers_without_codes_are_listed_again_by_every_call(cohort, out):
    """Once a case, whether its image or both of its files lack them."""
    for folder, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        without_codes(cohort / folder / f"case_01{suffix}.nii.gz")
    expected = {NO_ORIENTATION: ["case_01"]}
    for kept in (0, 4):
        done = run(cohort, out)
        assert (done.kept, done.quarantined) == (kept, {})
        assert {warning: cases for warning, cases in done.doubted.items() if "header" in warning} == expected


def test_a_label_map_without_codes_beside_an_image_with_them_is_not_to_be_resampled(cohort, out):
    without_codes(cohort / "labelsTr" / "case_01.nii.gz")
    (sentence,) = run(cohort, out).quarantined.values()
    assert "mm off its image" in sentence
    assert sentence.endswith("its header does not say where it lies, export it again from the program that drew it")


def contradict(file):
    """Give a file a qform of pixdim's voxels, and an sform of 1 mm."""
    image = nib.load(file)
    image.set_qform(AFFINE, 1)
    nib.save(image, file)
    body = bytearray(gzip.decompress(file.read_bytes()))
    body[252:256] = struct.pack("<2h", 1, 1)  # both codes
    body[280:328] = np.eye(4, dtype="<f4")[:3].tobytes()
    file.write_bytes(gzip.compress(body))


def test_a_label_map_whose_forms_disagree_beside_an_image(cohort, out):
    contradict(cohort / "labelsTr" / "case_02.nii.gz")
    done = run(cohort, out)
    assert done.quarantined == {}
    assert done.doubted[f"label map: {CONTRADICTORY}"] == ["case_02"]


def test_a_label_map_beside_an_image_whose_forms_disagree(cohort, out):
    """The label map has pixdim's voxels, the image's sform has voxels of 1 mm."""
    contradict(cohort / "imagesTr" / "case_02_0000.nii.gz")
    done = run(cohort, out)
    assert done.quarantined == {}
    assert done.doubted[CONTRADICTORY] == ["case_02"]
    assert done.store.cases["case_02"].spacing == (3.0, 1.5, 1.5)


def test_processes_give_the_same_bytes(cohort, tmp_path):
    one = run(cohort, tmp_path / "one").store.path
    edit_label(cohort, "case_01", lambda labels: label_map())
    two = run(cohort, tmp_path / "two", workers=2).store.path
    assert stored(one) == stored(two)
