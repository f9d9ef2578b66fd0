import numpy as np
import pytest

from smile_fast.supervision.audit import CaseCounts, audit, audit_store
from smile_fast.supervision.states import Policy, State
from smile_fast.supervision.tables import build_tables
from smile_runtime.errors import InputError
from smile_runtime.label_map import VOID
from tests.tolerances import FLOAT64_SHARE

A, M, H, X = State.ANNOTATED, State.MISSING, State.HIDDEN, State.ABSENT


def counted(voxels, void, organs, slices=10):
    """A case in which every organ is drawn in one slice, if at all."""
    return CaseCounts(voxels, void, organs, slices, tuple(int(drawn > 0) for drawn in organs), (0,) * len(organs))


def one_organ(states, voxels=100, drawn=10):
    """Cases of 100 voxels with 10 of the liver, drawn wherever it is annotated or hidden."""
    counts = {str(case): counted(voxels, 0, (drawn if state in (A, H) else 0,)) for case, state in enumerate(states)}
    declarations = {str(case): {"liver": state} for case, state in enumerate(states)}
    return audit(counts, declarations, ["liver"]).organs[0]


def test_the_formulas_of_the_table():
    """10 cases of 100 voxels, beta = 0.1, 7 of them hidden: (1 - alpha) beta, alpha beta, (1 - alpha)(1 - beta)."""
    row = one_organ([A] * 3 + [H] * 7)
    assert row.alpha == 0.7
    assert row.beta == pytest.approx(0.1, **FLOAT64_SHARE)
    assert row.epsilon == 0
    assert row.basis == "measured"
    assert (row.baseline.tp, row.baseline.fn, row.baseline.tn, row.baseline.fp) == (30, 70, 900, 0)
    assert row.baseline.tp_fn == pytest.approx(3 / 7, **FLOAT64_SHARE)
    assert row.wrong_share == 0.7
    assert (row.smile.tp, row.smile.fn, row.smile.tn, row.smile.fp, row.smile.ambiguous) == (30, 0, 270, 0, 700)
    assert row.smile.tp_fn is None


def test_an_estimate_equals_the_measurement_when_cases_are_alike():
    measured, estimated = one_organ([A] * 3 + [H] * 7), one_organ([A] * 3 + [M] * 7)
    assert estimated.basis == "estimated"
    assert estimated.alpha == measured.alpha
    assert estimated.beta == pytest.approx(measured.beta, **FLOAT64_SHARE)
    assert (estimated.baseline, estimated.smile) == (measured.baseline, measured.smile)


def test_absent_cases_count_as_negatives_only():
    row = one_organ([A] * 3 + [H] * 7 + [X] * 5)
    assert (row.alpha, row.absent) == (0.7, 5)
    assert (row.baseline.tp, row.baseline.fn, row.baseline.tn) == (30, 70, 1400)
    assert (row.smile.tn, row.smile.ambiguous) == (270 + 500, 700)


def test_a_hidden_annotation_without_voxels_is_no_wrong_label():
    row = one_organ([A, H], drawn=0)
    assert row.baseline.fn == 0
    assert row.wrong_share is None


def test_what_cannot_be_known_is_none():
    row = one_organ([M, M])
    assert (row.beta, row.baseline.fn, row.baseline.tn, row.baseline.tp_fn, row.wrong_share) == (None,) * 5
    assert (row.smile.tp, row.smile.tn, row.smile.ambiguous) == (0, 0, 200)
    assert one_organ([X]).alpha is None


def test_a_partial_drawing_reduces_the_estimate():
    counts = {"a": counted(100, 0, (20,)), "b": counted(200, 0, (15,)), "c": counted(100, 0, (30,))}
    row = audit(counts, {"a": {"liver": A}, "b": {"liver": M}, "c": {"liver": M}}, ["liver"]).organs[0]
    assert row.beta == 0.2  # of the annotated case alone
    assert row.baseline.tp == 65
    assert row.baseline.fn == 25  # 0.2 * 200 - 15, and none in c, which has more than expected


def test_epsilon_is_what_other_organs_tell():
    counts = {"a": counted(100, 10, (20, 30, 5)), "b": counted(100, 0, (10, 40, 5))}
    states = {"a": {"liver": A, "spleen": H, "kidney": A}, "b": {"liver": H, "spleen": A, "kidney": M}}
    report = audit(counts, states, ["liver", "spleen", "kidney"])
    assert report.voxels == 190
    liver, spleen, kidney = report.organs
    assert liver.epsilon == 45 / 190  # spleen and the drawn part of the kidney in b
    assert liver.smile.tn == 70 + 45
    assert spleen.epsilon == 25 / 190
    assert spleen.smile.tn == 60 + 25
    assert kidney.epsilon == 40 / 190  # the hidden liver tells nothing
    assert kidney.smile.tn == 85 + 40


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_tables_that_training_uses(seed):
    """Count voxel by voxel what the supervision tables call known and positive, and hold it against the truth."""
    rng = np.random.default_rng(seed)
    organs = ["a", "b", "c", "d"]
    states, labels = {}, {}
    for case in map(str, range(6)):
        states[case] = {organ: list(State)[rng.integers(4)] for organ in organs}
        present = [k + 1 for k, organ in enumerate(organs) if states[case][organ] is not X]
        labels[case] = rng.choice([0, VOID, *present], (5, 7, 6)).astype(np.uint8)

    class Source:
        organs = ("a", "b", "c", "d")

        def read_labels(self, name):
            return labels[name]

    report = audit_store(Source(), states)
    for k, row in enumerate(report.organs):
        tp = tn = known_total = naive_fn = 0
        for case, label in labels.items():
            listed = [[states[case][organ] for organ in organs]]
            smile, naive = (
                build_tables(listed, policy)[0, :, :, 0].numpy() >> k & 1 for policy in (Policy.SMILE, Policy.NAIVE)
            )
            known, positive = smile[label.ravel()].T
            truth = label.ravel() == k + 1
            tp += int((known & positive & truth).sum())
            tn += int((known & (1 - positive) & ~truth).sum())
            known_total += int(known.sum())
            if states[case][organs[k]] is not M:
                naive_known, naive_positive = naive[label.ravel()].T
                naive_fn += int((naive_known & (1 - naive_positive) & truth).sum())
        assert (row.smile.tp, row.smile.tn) == (tp, tn)
        assert known_total == tp + tn  # SMILE has no wrong label
        assert row.smile.ambiguous == report.voxels - known_total
        if row.basis == "measured":
            assert row.baseline.fn == naive_fn


def test_slices_and_voxels_say_more_than_cases():
    """The one scan of 20 that lacks the organ is as long as 54 others: 5% of the cases, 74% of the slices."""
    counts = {str(n): counted(100, 0, (10,), slices=10) for n in range(19)} | {
        "long": counted(9_000, 0, (0,), slices=540)
    }
    states = {case: {"liver": A} for case in counts} | {"long": {"liver": M}}
    row = audit(counts, states, ["liver"]).organs[0]
    assert (row.alpha, row.alpha_slices, row.alpha_voxels) == (1 / 20, 540 / 730, 9_000 / 10_900)
    counts["gone"], states["gone"] = counted(5_000, 0, (0,), slices=500), {"liver": X}
    assert audit(counts, states, ["liver"]).organs[0].alpha_slices == 540 / 730  # nothing can be missing there
    nothing = one_organ([X])
    assert (nothing.alpha, nothing.alpha_slices, nothing.alpha_voxels) == (None, None, None)


def test_void_voxels_are_no_missing_ones():
    counts = {"a": counted(100, 50, (10,)), "b": counted(100, 100, (0,))}
    assert audit(counts, {"a": {"liver": A}, "b": {"liver": M}}, ["liver"]).organs[0].alpha_voxels == 0
    assert audit({"b": counts["b"]}, {"b": {"liver": M}}, ["liver"]).organs[0].alpha_voxels is None


def histograms(rows):
    """Slices of 100 voxels: (voxels of organ 1, of organ 2, void) in each."""
    found = np.zeros((len(rows), 256), np.int64)
    for line, (one, two, void) in zip(found, rows, strict=True):
        line[[0, 1, 2, VOID]] = 100 - one - two - void, one, two, void
    return found


def test_gaps_are_slices_within_an_organ_that_do_not_show_it():
    rows = [(0, 0, 0), (5, 0, 0), (0, 7, 0), (5, 7, 0), (0, 0, 90), (5, 0, 0), (0, 0, 0), (0, 7, 0)]
    counts = CaseCounts.of(histograms(rows), 2)
    assert counts == CaseCounts(800, 90, (15, 21), 8, (3, 3), (2, 3))
    assert CaseCounts.of(histograms(rows), 3).drawn == (3, 3, 0)  # an organ without a voxel has no gap
    assert CaseCounts.of(histograms(rows), 3).gaps == (2, 3, 0)


def test_slices_that_are_void_from_edge_to_edge_are_no_gaps():
    """The right way to draw every other slice: nothing is learned in between."""
    rows = [(5, 0, 0), (0, 0, 100), (5, 0, 0), (0, 0, 99), (5, 0, 0)]
    assert CaseCounts.of(histograms(rows), 1).gaps == (1,)
    ignored = histograms(rows)
    ignored[:, 9], ignored[:, VOID] = ignored[:, VOID].copy(), 0
    assert CaseCounts.of(ignored, 1).gaps == (2,)
    assert CaseCounts.of(ignored, 1, ignore=9) == CaseCounts.of(histograms(rows), 1)


def test_what_is_drawn_in_part_is_found_in_every_state():
    gap = CaseCounts(1000, 0, (30,), 10, (3,), (6,))
    whole, nothing = CaseCounts(1000, 0, (30,), 10, (3,), (0,)), CaseCounts(1000, 0, (0,), 10, (0,), (0,))
    counts = {"a": gap, "b": whole, "c": gap, "d": gap, "e": nothing, "f": nothing}
    states = {case: {"liver": state} for case, state in zip(counts, (A, A, H, M, M, A), strict=True)}
    row = audit(counts, states, ["liver"]).organs[0]
    assert (row.gapped, row.gapped_drawn, row.gapped_empty) == (("a", "c"), 6, 12)
    assert (row.partial, row.empty) == (1, 1)  # d is declared for what it is


def test_refuses_contradictions_and_nothing():
    with pytest.raises(InputError, match="case a: 3 voxels of liver, which is declared absent"):
        audit({"a": counted(10, 0, (3,))}, {"a": {"liver": X}}, ["liver"])
    with pytest.raises(InputError, match="no case to audit"):
        audit({}, {}, ["liver"])
