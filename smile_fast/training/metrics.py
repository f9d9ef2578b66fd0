"""metrics.jsonl, the terminal's progress line, and TensorBoard where it was asked for."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from smile_fast.training.objectives import StepLoss
from smile_fast.training.run import Run
from smile_fast.training.schedule import Course, Position, default_epochs
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, reason
from smile_runtime.progress import Progress, clock

# Share of the default's epochs under which a budget is said to be short. The learning rate falls to 0 all the same, so
# that nothing else shows it. Measured on 24 phantoms (SMILE, half of the annotations, 2 seeds; mean Dice 0.756 after 20
# epochs): half of the epochs cost 3 points, a quarter 9, an eighth 16.
_SHORT = 0.5
_TICK = 1e-6  # seconds: less than any step takes, and never 0


@dataclass(frozen=True)
class Arriving:
    """A line whose losses are on their way to the host."""

    losses: StepLoss
    fetched: torch.cuda.Event | None
    position: Position
    lr: float
    rate: float  # steps a second

    @classmethod
    def of(cls, losses: StepLoss, position: Position, lr: float, rate: float) -> "Arriving":
        """Begin to fetch the losses: into pinned memory, behind the steps that are queued."""
        on_host = StepLoss(*(tensor.to("cpu", non_blocking=True) for tensor in losses))
        fetched = None
        if losses.loss.is_cuda:
            fetched = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            fetched.record(torch.cuda.current_stream(losses.loss.device))
        return cls(on_host, fetched, position, lr, rate)

    def wait(self) -> StepLoss:
        """The losses on the host."""
        if self.fetched is not None:
            self.fetched.synchronize()
        return self.losses


class MetricsLog:
    """Collects losses on the device and writes them every few steps.

    Args:
        run: whose metrics.jsonl is written.
        keep_until: lines of later steps are dropped: a resumed training writes them again.
        unwritten: so is the line of the losses of that step: the checkpoint holds them, it was saved before the line.
    """

    def __init__(self, run: Run, keep_until: int, *, unwritten: bool = False) -> None:
        self._run, self._config, self._organs = run, run.config, run.organs
        self._collected: list[tuple[StepLoss, float]] = []  # with the learning rate
        self._arriving: Arriving | None = None
        self._bar: Progress | None = None
        self._note = ""  # beside the bar
        self._written = (0, 0.0)  # steps and seconds of the round when a line was last written
        losses_until = keep_until - unwritten
        kept = [
            line
            for line in read_metrics(run)
            if line["iteration"] <= (keep_until if "validation" in line else losses_until)
        ]
        self._validated = max((line["iteration"] for line in kept if "validation" in line), default=-1)
        self._undone = any("undone" in line for line in kept)
        self._board = _tensorboard(run) if run.config.tensorboard else None
        self._path = run.metrics_path
        with atomic_path(self._path) as temporary:  # a kill in the middle must not cost the curve
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        with _writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def start_round(self, position: Position, course: Course) -> None:
        """Begin, or go on with, a round: its progress is shown as a part of the whole training's."""
        self._course, self._written = course, (position.step, position.seconds)
        method, number, last = self._config.method, position.round, self._config.last_round
        self._label = method if number == 0 else f"{method}, round {number}/{last}"
        unit = " s" if self._config.budget else ""
        self._note = ""
        self._bar = Progress(course.length, self._label, start=course.done(position), unit=unit)

    def add(self, loss: StepLoss, lr: float) -> None:
        """Take the loss of one step, which has no graph; nothing is read from the device yet."""
        self._collected.append((loss, lr))

    def show(self, position: Position) -> None:
        """Show how far the training is; nothing is read from the device."""
        if self._bar is not None:
            self._bar.advance(self._course.done(position), self._note)

    def pending(self) -> dict[str, Tensor]:
        """What was collected and not yet written, for the checkpoint: an interrupted training must not lose it."""
        if not self._collected:
            return {}
        steps, rates = zip(*self._collected, strict=True)
        tensors = {name: torch.stack([getattr(step, name) for step in steps]) for name in StepLoss._fields}
        return {**tensors, "lr": torch.tensor(rates, dtype=torch.float64)}

    def restore(self, pending: dict[str, Tensor], device: torch.device) -> None:
        """The inverse of `pending`."""
        if pending:
            steps = zip(*(pending[name].to(device) for name in StepLoss._fields), strict=True)
            self._collected = list(zip((StepLoss(*step) for step in steps), pending["lr"].tolist(), strict=True))

    def write_step(self, position: Position) -> None:
        """Write the mean of the collected losses as one line.

        From a GPU the numbers are fetched without a wait: their line is written with the next one, or when the log is
        flushed, whichever comes first.
        """
        steps, rates = zip(*self._collected, strict=True)
        losses = StepLoss(
            torch.stack([step.loss for step in steps]).mean(),
            torch.stack([step.sums for step in steps]).sum(dim=0),
            torch.stack([step.counts for step in steps]).sum(dim=0),
        )
        self._collected.clear()
        steps_before, seconds_before = self._written
        rate = (position.step - steps_before) / max(position.seconds - seconds_before, _TICK)
        self._written = (position.step, position.seconds)
        self._write_arrived()
        self._arriving = Arriving.of(losses, replace(position), rates[-1], rate)
        if self._arriving.fetched is None:
            self._write_arrived()

    def _write_arrived(self) -> None:
        """Write the line that waits for its numbers, if there is one."""
        if self._arriving is None:
            return
        arrived, self._arriving = self._arriving, None
        losses, position, rate = arrived.wait(), arrived.position, arrived.rate
        loss = losses.loss.item()
        if not math.isfinite(loss):
            raise InputError(
                f"{self._path.parent}: the loss became {loss} at step {position.total_steps}; train again in a new "
                "folder with a lower learning rate (--lr) or a limit of the gradient (--clip-norm)"
            )
        numbers = zip(self._organs, losses.sums.tolist(), losses.counts.tolist(), strict=True)
        line = {
            "iteration": position.total_steps,
            "round": position.round,
            "loss": loss,
            "lr": arrived.lr,
            "loss_per_organ": {organ: total / count for organ, total, count in numbers if count},
            "seconds": round(position.seconds, 2),
            "steps_per_second": round(rate, 3),
        }
        self._write(line)
        self._note = f"{rate:.3g} steps/s, loss {loss:.4f}"

    def write_validation(self, position: Position, dice: dict[str, float]) -> None:
        """Write the Dice of the validation cases as one line, unless there is one of this step."""
        if self._validated == position.total_steps:
            return
        self._validated = position.total_steps
        self._write_arrived()
        self._write({"iteration": position.total_steps, "round": position.round, "validation": dice})

    def write_undone(self, position: Position, dice: dict[str, float]) -> None:
        """Write that the weights are those from before the round again, and their Dice of the validation cases."""
        if not self._undone:
            self._undone = True
            line = {"iteration": position.total_steps, "round": position.round, "validation": dice, "undone": True}
            self._write(line)

    def end_round(self, position: Position) -> None:
        """Write what is left of the round, close its bar, and say how much was done; after the last round, in all."""
        if self._collected:
            self.write_step(position)
        self.flush()
        self._close_bar()
        if self._config.last_round:
            print(self._amount(self._label, position.step, position.seconds), file=sys.stderr)
        if position.round == self._config.last_round:
            self._end(position.total_steps)

    def flush(self) -> None:
        """Bring everything that was written to the disk; what is still on its way from the device is waited for."""
        self._write_arrived()
        with _writing(self._path):
            self._file.flush()

    def close(self) -> None:
        """Flush and close the files, end the terminal's line; a line that is on its way is written if it arrives."""
        with suppress(InputError, RuntimeError):  # after an error, which is the one to be told
            self._write_arrived()
        self._close_bar()
        with _writing(self._path):
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, line: dict[str, Any]) -> None:
        with _writing(self._path):
            self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name in ("loss", "lr"):
                if name in line:
                    self._board.add_scalar(name, line[name], line["iteration"])
            for name in ("loss_per_organ", "validation"):
                for organ, value in line.get(name, {}).items():
                    self._board.add_scalar(f"{name}/{organ}", value, line["iteration"])

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.note = self._note
            self._bar.close()
            self._bar = None

    def _amount(self, label: str, steps: int, seconds: float) -> str:
        epochs = f"{steps / self._course.steps_per_epoch:.3g} epochs"
        return f"{label}: {steps} steps, {epochs} in {clock(seconds)} ({steps / max(seconds, _TICK):.3g} steps/s)"

    def _end(self, steps: int) -> None:
        """Say what the whole training has done, in all processes that it took, and if its budget was too short."""
        config = self._config
        times = {line["round"]: line["seconds"] for line in read_metrics(self._run) if "seconds" in line}
        seconds = sum(times.values())
        label = f"{config.method}, all rounds" if config.last_round else config.method
        print(self._amount(label, steps, seconds), file=sys.stderr)
        epochs, wanted = steps / self._course.steps_per_epoch, default_epochs(config)
        if config.budget and epochs < _SHORT * wanted:
            rate = steps / max(seconds, _TICK)
            minutes = math.ceil(wanted * self._course.steps_per_epoch / rate / 60)
            print(
                f"warning: --budget {config.budget:g}s: it gave {epochs:.3g} epochs of the {wanted:g} that are the "
                f"default, rounds included, at {rate:.3g} steps/s; give about {minutes}m, or train a smaller network "
                "(--width)",
                file=sys.stderr,
            )


class SilentLog:
    """The log of a rank that writes none: the losses that it has are those that rank 0 writes."""

    def start_round(self, position: Position, course: Course) -> None:
        """Show nothing."""

    def add(self, loss: StepLoss, lr: float) -> None:
        """Keep nothing."""

    def show(self, position: Position) -> None:
        """Show nothing."""

    def pending(self) -> dict[str, Tensor]:
        """Nothing waits."""
        return {}

    def restore(self, pending: dict[str, Tensor], device: torch.device) -> None:
        """Go on from nothing."""

    def write_step(self, position: Position) -> None:
        """Write nothing."""

    def write_validation(self, position: Position, dice: dict[str, float]) -> None:
        """Write nothing."""

    def write_undone(self, position: Position, dice: dict[str, float]) -> None:
        """Write nothing."""

    def end_round(self, position: Position) -> None:
        """Say nothing."""

    def flush(self) -> None:
        """Nothing is on its way."""

    def close(self) -> None:
        """Close nothing."""


@dataclass(frozen=True)
class _Line:
    """What a line may hold: losses, or the Dice of the validation cases, once more if a round was undone."""

    iteration: int
    round: int | None = None
    loss: float | None = None
    lr: float | None = None
    loss_per_organ: dict[str, float] | None = None
    seconds: float | None = None
    steps_per_second: float | None = None
    validation: dict[str, float] | None = None
    undone: bool | None = None


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl; a last line that is damaged was cut off by a kill, and is left out.

    Raises:
        InputError: another line is no line of a training, or the file cannot be read.
    """
    path = run.metrics_path
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); make it readable") from None
    lines: list[dict[str, Any]] = []
    texts = content.splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            msgspec.json.decode(text, type=_Line)
            lines.append(json.loads(text))
        except (ValueError, RecursionError) as error:
            if number == len(texts):
                break
            raise InputError(
                f"{path}: line {number} is damaged ({error}); restore the file from a copy, or remove the line"
            ) from None
    return lines


def undone_rounds(run: Run) -> list[int]:
    """The rounds of a run that made it worse, and whose weights were given up; see `curriculum.held_out`.

    Raises:
        InputError: see `read_metrics`.
    """
    return [line["round"] for line in read_metrics(run) if line.get("undone")]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); free some space, or make it writable") from None


def _tensorboard(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard: the package tensorboard is not installed; install it, or leave the option out"
        ) from None
    return SummaryWriter(log_dir=str(run.path / "tensorboard"))
