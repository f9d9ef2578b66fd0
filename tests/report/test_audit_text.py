import json

import pytest

from smile_fast.report.audit_text import audit_record, audit_sentence, audit_table
from smile_fast.supervision.audit import Audit, CaseCounts, audit
from smile_fast.supervision.states import State

A, M, H, X = State.ANNOTATED, State.MISSING, State.HIDDEN, State.ABSENT


def one_organ(states, drawn=10, gaps=0):
    """Cases of 100 voxels with 10 of the liver in 2 slices, drawn wherever it is annotated or hidden."""
    counts = {
        str(case): CaseCounts(100, 0, (drawn,), 10, (2,), (gaps,))
        if state in (A, H) and drawn
        else CaseCounts(100, 0, (0,), 10, (0,), (0,))
        for case, state in enumerate(states)
    }
    declarations = {str(case): {"liver": state} for case, state in enumerate(states)}
    return audit(counts, declarations, ["liver"]).organs[0]


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        (
            [A] * 3 + [H] * 7,
            "liver: 70% of the annotations are missing (7 of 10 cases, 70% of the slices, 70% of the voxels); "
            "a background-for-missing training sees "
            "2.3 wrong labels for every right one (measured).",
        ),
        ([A, A, X], "liver: annotated in every case where it is present (2); no method sees a wrong label of it."),
        ([X, X], "liver: declared absent in every case; there is nothing to learn but its absence."),
        (
            [M, M],
            "liver: 100% of the annotations are missing (2 of 2 cases, 100% of the slices, 100% of the "
            "voxels); no case shows its size, so the wrong",
        ),
        ([H, H], "every label that a background-for-missing training sees of it is wrong (measured)."),
        ([A] * 9 + [M], "a background-for-missing training sees 0.1 wrong labels for every right one (estimated)."),
        ([A] * 99 + [M], "a background-for-missing training sees 0.01 wrong labels for every right one (estimated)."),
    ],
)
def test_says_it_in_words(states, sentence):
    assert sentence in audit_sentence(one_organ(states))


def test_a_hidden_annotation_without_voxels_is_no_wrong_label():
    assert "yet no voxel of it lies there" in audit_sentence(one_organ([A, H], drawn=0))


def test_an_organ_that_is_drawn_in_part_is_never_called_right():
    """Every fifth slice: 2 drawn, 4 between them, in each of three cases."""
    sentence = audit_sentence(one_organ([A, A, H], gaps=4))
    assert "no method sees a wrong label" not in sentence
    assert sentence.endswith(
        "In 3 of the 3 cases in which it should be drawn wherever it exists, 12 of the 18 slices between its first and "
        "its last do not show it (0, 1, 2): where it was drawn in part, every method learns wrong labels of it, unless "
        "you declare it missing there."
    )
    head, _, row = audit_table(Audit(("0", "1", "2"), 300, (one_organ([A, A, A], gaps=4),), {})).splitlines()
    assert head.split()[9] == "TP/FN"
    assert row.split()[8] == "?"  # not inf
    assert row.endswith("measured, gaps")
    assert audit_sentence(one_organ([A, A], gaps=4)).startswith(
        "liver: annotated in every case where it is present (2). In 2 of the 2"
    )
    assert audit_sentence(one_organ([A, A], drawn=0)) == (
        "liver: annotated in every case where it is present (2), but without a voxel in 2 of them."
    )


def test_a_partial_drawing_under_missing_is_said():
    """As much as elsewhere is drawn, which is no proof that nothing is left out."""
    counts = {case: CaseCounts(100, 0, (10,), 10, (2,), (0,)) for case in ("a", "b")}
    sentence = audit_sentence(audit(counts, {"a": {"liver": A}, "b": {"liver": M}}, ["liver"]).organs[0])
    assert "sees no wrong label" not in sentence
    assert "what is drawn there is as large as it is elsewhere, so wrong labels cannot be estimated." in sentence
    assert sentence.endswith("Drawn in part in 1 of the 1 cases in which it is declared missing.")


def test_json_and_table_hold_every_organ():
    counts = {
        "a": CaseCounts(10**9, 0, (12_345, 0), 10, (1, 0), (0, 0)),
        "b": CaseCounts(10**9, 0, (0, 0), 30, (0, 0), (0, 0)),
    }
    states = {"a": {"liver": A, "left kidney": M}, "b": {"liver": H, "left kidney": M}}
    report = audit(counts, states, ["liver", "left kidney"])
    data = json.loads(json.dumps(audit_record(report), allow_nan=False))
    assert data["cases"] == ["a", "b"]
    assert data["organs"][0]["baseline"]["tp"] == 12_345
    assert data["organs"][1]["beta"] is None
    assert [data["organs"][0][name] for name in ("alpha", "alpha_slices", "alpha_voxels")] == [0.5, 0.75, 0.5]
    assert data["organs"][0]["gapped"] == []
    assert [row["sentence"] for row in data["organs"]] == [audit_sentence(row) for row in report.organs]
    head, rule, *rows = audit_table(report).splitlines()
    assert head.startswith("organ")
    assert set(rule) == {"-"}
    assert rows[0].split()[:7] == ["liver", "0.50", "0.75", "0.50", "0.00%", "12.3k", "0"]
    assert "?" in rows[1]
    assert len({len(line) for line in (head, rule, *rows)}) == 1


def test_wrong_labels_that_cannot_be_known_are_no_zero():
    """Where the liver is called missing, as much is drawn of it as where it is annotated: no FN are seen."""
    counts = {str(case): CaseCounts(100, 0, (10,), 10, (2,), (0,)) for case in range(4)}
    declarations = {str(case): {"liver": A if case == 0 else M} for case in range(4)}
    found = audit(counts, declarations, ["liver"])
    *_, row = audit_table(found).splitlines()
    assert row.split()[6:9] == ["?", "?", "?"]
    assert "wrong labels cannot be estimated" in audit_sentence(found.organs[0])
