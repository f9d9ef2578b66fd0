import json

import numpy as np
import pytest
from nifti_files import orientations, write
from tiny_models import threshold_card, threshold_labels, write_threshold_model

from smile_runtime.io.nifti import read_image, read_labels
from smile_runtime.predict.cli import main
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.preprocessing import BodyRule, body_box, slices_view, to_slices, whole_box

SPACING = (5.0, 1.0, 1.0)
RULE = BodyRule(-500, 5)
AIR = -1000


def patient(shape=(12, 200, 240), *, noise=20, seed=0):
    """A body of 120 x 160 mm with lungs, on a couch with a thin shell, in slices 3..9; noise everywhere."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, float(AIR))
    y, x = np.mgrid[: shape[1], : shape[2]]
    body = ((y - 90) / 60) ** 2 + ((x - 120) / 80) ** 2 < 1
    lungs = ((y - 90) / 50) ** 2 + ((abs(x - 120) - 35) / 25) ** 2 < 1
    hu[3:10, body] = 40
    hu[3:6, lungs] = -850
    hu[:, 170:174, 20:220] = -100  # the couch
    hu[:, 185:187, 20:220] = 300
    return (hu + rng.normal(0, noise, shape)).round().astype(np.int16)


def test_the_box_holds_the_body_with_its_margin_and_little_else():
    box = body_box(patient(), SPACING, RULE)
    assert box.slices == tuple(range(2, 11))  # 5 mm are one slice
    assert box.rows.start <= 30  # where the skin begins
    assert 155 <= box.rows.stop <= 168  # without the couch
    assert box.columns.start <= 40
    assert 205 <= box.columns.stop <= 222
    assert box.size[0] % 8 == box.size[1] % 8 == 0
    assert patient().size / box.pixels > 2


def test_lungs_do_not_open_the_body():
    """In a thin patient only a wall of a few millimetres lies before the lung."""
    hu = patient(noise=0)
    only = hu.copy()
    only[3:10] = hu[3]
    assert body_box(only, SPACING, RULE).size == body_box(hu, SPACING, RULE).size


@pytest.mark.parametrize("padding", [-2000, -1024, -3024])
def test_padding_below_air_is_air(padding):
    hu = patient()
    hu[:, :10] = hu[:, :, :12] = hu[0] = padding
    assert body_box(hu, SPACING, RULE) == body_box(patient(), SPACING, RULE)


def test_padding_of_zero_costs_time_and_nothing_else():
    hu = patient()
    hu[:, :40] = 0
    box, without = body_box(hu, SPACING, RULE), body_box(patient(), SPACING, RULE)
    assert box.rows.start == 0
    assert box.rows.stop >= 155
    assert set(box.slices) >= set(without.slices)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (4, 5, 6), (3, 17, 16), (2, 9, 300)])
@pytest.mark.parametrize("value", [40, 3000, -400])
def test_a_scan_that_is_all_body_stays_whole(shape, value):
    assert body_box(np.full(shape, value, np.int16), SPACING, RULE) == whole_box(shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 6), (3, 70, 90)])
@pytest.mark.parametrize("value", [AIR, -1024, -2000, -32768])
def test_a_scan_of_air_has_no_slice_and_no_pixel(shape, value):
    box = body_box(np.full(shape, value, np.int16), SPACING, RULE)
    assert (box.slices, box.pixels, box.depth) == ((), 0, shape[0])


def test_without_a_rule_nothing_is_left_out():
    assert body_box(patient(), SPACING, None) == whole_box(patient().shape)


def test_no_slices_at_all():
    assert body_box(np.zeros((0, 5, 5), np.int16), SPACING, RULE).slices == ()


@pytest.mark.parametrize(
    "spacing", [(5.0, 0.5, 0.5), (1.0, 2.0, 1.0), (5.0, 8.0, 8.0), (0.1, 30.0, 30.0), (1, 0.01, 1)]
)
def test_any_voxel_size_keeps_the_organs(spacing):
    """Whatever a voxel is said to measure, what is thick in voxels of 1 mm and more stays inside."""
    hu = patient(noise=0)
    box = body_box(hu, spacing, RULE)
    liver = np.zeros(hu.shape, bool)
    liver[5:8, 70:110, 80:160] = True
    assert box.crop(liver)[list(box.slices)].sum() == liver.sum()


def test_the_rule_is_the_same_in_every_axis_order():
    hu, volumes = patient(), []
    for orientation in orientations():
        order = [int(axis) for axis in orientation[:, 0]]
        data = np.asfortranarray(np.transpose(hu, np.argsort(order)))
        view = np.transpose(data, order)
        volumes.append(body_box(view, SPACING, RULE))
    assert all(box == volumes[0] for box in volumes)


@pytest.mark.parametrize("margin", [0, 3, 20, 1000])
def test_the_margin_is_at_least_what_it_says_where_there_is_room(margin):
    tight, box = body_box(patient(), SPACING, BodyRule(-500, 0)), body_box(patient(), SPACING, BodyRule(-500, margin))
    assert box.rows.start <= max(0, tight.rows.start + 7 - margin)
    assert box.columns.stop >= min(240, tight.columns.stop - 7 + margin)
    reach = -(-margin // 5)  # slices of 5 mm
    first, last = max(0, tight.slices[0] - reach), min(11, tight.slices[-1] + reach)
    assert box.slices == tuple(range(first, last + 1))


def cropping_model(folder, rule=RULE):
    return write_threshold_model(folder / "cropping.onnx", card=threshold_card(body=rule))


def test_production_computes_the_box_only_and_the_whole_on_request(tmp_path, monkeypatch):
    hu = patient()
    hu[6, 5:9, 5:9] = 500  # far from the body, and thinner than a limb
    scan = write(tmp_path / "scan.nii.gz", np.ascontiguousarray(hu.T), np.diag([-1, -1, 5.0, 1]))
    seen = []
    predictor = Predictor(cropping_model(tmp_path))
    real = predictor.model.labels
    monkeypatch.setattr(predictor.model, "labels", lambda batch, _: (seen.append(batch.shape), real(batch))[1])
    prediction = predictor.predict_file(scan, tmp_path / "labels.nii.gz")
    box = body_box(hu, SPACING, RULE)
    expected = np.zeros(hu.shape, np.uint8)
    box.crop(expected)[list(box.slices)] = threshold_labels(box.crop(hu))[list(box.slices)]
    found = to_slices(read_labels(tmp_path / "labels.nii.gz").data, np.diag([-1, -1, 5.0, 1]))[0]
    assert np.array_equal(found, expected)
    assert {shape[2:] for shape in seen} == {box.size}
    assert sum(shape[0] for shape in seen) == len(box.slices)
    assert prediction.skipped_slices == 12 - len(box.slices) == 3
    assert json.loads(json.dumps(prediction.box)) == box.to_json()

    Predictor(cropping_model(tmp_path), crop=False).predict_file(scan, tmp_path / "whole.nii.gz")
    found = to_slices(read_labels(tmp_path / "whole.nii.gz").data, np.diag([-1, -1, 5.0, 1]))[0]
    assert np.array_equal(found, threshold_labels(hu))
    assert found[6, 6, 6] == 2


def test_a_scan_of_air_becomes_an_empty_label_map(tmp_path):
    scan = write(tmp_path / "scan.nii.gz", np.arange(504).reshape(9, 8, 7).astype(np.int16) % 7 + AIR)
    prediction = Predictor(cropping_model(tmp_path)).predict_file(scan, tmp_path / "labels.nii.gz")
    assert prediction.skipped_slices == 7
    assert not read_labels(tmp_path / "labels.nii.gz").data.any()


def test_a_scan_without_a_body_gets_a_warning(tmp_path, capsys):
    """Zero millilitres of everything would else look like a finding."""
    scans = tmp_path / "scans"
    scans.mkdir()
    write(scans / "limb.nii.gz", np.ascontiguousarray(limb(22, 0).T))
    write(scans / "body.nii.gz", np.ascontiguousarray(patient().T), np.diag([-1, -1, 5.0, 1]))
    model, report = str(cropping_model(tmp_path)), tmp_path / "run.json"
    warned = f"warning: {scans / 'limb.nii.gz'}: no body was found"
    arguments = [model, str(scans), "-o", str(tmp_path / "out"), "--report", str(report)]
    for again in ([], ["--continue"]):
        assert main([*arguments, *again]) == 0
        printed = capsys.readouterr().err
        assert warned in printed
        assert "--no-crop" in printed
        assert printed.count("warning") == 1
        warnings = {file["scan"]: file["warning"] for file in json.loads(report.read_text())["files"]}
        assert warnings[str(scans / "body.nii.gz")] is None
        assert "--no-crop" in warnings[str(scans / "limb.nii.gz")]
    alone = [model, str(scans / "limb.nii.gz"), "-o", str(tmp_path / "alone.nii.gz")]
    assert main(alone) == 0
    assert warned in capsys.readouterr().err
    assert main([*alone, "--no-crop"]) == 0
    assert "warning" not in capsys.readouterr().err


def maze(size):
    """Walls one block thick, and one way through all of it that turns at every block."""
    free = np.zeros((size, size), bool)
    ends = range(2, 2 * size - 8, 6)
    for number, diagonal in enumerate(ends):
        low, high = max(0, diagonal - size + 1), min(size, diagonal + 1)
        for row in range(low, high):
            free[row, diagonal - row : diagonal - row + 2] = True
        if number % 2:
            row = max(low, 1) + 1
            free[row : row + 7, diagonal - row] = True
        else:
            row = min(high - 1, size - 2)
            free[row, diagonal - row : diagonal - row + 7] = True
    free[[0, -1]] = free[:, [0, -1]] = False
    free[1, :3] = True
    return np.where(free, AIR, 40).astype(np.int16)[None]


def maze_with_a_room(size):
    """The maze, whose deepest place at the right-hand side opens into a room of air; the room's columns come last."""
    hu = maze(size)[0]
    steps, front = np.full(hu.shape, -1), [(1, 0)]
    steps[front[0]] = 0
    for row, column in front:  # breadth first
        for there in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= min(there) and max(there) < size and hu[there] == AIR and steps[there] < 0:
                steps[there] = steps[row, column] + 1
                front.append(there)
    row = int(steps[:, -2].argmax())
    room = np.full((size, 12), 40, np.int16)
    room[1:-1, 1:-1] = AIR
    whole = np.concatenate([hu, room], axis=1)
    whole[row, size - 1 : size + 1] = AIR
    return whole[None]


@pytest.mark.parametrize(("size", "is_enclosed"), [(16, False), (64, True)])
def test_a_way_of_too_many_turns_is_not_followed_and_its_end_counts_as_enclosed(size, is_enclosed):
    """A room that the way leads to is outside, and its wall of one block no body; at the end of a maze it stays in."""
    box = body_box(maze_with_a_room(size), (8.0, 8.0, 8.0), BodyRule(margin_mm=0.0))
    assert box.rows == slice(0, size)
    assert (box.columns.stop > size + 8) == is_enclosed


def limb(diameter, offset):
    y, x = np.mgrid[:120, :120] - 56 - offset
    return np.where(y**2 + x**2 < (diameter / 2) ** 2, 40, AIR).astype(np.int16)[None]


@pytest.mark.parametrize("offset", range(8))
def test_a_limb_is_found_from_36_mm_on_and_never_below_24(offset):
    assert not body_box(limb(23, offset), SPACING, RULE).slices
    hu = limb(36, offset)
    box = body_box(hu, SPACING, RULE)
    rows, columns = (np.flatnonzero((hu[0] == 40).any(axis=axis)) for axis in (1, 0))
    for seen, where in ((box.rows, rows), (box.columns, columns)):
        assert max(seen.start - where[0], where[-1] + 1 - seen.stop) <= 4


@pytest.mark.parametrize(("width", "least", "most"), [(22, 30, 40), (24, 0, 4), (32, 0, 4)])
def test_a_bulge_narrower_than_three_blocks_is_cut_off(width, least, most):
    """The README says so: 40 mm of it stand above the body."""
    lost = []
    for offset in range(8):
        hu = np.full((1, 200, 200), AIR, np.int16)
        hu[0, 80 + offset : 180, 30:170] = hu[0, 40 + offset : 80 + offset, 90 + offset : 90 + offset + width] = 40
        lost.append(max(0, body_box(hu, SPACING, RULE).rows.start - 40 - offset))
    assert least <= max(lost) <= most


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "least"), [("ct_thorax_512", 1.5), ("ct_spleen_512", 1.1), ("ct_abdomen_3mm", 1.0)])
def test_no_organ_of_a_real_scan_is_cut_off(real_data, folder, least):
    volume = read_image(real_data / folder / "ct.nii.gz")
    slices, geometry = to_slices(volume.data, volume.affine)
    box = body_box(slices, geometry.spacing, BodyRule())
    assert slices.size / box.pixels >= least
    if (real_data / folder / "labels.nii.gz").exists():
        labels = slices_view(read_labels(real_data / folder / "labels.nii.gz").data, geometry)
        assert np.count_nonzero(box.crop(labels)[list(box.slices)]) == np.count_nonzero(labels) > 0


@pytest.mark.parametrize("pixels", [(1.1, 1.1), (0.9, 1.3), (1.0, 1.0)])
def test_the_order_in_memory_does_not_matter(pixels):
    hu, spacing = patient()[2:5], (5.0, *pixels)
    expected = body_box(hu, spacing, RULE)
    for axes in ((), (0,), (1,), (2,), (1, 2), (0, 1, 2)):
        turned = np.flip(np.ascontiguousarray(np.flip(hu, axes)), axes)
        assert body_box(turned, spacing, RULE) == expected
    assert body_box(np.asfortranarray(hu), spacing, RULE) == expected
