"""Phantoms of several sources: scanners that differ, organs that a source does not draw, and what the store keeps."""

import itertools

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.annotations import read_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.importing.sources import read_sources_table
from smile_fast.data.phantom import PhantomOptions, make_case, write_cohort
from smile_fast.data.phantom.anatomy import synthetic_names
from smile_fast.data.phantom.scanners import Scanner, deal_organs
from smile_fast.data.prepare import prepare
from smile_fast.data.store import Store
from smile_fast.supervision.states import State
from smile_runtime.io.nifti import read_image, read_labels
from smile_runtime.volume.preprocessing import to_slices
from tests.tolerances import MEASURED_NOISE

SMALL = {"train": 4, "test": 2, "size": 48, "slices": 12, "sources": 2}
ORGANS = ("liver", "pancreas", "stomach")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "cohort"
    write_cohort(folder, PhantomOptions(**SMALL))
    return folder


def test_a_source_draws_some_organs_and_hides_the_others(cohort):
    dataset = RawDataset.open(cohort)
    states = read_annotations(cohort / "annotations.csv", dataset.names(), dataset.organs)
    drawn = {case: {o for o, state in row.items() if state is State.ANNOTATED} for case, row in states.items()}
    assert [drawn[name] for name in dataset.names("train")] == [{"liver", "stomach"}, {"pancreas"}] * 2
    assert all(drawn[name] == set(ORGANS) for name in dataset.names("test"))
    assert {state for row in states.values() for state in row.values()} == {State.ANNOTATED, State.HIDDEN}
    found = [row.dataset for row in read_sources_table(cohort / "sources.csv").values()]
    assert found == ["source_a", "source_b"] * 3


def test_two_scanners_lie_at_opposite_ends():
    for seed in range(5):
        one, other = (Scanner.draw(seed, source, 2) for source in range(2))
        assert abs(one.noise - other.noise) > 20
        assert max(one.pixel, other.pixel) / min(one.pixel, other.pixel) > 1.5
        assert max(one.step, other.step) / min(one.step, other.step) > 2
        assert (one.portal, one.arterial) != (other.portal, other.arterial)


def measured(folder, name):
    """What a written scan shows of its scanner, with the names of `Scanner`; a table outside of the scan is inf."""
    split = "Ts" if name.startswith("test") else "Tr"
    image = read_image(folder / f"images{split}" / f"{name}_0000.nii.gz")
    truth = read_labels(folder / f"labels{split}" / f"{name}.nii.gz")
    (hu, geometry), (labels, _) = (to_slices(volume.data, volume.affine) for volume in (image, truth))
    step, pixel, _ = geometry.spacing
    air = np.concatenate([hu[:, :5, :8], hu[:, :5, -8:]], axis=2)  # the corners: a narrow field holds skin between them
    middle = hu[:, :, hu.shape[2] // 2 - 3 : hu.shape[2] // 2 + 3].astype(float)
    level, above = np.quantile(air, [0.5, 0.84])  # above the median: what is below may be cut off at -1024
    skin = np.diff(middle, axis=1)[:, : hu.shape[1] // 2].max(axis=1).mean()
    column = middle.mean(axis=(0, 2))
    top = np.flatnonzero(np.diff(column) > 60)[-1] + 1  # the last step up to the back is the table's, if it is in air
    behind = column[top - 1] < -300
    back = np.flatnonzero(column[:top] > -300)[-1]
    return {
        "noise": above - level,
        "offset": level + 1000,
        "blur": 1000 / skin,
        "pixel": pixel,
        "step": step,
        "table": (top - back) * pixel if behind else np.inf,
        "field": pixel * hu.shape[2],
        "contrast": np.median(hu[labels == 2]) - level,
    }


def test_written_scans_show_the_scanner_of_their_source(tmp_path):
    """Three sources: properties have the order that the scanners have, in each case alone.

    Of the contrast phases only the one without any is darkest: livers and small vessels of patients differ as much.
    """
    options = PhantomOptions(train=3, test=3, size=96, slices=24, sources=3, organs=("liver", "aorta"))
    write_cohort(tmp_path / "cohort", options)
    scanners = [Scanner.draw(0, source, 3) for source in range(3)]
    for prefix in ("case", "test"):
        scans = [measured(tmp_path / "cohort", f"{prefix}_{source:04d}") for source in range(3)]
        contrast = [scan.pop("contrast") for scan in scans]
        assert np.argmin(contrast) == np.argmin([scanner.portal + scanner.arterial for scanner in scanners])
        for name in scans[0]:
            wanted = [getattr(scanner, {"field": "pixel"}.get(name, name)) for scanner in scanners]
            found = [scan[name] for scan in scans]
            assert np.argsort(found).tolist() == np.argsort(wanted).tolist(), f"{prefix} {name}: {found}, {wanted}"
        for scan, scanner in zip(scans, scanners, strict=True):
            assert scan["noise"] == pytest.approx(scanner.noise, **MEASURED_NOISE)


def test_a_source_scans_all_of_its_cases_alike():
    options = PhantomOptions(**SMALL)
    grids = [make_case(options, 0, index)[2] for index in range(4)]
    assert grids[0].shape == grids[2].shape != grids[1].shape == grids[3].shape


@pytest.mark.parametrize(("organs", "sources"), [*itertools.product((1, 2, 3, 13), (2, 3, 5))])
def test_every_organ_is_drawn_and_every_source_draws(organs, sources):
    drawn = deal_organs(synthetic_names(organs), sources)
    assert len(drawn) == sources
    assert all(drawn)
    assert {organ for group in drawn for organ in group} == set(synthetic_names(organs))
    assert organs == 1 or all(len(group) < organs for group in drawn)


def test_the_store_knows_sources_and_a_changed_table_converts_nothing(cohort, tmp_path):
    prepare(RawDataset.open(cohort), tmp_path / "store", workers=1)
    table = cohort / "sources.csv"
    before = table.read_text()
    try:
        table.write_text(before.replace("source_b", "hospital"))
        again = prepare(RawDataset.open(cohort), tmp_path / "store", workers=1)
        table.unlink()
        without = prepare(RawDataset.open(cohort), tmp_path / "without", workers=1)
    finally:
        table.write_text(before)
    assert (again.converted, again.kept) == (0, 6)
    found = [case.source for case in Store.open(tmp_path / "store").cases.values()]
    assert found == ["source_a", "hospital"] * 3
    assert {case.source for case in without.store.cases.values()} == {""}


def test_many_synthetic_organs():
    options = PhantomOptions(size=96, slices=24, organs=synthetic_names(64), synthetic=True)
    _, labels, _ = make_case(options, 0, 0)
    counts = np.bincount(labels.ravel(), minlength=65)
    assert len(counts) == 65
    assert counts.min() > 5


def test_annotations_are_hidden_by_source(cohort, tmp_path, capsys):
    out = tmp_path / "a.csv"
    assert main(["simulate-missing", str(cohort), "--by-source", "--alpha", "0.5", "--output", str(out)]) == 0
    dataset = RawDataset.open(cohort)
    states = read_annotations(out, dataset.names(), dataset.organs)
    first, second, *others = [states[name] for name in dataset.names("train")]
    assert others == [first, second]
    for organ in ORGANS:
        assert {first[organ], second[organ]} == {State.ANNOTATED, State.HIDDEN}
    assert len({first[organ] for organ in ORGANS}) == 2  # no source loses all
    rows = "source_a=liver,pancreas;source_b=stomach"
    assert main(["simulate-missing", str(cohort), "--by-source", "--source-organs", rows, "--output", str(out)]) == 0
    states = read_annotations(out, dataset.names(), dataset.organs)
    assert [states["case_0000"][o] for o in ORGANS] == [State.ANNOTATED, State.ANNOTATED, State.HIDDEN]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--alpha", "2"], "--alpha: 2.0 is not a share"),
        ([], "--alpha: says how much to hide"),
        (["--source-organs", "source_a=liver"], "--source-organs: says nothing of source source_b"),
        (["--source-organs", "source_c=liver"], "--source-organs: source 'source_c' is none of"),
        (["--source-organs", "source_a=liver;source_b=stomach"], "--source-organs: no source draws pancreas"),
        (["--source-organs", "source_a=lever;source_b=stomach"], "--source-organs: 'lever' is none of"),
    ],
)
def test_wrong_requests_are_one_sentence(cohort, tmp_path, capsys, options, sentence):
    out = tmp_path / "a.csv"
    assert main(["simulate-missing", str(cohort), "--by-source", *options, "--output", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_dataset_without_the_table_is_one_sentence(tmp_path, capsys):
    write_cohort(tmp_path / "c", PhantomOptions(train=1, test=0, size=48, slices=12))
    assert main(["simulate-missing", str(tmp_path / "c"), "--by-source", "--alpha", "0.5"]) == 2
    assert "sources.csv: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sources", "1"], "--sources: 1 is out of range"),
        (["--sources", "5", "--train", "4"], "--sources, --train: 4 training cases"),
        (["--sources", "2", "--source-organs", "liver"], "--source-organs: names the organs of 1 sources"),
        (["--source-organs", "liver"], "--source-organs: names the organs of 1 sources"),
        (["--sources", "2", "--source-organs", "liver;lever"], "--source-organs: 'lever' is none of"),
        (["--sources", "2", "--source-organs", "liver;liver"], "--source-organs: no source draws pancreas, stomach"),
        (["--synthetic-organs", "200"], "--synthetic-organs: 200 are too many"),
    ],
)
def test_wrong_phantoms_are_one_sentence(tmp_path, capsys, options, sentence):
    assert main(["phantom", str(tmp_path / "out"), *options]) == 2
    assert sentence in capsys.readouterr().err
