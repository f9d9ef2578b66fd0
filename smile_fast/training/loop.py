"""The training loop, from the first step of the first stage to the last step of the last round."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.supervision import Policy
from smile_fast.training.augment import Augmentation
from smile_fast.training.batches import Batch, BatchSource
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.metrics import MetricsLog
from smile_fast.training.objectives import Loss, MaskedHeads, MissingIsBackground, StepLoss
from smile_fast.training.optimization import (
    WeightAverage,
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from smile_fast.training.relabel import Round, existing_rounds, relabel, round_totals
from smile_fast.training.run import Run, load_model_state
from smile_fast.training.schedule import Pace, Position, learning_rate, step_seed
from smile_fast.training.validation import validate
from smile_fast.training.view import TrainingView
from smile_fast.training.weights import load_weights, weights_file
from smile_runtime.errors import InputError

_CHECKPOINT_SECONDS = 120.0
_LOG_STEPS = 10


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM or Ctrl-C) and has saved where it was.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class Stop(threading.Event):
    """The wish to stop, and the number of the signal that brought it."""

    number = int(signal.SIGTERM)

    def receive(self, number: int, _: object = None) -> None:
        """Handle a signal; of several the first one counts."""
        if not self.is_set():
            self.number = number
        self.set()

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.is_set():
            raise Interrupted(self.number)


def train(run: Run, *, weights: Path | None = None, resume: bool = False, device: torch.device) -> None:
    """Train a run to its end.

    On the CPU an interrupted and resumed training gives the same bits as one that was left alone (with the
    same number of threads, and `epochs` rather than `budget`).

    Args:
        run: a new run, or one to go on with.
        weights: what to start from: a run folder, a file in it, or a converted checkpoint.
        resume: go on from the run's checkpoint.
        device: where to train.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, when the checkpoint is on disk.
        InputError: for a damaged checkpoint, unusable weights, or a disk that cannot be written.
    """
    config = run.config
    torch.manual_seed(config.seed)
    human_view = TrainingView(run.store(), run.declarations(), run.cases("train"), body=run.config.body)
    model = Segmenter(run.model_config)
    model.set_prior(human_view.prior(missing_is_background=config.method == "baseline"))
    if weights is not None and not resume:
        file = weights_file(weights)
        print(f"weights: {load_weights(model, file)}")
        run.record_weights(file)

    trainer = Trainer(run, model, device)
    pending = trainer.restore() if resume else {}
    trainer.metrics = MetricsLog(run, keep_until=trainer.position.total_steps)
    trainer.metrics.restore(pending, device)
    with stop_signals() as trainer.stop, closing(trainer.metrics):
        if weights is not None and not resume:
            trainer.save(trainer.position)  # whoever resumes before the first checkpoint starts from the same weights
        for stage in range(trainer.position.stage, config.stages):
            trainer.start_stage(stage)
            view = human_view if stage == 0 else trainer.relabelled(human_view)
            trainer.train_stage(view)
    with trainer.final_weights():
        final = {"model": dict(model.state_dict())}
        Checkpoint(final, {"total_steps": trainer.position.total_steps}).save(run.model_path)


class Trainer:
    """A network in training: what changes from step to step, and how it is saved.

    Args:
        run: folder and settings. model: the network with its start weights. device: where to train.
    """

    metrics: MetricsLog
    stop: Stop

    def __init__(self, run: Run, model: Segmenter, device: torch.device) -> None:
        self.run, self.config, self.device = run, run.config, device
        self.model = model.to(device)
        # Convolutions are fastest in this layout on CUDA, and no slower in it on the CPU.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a gap in the stubs
        self.optimizer = build_optimizer(model, self.config)
        self.average = WeightAverage(model, self.config.ema) if self.config.ema else None
        self.position = Position()
        self.augment = Augmentation.of(self.config)

    def start_stage(self, stage: int) -> None:
        """Begin a stage, unless it is the one that training was restored into."""
        if stage != self.position.stage:
            self.position = Position(stage=stage, total_steps=self.position.total_steps)

    def relabelled(self, human_view: TrainingView) -> TrainingView:
        """The training cases with the pseudo-labels of this stage's round, which is computed if it has to be."""
        stage, rounds = self.position.stage, self.run.rounds_path
        # A round belongs to the weights at the start of its stage: later in the stage it is on disk already.
        if self.position.step == 0 or stage not in existing_rounds(rounds):
            this = Round(stage, self.config.gamma(stage), self.config.scope)
            with self.final_weights():
                folder = relabel(self.model, human_view, rounds, this, check=self.stop.check)
            kept = ", ".join(f"{total['kept']:,} of {organ}" for organ, total in round_totals(folder).items()) or "none"
            print(f"round {stage} (gamma {this.gamma:.3g}), pseudo-label voxels kept: {kept}", file=sys.stderr)
        view = human_view
        return TrainingView(view.store, view.declarations, view.cases, rounds / str(stage), view.body)

    def train_stage(self, view: TrainingView) -> None:
        """All steps of one stage, and the checkpoint at its end."""
        config, position = self.config, self.position
        source = BatchSource.of(config, view, position.stage)
        pace = Pace(config, position.stage, source.steps_per_epoch)
        loss_of = _loss(config, view, self.device)
        self.model.train()
        self.metrics.start_stage(position.stage)
        saved_at = time.monotonic()
        started = saved_at - position.seconds
        with closing(source.iterate(position.step)) as batches:
            while (done := pace.progress(position)) < 1.0:
                lr = learning_rate(config, done)
                self.metrics.add(self.step(next(batches), loss_of, lr), lr)
                position.step += 1
                position.total_steps += 1
                position.seconds = time.monotonic() - started
                if position.step % _LOG_STEPS == 0:
                    self.metrics.write_step(position, pace.progress(position))
                if pace.validates(position):
                    with self.final_weights():
                        self.metrics.write_validation(position, validate(self.model, self.run, view.declarations))
                if self.stop.is_set() or time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    self.save(position)
                    saved_at = time.monotonic()
                self.stop.check()
        self.metrics.end_stage(position)
        # The stage's end is the next one's start: a round that is cut short begins again from these weights.
        self.save(Position(position.stage + 1, 0, position.total_steps))

    def step(self, batch: Batch, loss_of: Loss, lr: float) -> StepLoss:
        """One step of the optimizer on one batch."""
        # The seed makes augmentation and dropout functions of the position: nothing random has to be stored.
        seed = step_seed(self.config.seed, self.position.stage, self.position.step)
        torch.manual_seed(seed)
        hu, labels = self.augment(_to(batch.hu, self.device), _to(batch.labels, self.device), seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_use_amp(self.config, self.device)):
            logits = self.model(hu.contiguous(memory_format=torch.channels_last))  # [N, M, h, w]
        loss = loss_of(logits, labels, _to(batch.cases, self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, self.position.total_steps)
        return loss

    @contextmanager
    def final_weights(self) -> Iterator[None]:
        """The network as it would be delivered now: averaged weights if there are any; training goes on after."""
        if self.average is None:
            yield
            return
        trained = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.state)
        try:
            yield
        finally:
            self.model.load_state_dict(trained)

    def save(self, position: Position) -> None:
        """Write the checkpoint from which `restore` goes on at a position."""
        self.metrics.flush()
        tensors = {"model": dict(self.model.state_dict()), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.state
        tensors["metrics"] = self.metrics.pending()
        Checkpoint(tensors, vars(position)).save(self.run.checkpoint_path)

    def restore(self) -> dict[str, Tensor]:
        """Go on from the run's checkpoint; without one, from the start.

        Returns:
            What the metrics had collected and not yet written.
        """
        path = self.run.checkpoint_path
        if not path.exists():
            return {}
        checkpoint = Checkpoint.load(path)
        if set(checkpoint.state) != set(vars(self.position)):  # model.safetensors under this name, for example
            raise InputError(f"{path} does not say where training stood; restore it from a copy, or train again.")
        load_model_state(self.model, checkpoint, path)
        try:
            restore_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
            if self.average is not None:
                for name, tensor in self.average.state.items():
                    tensor.copy_(checkpoint.tensors["average"][name])  # in place: they stay on their device
            self.position = Position(**checkpoint.state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} does not fit the settings of its run ({error!r}); train again.") from None
        return checkpoint.tensors.get("metrics", {})


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """An event that SIGTERM or Ctrl-C sets, so that the step in progress can end and be saved."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loss(config: TrainConfig, view: TrainingView, device: torch.device) -> Loss:
    if config.method == "baseline":
        return MissingIsBackground()
    tables = view.tables(Policy(config.policy), pseudo_negative=config.pseudo_negative)
    return MaskedHeads(tables, device)


def _use_amp(config: TrainConfig, device: torch.device) -> bool:
    # bfloat16 matrix products are slower than float32 on most CPUs, so "auto" means CUDA.
    return config.amp == "bfloat16" or (config.amp == "auto" and device.type == "cuda")


def _to(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
