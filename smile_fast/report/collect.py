"""Run folders to plain records: what the page says is decided elsewhere."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smile_fast.data.annotations import Declarations
from smile_fast.data.store import CASES, INDEX
from smile_fast.evaluation import SPLITS, Evaluation, read_evaluations, score_file
from smile_fast.supervision import State
from smile_fast.training.curriculum.findings import PairRow, RoundRow, read_pairs, round_rows
from smile_fast.training.curriculum.ranges import OrganRange, annotated_ranges
from smile_fast.training.metrics import read_metrics
from smile_fast.training.rounds import StoredRound, existing_rounds, open_round
from smile_fast.training.run import Run, opened
from smile_fast.training.run_record import CONFIG, ENVIRONMENT, Environment, read_environment
from smile_runtime.errors import InputError
from smile_runtime.io.files import refuse_overwrite

_RUN_FILES = (
    CONFIG,
    "annotations.csv",
    ENVIRONMENT,
    "metrics.jsonl",
    "checkpoint.safetensors",
    "checkpoint.previous.safetensors",
    "model.safetensors",
    "audit.json",
    *(
        Path(score_file(split, of_predictions=other)).with_suffix(suffix).name
        for split in SPLITS
        for other in (False, True)
        for suffix in (".json", ".csv")
    ),
)


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, iteration: int, value: float | None) -> None:
        """Append a point; what was not measured leaves no point."""
        if value is not None:
            self.iterations.append(iteration)
            self.values.append(float(value))


@dataclass(frozen=True)
class Curves:
    """metrics.jsonl as lines: the loss, the loss and the validation Dice per organ, and where rounds began."""

    loss: Curve
    organ_loss: dict[str, Curve]
    validation: dict[str, Curve]
    round_starts: dict[int, int]  # round -> first iteration of it that was recorded
    iterations: int
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report shows of one run, pictures apart.

    `stored` holds the finished rounds by number, `rounds` and `pairs` what they found by organ and by case, `ranges`
    how large each organ is where it is annotated (empty without a round), `evaluations` the scores by split, and
    `evaluation` those of the split that cards and pictures show, which is the same for all runs of a page.
    """

    name: str
    run: Run
    states: Declarations
    curves: Curves
    stored: dict[int, StoredRound]
    rounds: tuple[RoundRow, ...]
    pairs: tuple[PairRow, ...]
    ranges: dict[str, OrganRange]
    evaluations: dict[str, Evaluation]
    evaluation: Evaluation | None
    environment: Environment | None

    @property
    def rounds_kept(self) -> dict[str, int]:
        """Pseudo-labels that the last round kept, per training case."""
        if not self.rounds:
            return {}
        cases = self.stored[max(row.number for row in self.rounds)].cases
        return {case: sum(count["kept"] for count in organs.values()) for case, organs in cases.items()}

    def state_counts(self, organ: str) -> dict[str, int]:
        """Count the training cases by the organ's declared state."""
        states = [self.states[case][organ] for case in self.run.cases("train")]
        return {state.value: states.count(state) for state in State}


def open_runs(paths: Sequence[Path], store: Path | None, held: ExitStack) -> list[Run]:
    """Open the runs of a page.

    Args:
        paths: run folders.
        store: where the store of all of them is now; see `opened`.
        held: ends with the work on them.

    Raises:
        InputError: no run, one given twice, or no store of it at `store`.
    """
    resolved = [Path(path).resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise InputError(f"{path}: given twice; name every run once")
    runs: list[Run] = []
    for path in resolved:
        runs.append(held.enter_context(opened(path, runs[0].store if store is not None and runs else store)))
    return runs


def collect(runs: Sequence[Run]) -> list[RunRecord]:
    """Read the files of runs; names that two of them share get the parent folder in front.

    Raises:
        InputError: a file cannot be read.
    """
    names = [run.path.name for run in runs]
    records = [
        _collect_run(run, name if names.count(name) == 1 else f"{run.path.parent.name}/{name}")
        for run, name in zip(runs, names, strict=True)
    ]
    shown = next((split for split in SPLITS if any(split in record.evaluations for record in records)), None)
    return [replace(record, evaluation=record.evaluations.get(shown)) for record in records] if shown else records


def check_output(out: Path, runs: Sequence[Run]) -> None:
    """Refuse a page that would replace a file of a run or of its store; an older page is no such file.

    Raises:
        InputError: it would.
    """
    for run in runs:
        refuse_overwrite(out, (run.path / name for name in _RUN_FILES))
        refuse_overwrite(out, run.rounds_path.rglob("*"))
        refuse_overwrite(out, [run.store_path / INDEX, *(run.store_path / CASES).rglob("*")])


def _collect_run(run: Run, name: str) -> RunRecord:
    stored = {number: open_round(run.rounds_path, number) for number in existing_rounds(run.rounds_path)}
    states = run.declarations()
    rounds, pairs = _rounds(run, stored, states)
    return RunRecord(
        name=name,
        run=run,
        states=states,
        curves=_curves(run),
        stored=stored,
        rounds=rounds,
        pairs=pairs,
        ranges=annotated_ranges(run.view("train")) if stored else {},
        evaluations=read_evaluations(run.path),
        evaluation=None,
        environment=read_environment(run.path),
    )


def _curves(run: Run) -> Curves:
    try:
        return curves_of(read_metrics(run), run.organs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{run.metrics_path}: a line is no record of training ({error!r}); restore it from a copy, or remove it"
        ) from None


def curves_of(lines: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> Curves:
    """Turn the records of metrics.jsonl into lines of a chart."""
    loss, iterations = Curve(), 0
    organ_loss = {organ: Curve() for organ in organs}
    validation = {organ: Curve() for organ in organs}
    starts: dict[int, int] = {}
    seconds: dict[int, float] = {}  # each round counts from 0
    for line in lines:
        iteration, number = int(line["iteration"]), int(line["round"])
        iterations = max(iterations, iteration)
        starts.setdefault(number, iteration)
        seconds[number] = line.get("seconds", seconds.get(number, 0.0))
        loss.add(iteration, line.get("loss"))
        for name, found in (("loss_per_organ", organ_loss), ("validation", validation)):
            for organ, value in line.get(name, {}).items():
                found[organ].add(iteration, value)
    starts.pop(0, None)
    return Curves(loss, organ_loss, validation, starts, iterations, sum(seconds.values()))


def _rounds(
    run: Run, stored: Mapping[int, StoredRound], states: Declarations
) -> tuple[tuple[RoundRow, ...], tuple[PairRow, ...]]:
    """Read every finished round, and compare it with what is drawn but hidden."""
    rows: list[RoundRow] = []
    pairs: list[PairRow] = []
    for number, this in stored.items():
        own, background = read_pairs(run.store, states, this, stored.get(number - 1), look_at_hidden=True)
        rows += round_rows(this, own, background, run.organs)
        pairs += own
    return tuple(rows), tuple(pairs)
