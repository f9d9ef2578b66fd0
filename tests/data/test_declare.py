import numpy as np
import pytest

from smile_fast.data.dataset import RawDataset
from smile_fast.data.declare import Rule, draft, draft_path
from smile_fast.data.voxel_counts import count_cases
from smile_fast.supervision.audit import CaseCounts
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from tests.cohorts import SHAPE, describe, edit_label, label_map, make_cohort, write_nifti

VOXELS = SHAPE[0] * SHAPE[1] * SHAPE[2]
ANNOTATED, MISSING, ABSENT = State.ANNOTATED, State.MISSING, State.ABSENT


@pytest.fixture
def dataset(tmp_path):
    without = {"case_01": ["pancreas"], "case_02": ["pancreas", "spleen"]}
    return RawDataset.open(make_cohort(tmp_path, train=2, test=1, without=without))


def test_an_organ_without_voxel_is_never_guessed(dataset):
    drafted = draft(dataset)
    assert drafted.states == {
        "case_00": {"liver": ANNOTATED, "pancreas": ANNOTATED, "spleen": ANNOTATED},
        "case_01": {"liver": ANNOTATED, "pancreas": None, "spleen": ANNOTATED},
        "case_02": {"liver": ANNOTATED, "pancreas": None, "spleen": None},
    }
    assert drafted.undecided == {"pancreas": ["case_01", "case_02"], "spleen": ["case_02"]}
    with pytest.raises(ValueError, match="undecided: pancreas, spleen"):
        drafted.declarations()


def test_answers_fill_in_what_is_undecided_and_nothing_else(dataset):
    drafted = draft(dataset)
    half = drafted.decide({"pancreas": MISSING})
    assert half.undecided == {"spleen": ["case_02"]}
    assert drafted.undecided.keys() == {"pancreas", "spleen"}
    assert half.decide({"spleen": ABSENT, "pancreas": ABSENT, "liver": ABSENT}).declarations() == {
        "case_00": {"liver": ANNOTATED, "pancreas": ANNOTATED, "spleen": ANNOTATED},
        "case_01": {"liver": ANNOTATED, "pancreas": MISSING, "spleen": ANNOTATED},
        "case_02": {"liver": ANNOTATED, "pancreas": MISSING, "spleen": ABSENT},
    }


def test_counts_voxels_and_void(dataset):
    def void(labels):
        labels[0, 0, :5] = 255

    edit_label(dataset.path, "case_00", void)
    counts = count_cases(dataset, dataset.cases)
    assert counts["case_00"] == CaseCounts(
        voxels=VOXELS, void=5, organs=(8 * 10 * 6, 4 * 3 * 3, 5 * 6 * 3), slices=8, drawn=(6, 3, 3), gaps=(0, 0, 0)
    )
    assert counts["case_02"] == CaseCounts(
        voxels=VOXELS, void=0, organs=(8 * 10 * 6, 0, 0), slices=8, drawn=(6, 0, 0), gaps=(0, 0, 0)
    )


def test_slices_are_axial_in_whatever_order_the_file_has_its_axes(tmp_path):
    """Every other axial slice is drawn; the file's last axis runs from left to right."""
    dataset = RawDataset.open(make_cohort(tmp_path / "cohort", train=1))
    labels = label_map()
    labels[:, :, 1::2] = 0
    axes = np.array([[0, 0, 1.5, 0], [0, 1.5, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    write_nifti(dataset.cases[0].label, labels.transpose(2, 1, 0), axes)
    counts = count_cases(dataset, dataset.cases)["case_00"]
    assert (counts.slices, counts.drawn, counts.gaps) == (8, (3, 2, 1), (2, 1, 0))


def test_the_ignore_label_is_void(dataset):
    describe(dataset.path, {"background": 0, "liver": 1, "pancreas": 2, "ignore": 3}, 2)
    counts = count_cases(other := RawDataset.open(dataset.path), other.cases)
    assert counts["case_00"] == CaseCounts(
        voxels=VOXELS, void=5 * 6 * 3, organs=(8 * 10 * 6, 4 * 3 * 3), slices=8, drawn=(6, 3), gaps=(0, 0)
    )


def test_broken_label_maps_are_named_together(dataset):
    for case in ("case_00", "case_01"):
        edit_label(dataset.path, case, lambda labels: labels + 9)
    with pytest.raises(InputError) as caught:
        draft(dataset)
    assert "case case_00 has the label value 9, 10, 11, 12, but dataset.json names 1..3" in str(caught.value)
    assert str(caught.value).endswith("; 1 more label maps are broken: case_01")


def test_the_draft_stands_beside_the_file(tmp_path):
    assert draft_path(tmp_path / "annotations.csv") == tmp_path / "annotations.draft.csv"


def assigned(dataset, *options):
    drafted = draft(dataset)
    for option in options:
        drafted = drafted.assign(Rule.read(option, dataset))
    return drafted.states


def test_a_rule_sets_what_its_pattern_matches(dataset):
    found = assigned(dataset, "case_0[12]:pancreas=absent")
    assert [states["pancreas"] for states in found.values()] == [ANNOTATED, ABSENT, ABSENT]
    assert found["case_02"]["spleen"] is None  # still to be said
    assert assigned(dataset, "case_01:*=missing")["case_01"] == dict.fromkeys(dataset.organs, MISSING)
    assert assigned(dataset, "*:liver=hidden")["case_02"]["liver"] is State.HIDDEN


def test_of_two_rules_the_later_one_wins(dataset):
    found = assigned(dataset, "*:*=missing", "case_00:*=annotated", "*_02:spleen=absent")
    assert found == {
        "case_00": dict.fromkeys(dataset.organs, ANNOTATED),
        "case_01": dict.fromkeys(dataset.organs, MISSING),
        "case_02": {"liver": MISSING, "pancreas": MISSING, "spleen": ABSENT},
    }


def test_answers_fill_in_what_no_rule_has_set(dataset):
    drafted = draft(dataset).assign(Rule.read("case_01:pancreas=missing", dataset))
    declared = drafted.decide({"pancreas": ABSENT, "spleen": ABSENT}).declarations()
    assert [states["pancreas"] for states in declared.values()] == [ANNOTATED, MISSING, ABSENT]


def test_names_with_colons_and_equals_signs_can_be_set(tmp_path):
    organs = ("kidney", "left:kidney", "a=b")
    cohort = RawDataset.open(make_cohort(tmp_path, train=1))
    describe(cohort.path, {"background": 0} | {organ: k for k, organ in enumerate(organs, start=1)}, 1)
    other = RawDataset.open(cohort.path)
    assert Rule.read("case_00:left:kidney=missing", other).pairs == (("case_00", "left:kidney"),)
    assert Rule.read("case_*:a=b=missing", other).pairs == (("case_00", "a=b"),)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "case_00:appendix=missing",
            "names no organ, the organs are liver, pancreas, spleen; write PATTERN:ORGAN=STATE",
        ),
        ("case_00=missing", "names no organ"),
        ("liver", "names no organ"),
        ("", "names no organ"),
        ("patient_*:liver=missing", "matches no case; write a case's name"),
        ("CASE_*:liver=missing", "matches no case"),
        (":liver=missing", "matches no case"),
        ("case_00:liver=drawn", "has the unknown state 'drawn'; use one of annotated, missing, absent, hidden"),
        ("case_00:liver=?", "has the unknown state '?'"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(dataset, option, message):
    with pytest.raises(InputError) as caught:
        Rule.read(option, dataset)
    assert str(caught.value).startswith(f"--set: '{option}' {message}")


def test_what_has_voxels_cannot_be_absent_even_after_another_rule(dataset):
    with pytest.raises(InputError, match=r"calls absent what has voxels \(case_00/spleen, case_01/spleen\)"):
        assigned(dataset, "*:spleen=missing", "*:spleen=absent")


def test_a_draft_knows_the_gaps(dataset):
    def every_other_slice(labels):
        labels[:, :, 2::2] *= labels[:, :, 2::2] != 1

    edit_label(dataset.path, "case_01", every_other_slice)
    drafted = draft(dataset)
    assert drafted.doubtful == {"liver": ["case_01"]}
    assert drafted.assign(Rule.read("case_01:liver=missing", dataset)).doubtful == {}
