"""metrics.jsonl, the terminal's progress line, and TensorBoard where it was asked for."""

import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from smile_fast.training.losses import StepLoss
from smile_fast.training.run import Run
from smile_runtime.errors import InputError

if TYPE_CHECKING:
    from smile_fast.training.loop import Pace, Position

_PLAIN_SECONDS = 10.0


class MetricsLog:
    """Collects losses on the device and writes them every few steps.

    Args:
        run: whose metrics.jsonl is written.
        keep_until: lines of later steps are dropped: a resumed training writes them again.
    """

    def __init__(self, run: Run, keep_until: int) -> None:
        self._organs, self._stages, self._method = run.organs, run.config.stages, run.config.method
        self._collected: list[StepLoss] = []
        self._printed_at = 0.0
        self._label, self._pace = "", None  # type: tuple[str, Pace | None]
        kept = [line for line in read_metrics(run) if line["iteration"] <= keep_until]
        try:
            self._file = run.metrics_path.open("w")
        except OSError as error:
            raise InputError(f"{run.metrics_path} cannot be written ({error.strerror}).") from None
        for line in kept:
            self._file.write(json.dumps(line) + "\n")
        self._board = _tensorboard(run) if run.config.tensorboard else None

    def start_stage(self, stage: int, pace: "Pace") -> None:
        """Name the stage for the terminal."""
        self._label = self._method if stage == 0 else f"{self._method}, round {stage} of {self._stages - 1}"
        self._pace = pace

    def add(self, loss: StepLoss) -> None:
        """Take the loss of one step; nothing is read from the device yet."""
        self._collected.append(StepLoss(loss.loss.detach(), loss.sums, loss.counts))

    def write_step(self, position: "Position", lr: float, progress: float) -> None:
        """Write the mean of the collected losses as one line."""
        loss = torch.stack([step.loss for step in self._collected]).mean().item()
        sums = torch.stack([step.sums for step in self._collected]).sum(dim=0).tolist()
        counts = torch.stack([step.counts for step in self._collected]).sum(dim=0).tolist()
        self._collected.clear()
        if not math.isfinite(loss):
            raise InputError(
                f"The loss became {loss} at step {position.total_steps}; lower the learning rate (--lr) and resume."
            )
        per_organ = {o: s / n for o, s, n in zip(self._organs, sums, counts, strict=True) if n}
        line = {
            "iteration": position.total_steps,
            "round": position.stage,
            "loss": loss,
            "lr": lr,
            "loss_per_organ": per_organ,
            "seconds": round(position.seconds, 2),
        }
        self._write(line)
        self._show(position, loss, progress)

    def write_validation(self, position: "Position", dice: dict[str, float]) -> None:
        """Write the Dice of the validation cases as one line."""
        self._write({"iteration": position.total_steps, "round": position.stage, "validation": dice})

    def end_stage(self, position: "Position") -> None:
        """Close the stage's progress line."""
        self.flush()
        end = "\n" if sys.stderr.isatty() else ""
        print(f"{end}{self._label}: {position.step} steps in {position.seconds:.0f} s", file=sys.stderr)

    def flush(self) -> None:
        """Bring everything that was written to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name in ("loss", "lr"):
                if name in line:
                    self._board.add_scalar(name, line[name], line["iteration"])
            for name in ("loss_per_organ", "validation"):
                for organ, value in line.get(name, {}).items():
                    self._board.add_scalar(f"{name}/{organ}", value, line["iteration"])

    def _show(self, position: "Position", loss: float, progress: float) -> None:
        now = time.monotonic()
        tty = sys.stderr.isatty()
        if now - self._printed_at < (0.2 if tty else _PLAIN_SECONDS):
            return
        self._printed_at = now
        left = position.seconds * (1 - progress) / progress if progress else 0.0
        text = f"{self._label}: {progress:4.0%}  step {position.step}  loss {loss:.4f}  {_clock(left)} left"
        print(f"\r{text}\x1b[K" if tty else text, end="" if tty else "\n", file=sys.stderr, flush=True)


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl; a line that was cut off by a kill is left out."""
    if not run.metrics_path.exists():
        return []
    lines = []
    for text in run.metrics_path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _tensorboard(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboard; install it, or leave the option out.") from None
    return SummaryWriter(log_dir=str(run.path / "tensorboard"))
