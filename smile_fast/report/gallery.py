"""Which cases and slices are shown, and what is drawn on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from smile_fast.evaluation import Outcome
from smile_fast.models import Segmenter
from smile_fast.report.collect import RunRecord
from smile_fast.report.palette import BACKGROUND, PSEUDO, TRUTH
from smile_fast.report.pictures import Layer, draw, frame_of, informative_slice
from smile_fast.supervision import State, visible_lut
from smile_fast.training.inference import predict_labels
from smile_runtime.label_map import ORGAN_BITS, PSEUDO_BACKGROUND, PSEUDO_BIT, VOID
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.preprocessing import BodyBox

UNSCORED_CASES = 3
NAMED_SCORES = 4


@dataclass(frozen=True)
class Panel:
    """One picture and what stands under it."""

    title: str
    note: str
    picture: str  # data URI
    alternative: str  # what a screen reader says


@dataclass(frozen=True)
class Row:
    """Pictures of one slice side by side."""

    title: str
    note: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Choice:
    """A case to show, why, and the organ whose largest slice it is (None: the slice that shows most organs)."""

    case: str
    why: str
    organ: str | None = None


def prediction_rows(records: Sequence[RunRecord], colours: Mapping[str, str]) -> list[Row]:
    """Show the best, the median and the worst case and the worst (case, organ) pair, all runs side by side.

    Truth is that of the first run's store. Without an evaluation the first cases of a split are shown.
    """
    painters = [Painter(record, colours) for record in records]
    rows: dict[tuple[str, int], Row] = {}
    for choice in choose_cases(records):
        truth = painters[0].truth(choice.case)
        index = painters[0].slice_for(choice, truth)
        if (choice.case, index) not in rows:
            rows[choice.case, index] = _prediction_row(painters, choice, index, truth[index])
    return list(rows.values())


class Painter:
    """What one run's pictures need, opened once."""

    def __init__(self, record: RunRecord, colours: Mapping[str, str]) -> None:
        self.record, self.colours = record, colours
        self.organs, self.window = record.run.organs, record.run.config.model.window
        self.store = record.run.store

    @cached_property
    def model(self) -> Segmenter | None:
        """The run's network, loaded for the first prediction; None when the run was not trained."""
        return self.record.run.load_model() if self.record.run.model_path.exists() else None

    def truth(self, case: str) -> NDArray[np.uint8]:
        """Human labels [D, H, W], hidden ones included."""
        return self.store.read_labels(case)

    def drawn(self, case: str) -> NDArray[np.bool_]:
        """Which organs [K] have a complete truth in a case."""
        return np.array([self.record.states[case][organ] != State.MISSING for organ in self.organs])

    def slice_for(self, choice: Choice, truth: NDArray[np.uint8]) -> int:
        """Pick the slice of a case that shows what it was chosen for."""
        counts = slice_histograms(truth)[:, 1 : len(self.organs) + 1] * self.drawn(choice.case)
        if choice.organ is None:
            return informative_slice(counts)
        return int(np.argmax(counts[:, self.organs.index(choice.organ)]))

    def fills(self, labels: NDArray[np.uint8]) -> list[Layer]:
        """Every organ of a slice [H, W] filled with its colour."""
        return [
            Layer(labels == value, fill=self.colours[organ])
            for value, organ in enumerate(self.organs, start=1)
            if (labels == value).any()
        ]

    def predict(self, case: str, index: int) -> NDArray[np.uint8] | None:
        """Predict one slice [H, W] from it and its neighbours, as if it were predicted with the whole volume."""
        if self.model is None:
            return None
        reach = self.record.run.config.model.channels // 2
        first = max(0, index - reach)
        slices = self.store.read_image(case, slice(first, index + reach + 1))
        whole = self.store.body_box(case, self.record.run.config.body)
        shown = (index - first,) if index in whole.slices else ()
        box = BodyBox(len(slices), shown, whole.rows, whole.columns)
        spacing = self.store.cases[case].spacing
        labels: NDArray[np.uint8] = predict_labels(self.model, slices, box=box, spacing=spacing)[index - first]
        return labels


def _prediction_row(painters: Sequence[Painter], choice: Choice, index: int, truth: NDArray[np.uint8]) -> Row:
    reference, case = painters[0], choice.case
    info = reference.store.cases[case]
    hu = reference.store.read_image(case, [index])[0]
    frame, where = frame_of(hu, info.spacing[1:], len(painters) + 1), f"{case}, slice {index + 1}"
    drawn = reference.drawn(case)
    undrawn = [organ for organ, there in zip(reference.organs, drawn, strict=True) if not there]
    note = f"not drawn: {', '.join(undrawn)}" if undrawn else ""
    outlines = [
        Layer(truth == value, outline=TRUTH)
        for value, there in enumerate(drawn, start=1)
        if there and (truth == value).any()
    ]
    picture = draw(hu, reference.window, frame, reference.fills(truth))
    panels = [Panel("Truth", note, picture, f"{where}: human labels")]
    if len(painters) <= 2:  # there is room
        panels.insert(0, Panel("CT", "", draw(hu, reference.window, frame), f"{where}: CT"))
    for painter in painters:
        there = painter.store.cases.get(case)
        prediction = painter.predict(case, index) if there is not None and there.shape == info.shape else None
        if prediction is not None:
            layers = painter.fills(np.where(truth == VOID, 0, prediction).astype(np.uint8))
            name = painter.record.name
            picture = draw(hu, reference.window, frame, [*layers, *outlines])
            alternative = f"{where}: prediction of {name}, truth outlined"
            panels.append(Panel(name, _dice_note(painter.record, case), picture, alternative))
    return Row(f"{choice.why}: {case}", f"slice {index + 1} of {info.shape[0]}", tuple(panels))


def choose_cases(records: Sequence[RunRecord]) -> list[Choice]:
    """Pick the cases of the prediction pictures; the last run's lowest pair stands for its failures."""
    known = records[0].run.store.cases
    evaluated = [record for record in records if record.evaluation is not None and record.evaluation.worst]
    if not evaluated:
        splits = [records[0].run.cases(split) for split in ("test", "validation", "train")]
        return [Choice(case, "Case") for case in next(filter(None, splits), [])[:UNSCORED_CASES]]
    by_case: dict[str, list[float]] = {}
    for record in evaluated:
        for pair in record.evaluation.pairs if record.evaluation else ():
            if pair.dice is not None and pair.case in known:
                by_case.setdefault(pair.case, []).append(pair.dice)
    ranked = sorted(by_case, key=lambda case: (-float(np.mean(by_case[case])), case))
    places = {"Best case": 0, "Worst case": len(ranked) - 1, "Median case": len(ranked) // 2} if ranked else {}
    chosen: dict[str, str] = {ranked[0]: "Only case"} if len(ranked) == 1 else {}
    for why, place in places.items():
        chosen.setdefault(ranked[place], why)
    choices = [Choice(case, chosen[case]) for case in ranked if case in chosen]
    last = evaluated[-1]
    for pair in last.evaluation.worst if last.evaluation else ():
        if pair.case in known and pair.outcome in (Outcome.SCORED, Outcome.MISSED):
            return [*choices, Choice(pair.case, f"Lowest Dice of {last.name}, {pair.organ}", pair.organ)]
    return choices


def pseudo_rows(record: RunRecord, colours: Mapping[str, str]) -> list[Row]:
    """Show the pseudo-labels of every round on the training cases that got most and the median number of them."""
    kept = {case: count for case, count in record.rounds_kept.items() if count}
    ranked = sorted(kept, key=lambda case: (-kept[case], case))
    cases = list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2]])) if ranked else []
    painter = Painter(record, colours)
    return [_pseudo_row(painter, case) for case in cases]


def _pseudo_row(painter: Painter, case: str) -> Row:
    record, organs = painter.record, painter.organs
    gammas = {row.number: row.gamma for row in record.rounds}
    overlays = {number: record.stored[number].pseudo_labels(case) for number in gammas}
    last = overlays[max(gammas)]
    counts = slice_histograms(np.bitwise_and(last, ORGAN_BITS, dtype=np.uint8))  # [D, 256]
    index = informative_slice(counts[:, 1 : len(organs) + 1])
    info = painter.store.cases[case]
    (hu,), (truth,) = painter.store.read_image(case, [index]), painter.store.read_labels(case, [index])
    states = [record.states[case][organ] for organ in organs]
    frame, where = frame_of(hu, info.spacing[1:], len(gammas) + 1), f"{case}, slice {index + 1}"
    visible = painter.fills(visible_lut(states)[truth])
    hidden = [
        Layer(truth == value, outline=TRUTH)
        for value, state in enumerate(states, start=1)
        if state == State.HIDDEN and (truth == value).any()
    ]
    without = [organ for organ, state in zip(organs, states, strict=True) if state in (State.MISSING, State.HIDDEN)]
    picture = draw(hu, painter.window, frame, visible)
    note = f"not annotated: {', '.join(without)}"
    panels = [Panel("Human labels that training saw", note, picture, f"{where}: visible human labels")]
    for number, overlay in overlays.items():
        pseudo = overlay[index]  # [H, W]
        found = [
            Layer(pseudo == (PSEUDO_BIT | value), fill=PSEUDO, outline=painter.colours[organ])
            for value, organ in enumerate(organs, start=1)
            if (pseudo == (PSEUDO_BIT | value)).any()
        ]
        if (pseudo == PSEUDO_BACKGROUND).any():
            found.insert(0, Layer(pseudo == PSEUDO_BACKGROUND, fill=BACKGROUND))
        picture = draw(hu, painter.window, frame, [*visible, *found, *hidden])
        note = f"{np.count_nonzero(overlay & ORGAN_BITS):,} pseudo-labelled voxels in the volume".replace(",", "\u2009")
        title = f"Round {number}, γ = {gammas[number]:.2f}"
        panels.append(Panel(title, note, picture, f"{where}: pseudo-labels of round {number}"))
    return Row(f"{record.name}: {case}", f"slice {index + 1} of {info.shape[0]}", tuple(panels))


def _dice_note(record: RunRecord, case: str) -> str:
    """Write the volume's Dice under its picture: organ by organ as long as it fits."""
    pairs = record.evaluation.pairs if record.evaluation is not None else ()
    scores = {pair.organ: pair.dice for pair in pairs if pair.case == case and pair.dice is not None}
    if not scores:
        return ""
    if len(scores) > NAMED_SCORES:
        return f"mean Dice of the volume {np.mean(list(scores.values())):.2f}"
    return "Dice of the volume: " + ", ".join(f"{organ} {dice:.2f}" for organ, dice in scores.items())
