"""Which pseudo-labels a human should look at first, and why; and what grows from round to round.

Every reason has a weight, in doublings where it is about a volume; a pair is ranked by the sum of its reasons.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smile_fast.report.volumes import millilitres, range_words
from smile_fast.training.curriculum.findings import PairRow, RoundRow
from smile_fast.training.curriculum.growth import growth_warnings
from smile_fast.training.curriculum.ranges import OrganRange
from smile_runtime.io.files import atomic_path

HEADER = ("run", "round", "case", "organ", "weight", "found_ml", "annotated_low_ml", "annotated_high_ml", "why")
MARGIN = 1.25  # how far outside of a few patients' range one more patient may be without being named
GROWN = 1.25  # times as many candidates as in the round before
GROWTH = 0.5  # weight of a doubling since the round before; up to the range it is no reason
NOT_FOUND = 2.0  # weight of an organ that every annotated patient has and the round does not find
FARTHEST = 5.0  # weight of a volume that is 32 times too large or too small, or more
DROPPED = 0.2  # share of the selected voxels that went to other organs
DOUBT = 0.75  # mean probability below which a network doubts what it selected; 0.5 is a guess, and none is lower
SECOND_PIECE = 0.2  # share of the largest piece that makes another one large


@dataclass(frozen=True)
class Finding:
    """A pair to look at.

    Attributes:
        pair: what the round found. annotated: what annotated cases have of the organ.
        reasons: (weight, sentence), heaviest first.
    """

    pair: PairRow
    annotated: OrganRange
    reasons: tuple[tuple[float, str], ...]

    @property
    def weight(self) -> float:
        """Sum of the weights of the reasons."""
        return sum(weight for weight, _ in self.reasons)

    @property
    def why(self) -> str:
        """The reasons in words."""
        return "; ".join(sentence for _, sentence in self.reasons)


def review_first(pairs: Sequence[PairRow], ranges: Mapping[str, OrganRange]) -> list[Finding]:
    """Rank the pairs that there is a reason to look at, heaviest first; ties in the order of round, case and organ.

    Args:
        pairs: of one round or several.
        ranges: what annotated cases have, by organ.
    """
    findings = []
    for pair in pairs:
        reasons = sorted(_reasons(pair, ranges[pair.organ]), key=lambda reason: -reason[0])
        if reasons:
            findings.append(Finding(pair, ranges[pair.organ], tuple(reasons)))
    return sorted(findings, key=lambda f: (-f.weight, f.pair.number, f.pair.case, f.pair.organ))


def growth_sentences(rows: Sequence[RoundRow], ranges: Mapping[str, OrganRange], growth: float) -> list[str]:
    """Say, as `train` did, which organs' candidates grow from round to round or exceed those of annotated cases.

    Args:
        rows: the rounds of one run.
        ranges: what annotated cases have, by organ.
        growth: factor from which on candidates grow.
    """
    rounds: dict[int, dict[str, float]] = {}
    for row in rows:
        rounds.setdefault(row.number, {})[row.organ] = float(np.mean(row.volumes_ml))
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in growth_warnings(rounds, ranges, growth)]


def review_csv(findings: Mapping[str, Sequence[Finding]]) -> str:
    """The findings of runs as a table, a line a pair.

    Args:
        findings: run name -> findings in their order.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for run, found in findings.items():
        for finding in found:
            pair, annotated = finding.pair, finding.annotated
            volumes = (pair.candidates_ml, annotated.low_ml, annotated.high_ml)
            writer.writerow(
                (
                    run,
                    pair.number,
                    pair.case,
                    pair.organ,
                    f"{finding.weight:.2f}",
                    *(f"{volume:.2f}" for volume in volumes),
                    finding.why,
                )
            )
    return text.getvalue()


def write_review(path: Path, findings: Mapping[str, Sequence[Finding]]) -> None:
    """Write `review_csv` to a file, atomically.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_path(path) as target:
        target.write_text(review_csv(findings), encoding="utf-8")


def _reasons(pair: PairRow, annotated: OrganRange) -> Iterator[tuple[float, str]]:
    yield from _volume_reason(pair, annotated)
    if pair.before and pair.candidates > GROWN * pair.before and _outgrows(pair, annotated):
        times = pair.candidates / pair.before
        yield (
            GROWTH * min(FARTHEST, math.log2(times)),
            f"{times:.1f} times as much as the {millilitres(pair.before_ml or 0.0)} ml of the round before",
        )
    dropped = 1 - pair.kept / pair.selected if pair.selected else 0.0
    if dropped >= DROPPED:
        yield dropped, f"{dropped:.0%} of the selected voxels went to another organ that wanted them, too"
    if pair.confidence is not None and pair.confidence < DOUBT:
        yield (
            2 * (1 - pair.confidence),
            f"low mean confidence: the network gives its pseudo-labels a probability of {pair.confidence:.2f} on "
            "average, where 0.50 is a guess",
        )
    if pair.second_piece >= SECOND_PIECE:
        yield pair.second_piece, f"in pieces: the second has {pair.second_piece:.0%} of the largest's voxels"


def _outgrows(pair: PairRow, annotated: OrganRange) -> bool:
    """Whether a pair grows although it was as large as annotated cases are, or beyond them."""
    return (pair.before_ml or 0.0) > annotated.low_ml or pair.candidates_ml > annotated.high_ml


def _volume_reason(pair: PairRow, annotated: OrganRange) -> Iterator[tuple[float, str]]:
    """Outside of the range of annotated cases; an organ that some of them lack may be lacking."""
    if not annotated.cases:
        return
    found, have = pair.candidates_ml, f"annotated cases have {range_words(annotated)} ml"
    if not pair.candidates:
        if not annotated.empty:
            yield NOT_FOUND, f"nothing found; {have}"
    elif found > MARGIN * annotated.high_ml:
        yield (
            min(FARTHEST, math.log2(found / annotated.high_ml)),
            f"{millilitres(found)} ml is more than expected: {have}",
        )
    elif found < annotated.low_ml / MARGIN:
        yield (
            min(FARTHEST, math.log2(annotated.low_ml / found)),
            f"{millilitres(found)} ml is less than expected: {have}",
        )
