"""What training sees of a store."""

import numpy as np
import pytest

from smile_fast.supervision import Policy, State, build_tables
from smile_fast.training.rounds import Round, open_round
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import PSEUDO_BIT, VOID
from tests.runs import BOXES, ORGANS, SHAPE, ct, make_store, truth, writing_round

LIVER, PANCREAS = 1, 2
TRAIN = ["a", "b", "c"]


def with_void():
    labels = truth()
    labels[0, :3, :5] = VOID
    return labels


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """a: all drawn. b: the store knows that its pancreas is hidden. c: no liver drawn, and some void."""
    labels = {"a": truth(), "b": truth(), "c": np.where(with_void() == LIVER, 0, with_void())}
    states = {("b", "pancreas"): State.HIDDEN, ("c", "liver"): State.MISSING}
    return make_store(tmp_path_factory.mktemp("view") / "store", labels, states)


def declare(store, **changes):
    """The store's declarations with changes such as a_liver=HIDDEN."""
    declarations = store.declarations()
    for name, state in changes.items():
        case, organ = name.split("_")
        declarations[case][organ] = state
    return declarations


def box_voxels(value):
    return int((truth() == value).sum())


def test_images_and_labels_are_read_whole_or_by_slice(store):
    view = TrainingView(store, store.declarations(), TRAIN)
    np.testing.assert_array_equal(view.image("a"), ct(0))
    np.testing.assert_array_equal(view.image("b", [3, 3, 0]), ct(1)[[3, 3, 0]])
    np.testing.assert_array_equal(view.image("c", slice(2, 4)), ct(2)[2:4])
    np.testing.assert_array_equal(view.labels("a", [5, 2]), truth()[[5, 2]])
    assert view.image("a").dtype == np.int16
    assert view.labels("a").dtype == np.uint8


def test_hidden_organs_read_as_unlabelled(store):
    view = TrainingView(store, declare(store, c_pancreas=State.HIDDEN), TRAIN)
    for case in ("b", "c"):
        assert PANCREAS not in view.visible_labels(case)
        assert PANCREAS not in view.labels(case)
    np.testing.assert_array_equal(view.visible_labels("b"), np.where(truth() == PANCREAS, 0, truth()))
    assert (view.visible_labels("c") == VOID).sum() == 15  # everything else is itself
    assert PANCREAS in view.visible_labels("a")


def test_a_held_out_case_is_no_part_of_the_view(store):
    view = TrainingView(store, store.declarations(), ["c", "a"])
    assert view.cases == ("c", "a")
    assert set(view.counts) == {"a", "c"}
    assert view.states["c"] == (State.MISSING, State.ANNOTATED)


@pytest.mark.parametrize(
    ("changes", "case", "expected"),
    [
        ({}, "a", (True, True)),
        ({}, "b", (True, False)),  # hidden in the store
        ({}, "c", (False, True)),  # missing: nothing was drawn
        ({"a_liver": State.HIDDEN}, "a", (False, True)),  # hidden by the run, counted in the store
        ({"b_pancreas": State.ANNOTATED}, "b", (True, True)),  # shown by the run, not counted in the store
        ({"b_pancreas": State.MISSING, "b_liver": State.HIDDEN}, "b", (False, True)),
    ],
    ids=str,
)
def test_counts_are_those_of_the_visible_labels(store, changes, case, expected):
    counts = TrainingView(store, declare(store, **changes), TRAIN).counts[case]
    assert counts.shape == (SHAPE[0], len(ORGANS))
    for value, visible in enumerate(expected, start=1):
        by_slice = (truth() == value).sum(axis=(1, 2)) * visible
        np.testing.assert_array_equal(counts[:, value - 1], by_slice)


@pytest.fixture
def overlay(tmp_path):
    """Pseudo-labels of b: some where nothing is drawn, one on the human liver, one on the hidden pancreas."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :4] = PSEUDO_BIT | PANCREAS
    labels[1, 10, 10] = PSEUDO_BIT | PANCREAS  # inside of the liver
    labels[2, 27, 30] = PSEUDO_BIT | PANCREAS  # inside of the hidden pancreas
    with writing_round(tmp_path, Round(1, 0.5, "volume"), ORGANS) as written:
        written.add("b", labels, {"pancreas": {"candidates": 12, "selected": 6, "kept": 6}})
    return open_round(tmp_path, 1)


def test_pseudo_labels_lie_where_no_human_label_is(store, overlay):
    view = TrainingView(store, store.declarations(), TRAIN, overlay)
    labels = view.labels("b")
    assert labels[0, 0, :5].tolist() == [PSEUDO_BIT | PANCREAS] * 4 + [0]
    assert labels[1, 10, 10] == LIVER  # human
    assert labels[2, 27, 30] == PSEUDO_BIT | PANCREAS  # its human label is hidden
    assert (labels != view.visible_labels("b")).sum() == 5
    np.testing.assert_array_equal(view.labels("b", [2, 0]), labels[[2, 0]])
    np.testing.assert_array_equal(view.labels("a"), truth())  # a case without overlay
    assert not (view.visible_labels("b") & PSEUDO_BIT).any()


def test_pseudo_labels_are_counted_as_slices_that_show_the_organ(store, overlay):
    counts = TrainingView(store, store.declarations(), TRAIN, overlay).counts["b"]
    assert counts[:, PANCREAS - 1].tolist() == [4, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(counts[:, LIVER - 1], (truth() == LIVER).sum(axis=(1, 2)))


@pytest.mark.parametrize("changes", [{}, {"a_liver": State.HIDDEN}, {"b_pancreas": State.ANNOTATED}], ids=str)
def test_counts_are_those_of_every_voxel_of_the_view(store, overlay, changes):
    """The sampler's and the prior's input, against a count of what is shown; pseudo-labels under labels count, too."""
    for seen in (None, overlay):
        view = TrainingView(store, declare(store, **changes), TRAIN, seen)
        for case in TRAIN:
            labels = view.visible_labels(case)
            pseudo = seen.pseudo_labels(case) if seen is not None and case == "b" else np.zeros_like(labels)
            for value in (LIVER, PANCREAS):
                by_slice = (labels == value).sum(axis=(1, 2)) + (pseudo == PSEUDO_BIT | value).sum(axis=(1, 2))
                np.testing.assert_array_equal(view.counts[case][:, value - 1], by_slice)
            assert view.counts[case].dtype == np.uint32


def test_counting_leaves_the_index_alone(store):
    before = store.cases["a"].counts()
    TrainingView(store, declare(store, a_liver=State.HIDDEN), TRAIN)
    np.testing.assert_array_equal(store.cases["a"].counts(), before)


def test_tables_stand_in_the_order_of_the_cases(store):
    view = TrainingView(store, store.declarations(), ["c", "b"])
    annotated, missing, hidden = State.ANNOTATED, State.MISSING, State.HIDDEN
    expected = build_tables([(missing, annotated), (annotated, hidden)], Policy.SMILE)
    assert view.tables(Policy.SMILE).equal(expected)
    assert not view.tables(Policy.NAIVE).equal(expected)
    nothing_drawn = declare(store, c_pancreas=State.HIDDEN)
    tables = TrainingView(store, nothing_drawn, ["c"]).tables(Policy.SMILE, pseudo_negative=True)
    assert tables.equal(build_tables([(missing, hidden)], Policy.SMILE, pseudo_negative=True))
    assert not tables.equal(build_tables([(missing, hidden)], Policy.SMILE))


def test_prior_is_the_share_of_the_certain_voxels(store):
    volume = int(np.prod(SHAPE))
    view = TrainingView(store, store.declarations(), TRAIN)
    certain = view.prior(missing_is_background=False)
    assert certain == pytest.approx([box_voxels(LIVER) / volume, box_voxels(PANCREAS) / volume])  # drawn in two cases
    background = view.prior(missing_is_background=True)
    assert background == pytest.approx([2 / 3 * share for share in certain])


def test_prior_of_an_organ_that_is_not_drawn(store):
    hidden = declare(store, a_liver=State.HIDDEN, b_liver=State.HIDDEN)
    assert TrainingView(store, hidden, TRAIN).prior(missing_is_background=False)[0] == 0.01
    absent = declare(store, c_liver=State.ABSENT)  # known not to be there: it counts as a case without any
    share = TrainingView(store, absent, TRAIN).prior(missing_is_background=False)[0]
    assert share == pytest.approx(2 * box_voxels(LIVER) / (3 * np.prod(SHAPE)))


def test_boxes_of_the_cohort_overlap_nothing():
    """The expectations above count boxes: they must not hide one another."""
    assert box_voxels(LIVER) == np.prod([edge.stop - edge.start for edge in BOXES[LIVER]])
