"""metrics.jsonl, the terminal's progress line, and TensorBoard where it was asked for."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smile_fast.training.objectives import StepLoss
from smile_fast.training.run import Run
from smile_fast.training.schedule import Position
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, reason
from smile_runtime.progress import clock

_PLAIN_SECONDS = 10.0


class MetricsLog:
    """Collects losses on the device and writes them every few steps.

    Args:
        run: whose metrics.jsonl is written.
        keep_until: lines of later steps are dropped: a resumed training writes them again.
    """

    def __init__(self, run: Run, keep_until: int) -> None:
        self._organs, self._last_round, self._method = run.organs, run.config.last_round, run.config.method
        self._collected: list[tuple[StepLoss, float]] = []  # with the learning rate
        self._printed_at = -math.inf  # the first line comes at once, however young the clock is
        self._label = ""
        kept = [line for line in read_metrics(run) if line["iteration"] <= keep_until]
        self._board = _tensorboard(run) if run.config.tensorboard else None
        self._path = run.metrics_path
        with atomic_path(self._path) as temporary:  # a kill in the middle must not cost the curve
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        with _writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def start_round(self, number: int) -> None:
        """Name the round for the terminal."""
        self._label = self._method if number == 0 else f"{self._method}, round {number} of {self._last_round}"

    def add(self, loss: StepLoss, lr: float) -> None:
        """Take the loss of one step; nothing is read from the device yet."""
        self._collected.append((StepLoss(loss.loss.detach(), loss.sums, loss.counts), lr))

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

    def write_step(self, position: Position, progress: float) -> None:
        """Write the mean of the collected losses as one line."""
        steps, rates = zip(*self._collected, strict=True)
        loss = torch.stack([step.loss for step in steps]).mean().item()
        sums = torch.stack([step.sums for step in steps]).sum(dim=0).tolist()
        counts = torch.stack([step.counts for step in steps]).sum(dim=0).tolist()
        self._collected.clear()
        if not math.isfinite(loss):
            raise InputError(
                f"{self._path.parent}: the loss became {loss} at step {position.total_steps}; train again in a new "
                "folder with a lower learning rate (--lr) or a limit of the gradient (--clip-norm)"
            )
        per_organ = {o: s / n for o, s, n in zip(self._organs, sums, counts, strict=True) if n}
        line = {
            "iteration": position.total_steps,
            "round": position.round,
            "loss": loss,
            "lr": rates[-1],
            "loss_per_organ": per_organ,
            "seconds": round(position.seconds, 2),
        }
        self._write(line)
        self._show(position, loss, progress)

    def write_validation(self, position: Position, dice: dict[str, float]) -> None:
        """Write the Dice of the validation cases as one line."""
        self._write({"iteration": position.total_steps, "round": position.round, "validation": dice})

    def end_round(self, position: Position) -> None:
        """Write what is left of the round and close its progress line."""
        if self._collected:
            self.write_step(position, 1.0)
        self.flush()
        end = "\n" if sys.stderr.isatty() else ""
        print(f"{end}{self._label}: {position.step} steps in {position.seconds:.0f} s", file=sys.stderr)

    def flush(self) -> None:
        """Bring everything that was written to the disk."""
        with _writing(self._path):
            self._file.flush()

    def close(self) -> None:
        """Flush and close the files."""
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

    def _show(self, position: Position, loss: float, progress: float) -> None:
        now = time.monotonic()
        tty = sys.stderr.isatty()
        if now - self._printed_at < (0.2 if tty else _PLAIN_SECONDS):
            return
        self._printed_at = now
        left = position.seconds * (1 - progress) / progress if progress else 0.0
        text = f"{self._label}: {progress:4.0%}  step {position.step}  loss {loss:.4f}  {clock(left)} left"
        print(f"\r{text}\x1b[K" if tty else text, end="" if tty else "\n", file=sys.stderr, flush=True)


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl; a line that was cut off by a kill is left out."""
    if not run.metrics_path.exists():
        return []
    try:
        content = run.metrics_path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{run.metrics_path}: cannot be read ({reason(error)}); make it readable") from None
    lines: list[dict[str, Any]] = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("iteration"), int):
            break
        lines.append(line)
    return lines


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
