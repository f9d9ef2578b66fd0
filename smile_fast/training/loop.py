"""The training loop, from the first step of the first stage to the last step of the last round."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.supervision import Policy
from smile_fast.training.augment import Augmentation
from smile_fast.training.batches import BatchSource
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.losses import Loss, MaskedHeads, MissingIsBackground
from smile_fast.training.metrics import MetricsLog
from smile_fast.training.optimization import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
)
from smile_fast.training.relabel import Round, existing_rounds, relabel
from smile_fast.training.run import Run, load_model_state
from smile_fast.training.validation import validate
from smile_fast.training.view import TrainingView
from smile_fast.training.weights import load_weights

_CHECKPOINT_SECONDS = 120.0
_LOG_STEPS = 10


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM or Ctrl-C) and has saved where it was."""


@dataclass
class Position:
    """Where training stands.

    Attributes:
        stage: 0, or the number of the round that is being trained. step: steps done in this stage.
        total_steps: steps done in all stages. seconds: training time in this stage.
    """

    stage: int = 0
    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0


def train(run: Run, *, weights: Path | None = None, resume: bool = False, device: torch.device) -> None:
    """Train a run to its end.

    On the CPU an interrupted and resumed training gives the same bits as one that was left alone (with the
    same number of threads, and `epochs` rather than `budget`).

    Args:
        run: a new run, or one to go on with.
        weights: converted checkpoint to start from.
        resume: go on from the run's checkpoint.
        device: where to train.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, when the checkpoint is on disk.
        InputError: for a damaged checkpoint, unusable weights, or a disk that cannot be written.
    """
    config, position = run.config, Position()
    store, declarations = run.store(), run.declarations()
    cases = run.cases("train")
    torch.manual_seed(config.seed)

    model = Segmenter(run.model_config)
    human_view = TrainingView(store, declarations, cases)
    model.set_prior(human_view.prior(missing_is_background=config.method == "baseline"))
    if weights is not None and not resume:
        print(f"weights: {load_weights(model, weights)}")
    model = model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a gap in the stubs
    optimizer = build_optimizer(model, config)
    average = WeightAverage(model, config.ema) if config.ema else None
    if resume:
        position = _restore(run, model, optimizer, average)
    metrics = MetricsLog(run, keep_until=position.total_steps)
    augment = Augmentation(
        config.flip,
        config.rotate,
        config.scale,
        config.translate,
        config.intensity,
        config.noise,
        config.window,
    )

    with stop_signals() as stop, closing(metrics):
        for stage in range(position.stage, config.stages):
            if stage > position.stage:
                position = Position(stage=stage, total_steps=position.total_steps)
            overlay = None
            if stage > 0:
                overlay = run.rounds_path / str(stage)
                if position.step == 0 or stage not in existing_rounds(run.rounds_path):
                    this = Round(stage, config.gamma(stage), config.scope)
                    with averaged(model, average):
                        relabel(model, human_view, run.rounds_path, this)
            view = TrainingView(store, declarations, cases, overlay)
            source = BatchSource(
                view,
                channels=config.channels,
                crop_size=config.crop_size,
                batch_size=config.batch_size,
                organ_share=config.organ_share,
                seed=config.seed,
                stage=stage,
            )
            loss_of = _loss(config, view, device)
            pace = Pace(config, stage, source.steps_per_epoch)
            model.train()
            saved_at = started = time.monotonic() - position.seconds
            metrics.start_stage(stage, pace)

            with closing(source.iterate(position.step)) as batches:
                while (done := pace.progress(position)) < 1.0:
                    batch = next(batches)
                    seed = (config.seed * 1_000_003 + stage) * 1_000_003 + position.step
                    torch.manual_seed(seed)  # dropout
                    hu, labels = augment(_to(batch.hu, device), _to(batch.labels, device), seed)
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(config, done)

                    with torch.autocast(device.type, torch.bfloat16, enabled=_use_amp(config, device)):
                        logits = model(hu.contiguous(memory_format=torch.channels_last))  # [N, M, h, w]
                    step_loss = loss_of(logits, labels, _to(batch.cases, device))
                    optimizer.zero_grad(set_to_none=True)
                    step_loss.loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    if average is not None:
                        average.update(model, position.total_steps)

                    position.step += 1
                    position.total_steps += 1
                    position.seconds = time.monotonic() - started
                    metrics.add(step_loss)
                    if position.step % _LOG_STEPS == 0:
                        metrics.write_step(position, learning_rate(config, done), pace.progress(position))
                    if pace.validates(position):
                        with averaged(model, average):
                            metrics.write_validation(position, validate(model, run, store, declarations))
                        model.train()
                    if stop.is_set() or time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                        metrics.flush()
                        _save(run, model, optimizer, average, position)
                        saved_at = time.monotonic()
                    if stop.is_set():
                        raise Interrupted
            metrics.end_stage(position)
            # The stage's end is a checkpoint: a round that is cut short starts again from these weights.
            _save(run, model, optimizer, average, Position(stage + 1, 0, position.total_steps))

    with averaged(model, average):
        final = {"model": dict(model.state_dict())}
        Checkpoint(final, {"total_steps": position.total_steps}).save(run.model_path)


class Pace:
    """How long a stage lasts: in steps, or in seconds when a budget is given."""

    def __init__(self, config: TrainConfig, stage: int, steps_per_epoch: int) -> None:
        share = 1.0 if stage == 0 else config.round_share
        whole = 1.0 + (config.stages - 1) * config.round_share
        self.seconds = config.budget * share / whole
        self.steps = max(1, round(config.epochs * share * steps_per_epoch))
        self._every = round(config.validate_every * steps_per_epoch)

    def progress(self, position: Position) -> float:
        """Part of the stage that is done, 0 to 1."""
        done = position.seconds / self.seconds if self.seconds else position.step / self.steps
        return min(1.0, done)

    def validates(self, position: Position) -> bool:
        """Whether the validation cases are looked at after this step."""
        return self._every > 0 and position.step % self._every == 0


@contextmanager
def averaged(model: Segmenter, average: WeightAverage | None) -> Iterator[None]:
    """The averaged weights inside, the trained ones again afterwards."""
    if average is None:
        yield
        return
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average.state)
    try:
        yield
    finally:
        model.load_state_dict(trained)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets, so that the step in progress can end and be saved."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
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


def _to(array, device: torch.device) -> Tensor:  # type: ignore[no-untyped-def]
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _save(
    run: Run,
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    position: Position,
) -> None:
    tensors = {"model": dict(model.state_dict()), "optimizer": optimizer_tensors(optimizer)}
    if average is not None:
        tensors["average"] = average.state
    Checkpoint(tensors, vars(position)).save(run.checkpoint_path)


def _restore(run: Run, model: Segmenter, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> Position:
    if not run.checkpoint_path.exists():
        return Position()
    checkpoint = Checkpoint.load(run.checkpoint_path)
    load_model_state(model, checkpoint, run.checkpoint_path)
    restore_optimizer(optimizer, checkpoint.tensors.get("optimizer", {}))
    if average is not None:
        average.state.update(checkpoint.tensors["average"])
    return Position(**checkpoint.state)
