"""The relabelling rounds of a page: one block a run, with its tables, charts, warnings and what to review first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from smile_fast.report.collect import RunRecord
from smile_fast.report.figures import volume_chart
from smile_fast.report.review import Finding, growth_sentences, review_first
from smile_fast.report.volumes import millilitres, range_words
from smile_fast.training.curriculum.findings import RoundRow
from smile_fast.training.curriculum.ranges import OrganRange
from smile_fast.training.metrics import undone_rounds


@dataclass(frozen=True)
class VolumeChart:
    """How much a run's rounds found of one organ: SVG as a data URI, and what to see in it."""

    organ: str
    picture: str
    alternative: str
    sentence: str


@dataclass(frozen=True)
class RoundBlock:
    """The rounds of one run.

    Attributes:
        record: the run. warnings: what grows, is larger than in annotated cases, or was undone.
        charts: one an organ. review: (round, what to look at, heaviest first), the newest round first.
        background: whether some round has pseudo-background.
    """

    record: RunRecord
    warnings: list[str]
    charts: list[VolumeChart]
    review: list[tuple[int, list[Finding]]]
    background: bool


def round_blocks(records: Sequence[RunRecord], colours: Mapping[str, str]) -> list[RoundBlock]:
    """One block for each run that has a round."""
    return [
        RoundBlock(
            record=record,
            warnings=[
                *growth_sentences(record.rounds, record.ranges, record.run.config.brakes.growth),
                *_undone(record),
            ],
            charts=list(_charts(record, colours)),
            review=_by_round(record),
            background=any(row.background for row in record.rounds),
        )
        for record in records
        if record.rounds
    ]


def _undone(record: RunRecord) -> list[str]:
    return [
        f"Round {number} was undone: it made the validation cases' Dice worse, and the network is that from before it."
        for number in undone_rounds(record.run)
    ]


def findings_of(record: RunRecord) -> list[Finding]:
    """What to review of a run, the newest round first, and of each the heaviest first."""
    return [finding for _, found in _by_round(record) for finding in found]


def _by_round(record: RunRecord) -> list[tuple[int, list[Finding]]]:
    return [
        (number, review_first([pair for pair in record.pairs if pair.number == number], record.ranges))
        for number in sorted(record.stored, reverse=True)
    ]


def _charts(record: RunRecord, colours: Mapping[str, str]) -> Iterator[VolumeChart]:
    for organ in record.run.organs:
        rows = [row for row in record.rounds if row.organ == organ]
        if rows:
            annotated = record.ranges[organ]
            yield VolumeChart(
                organ=organ,
                picture=volume_chart(rows, annotated, colours[organ]),
                alternative=f"{record.name}: volume of the candidates of {organ} in every round",
                sentence=_what_to_see(rows, annotated),
            )


def _what_to_see(rows: Sequence[RoundRow], annotated: OrganRange) -> str:
    """One chart in words: how much the rounds find, what annotated cases have, and what the difference means."""
    organ = rows[0].organ
    found = ", ".join(f"round {row.number} finds {millilitres(row.median_ml)} ml" for row in rows)
    sentence = f"{found[0].upper()}{found[1:]} of {organ} in the median case"
    if not annotated.cases:
        return f"{sentence}; no case with an annotated {organ} says how much there should be."
    sentence += f"; annotated cases ({annotated.cases}) have {range_words(annotated)} ml (the band)."
    last = rows[-1].median_ml
    if last > annotated.high_ml:
        return f"{sentence} The line ends above the band: the network finds more {organ} than annotated patients have."
    if last < annotated.low_ml:
        return f"{sentence} The line ends below the band: the network finds less {organ} than annotated patients have."
    return f"{sentence} The line ends inside the band: the network finds as much {organ} as annotated patients have."
