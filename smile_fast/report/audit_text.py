"""The label audit in words and as a table: what the commands print and the page shows."""

from typing import Any

from smile_fast.supervision.audit import Audit, OrganAudit
from smile_fast.text_table import listed, text_table

_HEAD = (
    *("organ", "alpha", "slices", "voxels", "beta", "base TP", "FN", "TN", "TP/FN"),
    *("SMILE TP", "FN", "TN", "ignored", "epsilon", "basis"),
)


def audit_table(audit: Audit) -> str:
    """The table as text, one row an organ."""
    return "\n".join(text_table([_HEAD, *(_cells(row) for row in audit.organs)]))


def audit_record(audit: Audit) -> dict[str, Any]:
    """Plain data for a JSON file: the figures, and each organ's sentence beside its own."""
    record = audit.to_json()
    for entry, row in zip(record["organs"], audit.organs, strict=True):
        entry["sentence"] = audit_sentence(row)
    return record


def audit_sentence(row: OrganAudit) -> str:
    """Say in words what a training that takes missing for background would learn wrong of an organ."""
    return " ".join(filter(None, (_wrong_labels(row), _drawn_in_part(row))))


def _wrong_labels(row: OrganAudit) -> str:
    present = row.annotated + row.missing + row.hidden
    gone = row.missing + row.hidden
    if row.alpha is None:
        return f"{row.organ}: declared absent in every case; there is nothing to learn but its absence."
    if gone == 0:
        lead = f"{row.organ}: annotated in every case where it is present ({present})"
        if row.empty:
            return f"{lead}, but without a voxel in {row.empty} of them."
        return f"{lead}." if row.gapped else f"{lead}; no method sees a wrong label of it."
    sizes = "".join(
        f", {share:.0%} of the {unit}"
        for share, unit in ((row.alpha_slices, "slices"), (row.alpha_voxels, "voxels"))
        if share is not None
    )
    lead = f"{row.organ}: {row.alpha:.0%} of the annotations are missing ({gone} of {present} cases{sizes});"
    if row.baseline.fn is None:
        return f"{lead} no case shows its size, so the wrong labels cannot be estimated."
    if row.baseline.fn == 0 and row.basis == "estimated":
        return f"{lead} what is drawn there is as large as it is elsewhere, so wrong labels cannot be estimated."
    if row.baseline.fn == 0:
        return f"{lead} yet no voxel of it lies there, so a background-for-missing training sees no wrong label of it."
    if row.baseline.tp == 0:
        return f"{lead} every label that a background-for-missing training sees of it is wrong ({row.basis})."
    ratio = row.baseline.fn / row.baseline.tp
    return (
        f"{lead} a background-for-missing training sees {_ratio(ratio)} wrong labels for every right one ({row.basis})."
    )


def _drawn_in_part(row: OrganAudit) -> str:
    """What shows that the organ was drawn in a part of its slices only, and what that means; often nothing."""
    sentences = []
    if row.partial:
        sentences.append(f"Drawn in part in {row.partial} of the {row.missing} cases in which it is declared missing.")
    if row.gapped:
        extent = row.gapped_drawn + row.gapped_empty
        sentences.append(
            f"In {len(row.gapped)} of the {row.annotated + row.hidden} cases in which it should be drawn wherever it "
            f"exists, {row.gapped_empty} of the {extent} slices between its first and its last do not show it "
            f"({listed(row.gapped)}): where it was drawn in part, every method learns wrong labels of it, unless you "
            "declare it missing there."
        )
    return " ".join(sentences)


def _cells(row: OrganAudit) -> tuple[str, ...]:
    base, smile = row.baseline, row.smile
    # What is drawn in cases that lack the annotation may be all of the organ there, or a part: FN are not known.
    unknown = base.fn == 0 and row.basis == "estimated" and row.missing + row.hidden > 0
    perfect = base.fn == 0 and not row.gapped and not unknown  # gaps: FN are more than were counted
    tp_fn = "inf" if perfect else "?" if not base.fn else f"{base.tp_fn:.2f}"
    return (
        row.organ,
        *("-" if share is None else f"{share:.2f}" for share in (row.alpha, row.alpha_slices, row.alpha_voxels)),
        "?" if row.beta is None else f"{row.beta:.2%}",
        _count(base.tp),
        "?" if unknown else _count(base.fn),
        "?" if unknown else _count(base.tn),
        tp_fn,
        _count(smile.tp),
        _count(smile.fn),
        _count(smile.tn),
        _count(smile.ambiguous),
        f"{row.epsilon:.2%}",
        f"{row.basis}, gaps" if row.gapped else row.basis,
    )


def _ratio(value: float) -> str:
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2g}"


def _count(value: int | None) -> str:
    """A voxel count in a few characters: 950, 12.3k, 4.56M, 7.89G."""
    if value is None:
        return "?"
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)
