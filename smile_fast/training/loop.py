"""The training loop, from the first step on human labels to the last step of the last round."""

import sys
import time
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from smile_fast.data.same_scans import leak_warning
from smile_fast.models import Segmenter
from smile_fast.supervision import Policy
from smile_fast.training.augment import Augmentation
from smile_fast.training.batches import Batch, BatchSource
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.interrupt import Stop, stop_signals
from smile_fast.training.learnable import check_learnable
from smile_fast.training.metrics import MetricsLog
from smile_fast.training.objectives import Loss, MaskedHeads, MissingIsBackground, StepLoss
from smile_fast.training.optimization import (
    average_of,
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_averaged_steps,
)
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round, existing_rounds
from smile_fast.training.run import Run, load_model_state
from smile_fast.training.schedule import Course, Position, learning_rate, step_seed
from smile_fast.training.validation import validate
from smile_fast.training.view import TrainingView
from smile_fast.training.weights import load_weights, weights_file
from smile_runtime.errors import InputError

_CHECKPOINT_SECONDS = 120.0
_LOG_STEPS = 10


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
        InputError: if nothing is annotated; for a damaged checkpoint, unusable weights, or a disk that cannot be
            written.
    """
    config = run.config
    torch.manual_seed(config.seed)
    human_view = run.view("train")
    leak = leak_warning(run.store, run.cases("train"), [*run.cases("validation"), *run.cases("test")])
    for warning in filter(None, [*check_learnable(human_view, config), leak]):
        print(f"warning: {warning}", file=sys.stderr)
    model = Segmenter(config.model)
    model.set_prior(human_view.prior(missing_is_background=config.method == "baseline"))
    if weights is not None and not resume:
        file = weights_file(weights)
        print(f"weights: {load_weights(model, file)}")
        run.record_weights(file)

    with stop_signals() as stop:
        trainer = Trainer(run, model, device, stop, resume=resume)
        with closing(trainer.metrics):
            if weights is not None and not resume:
                trainer.save()  # whoever resumes before the first checkpoint starts from the same weights
            while trainer.position.round <= config.last_round:
                view = human_view if trainer.position.round == 0 else trainer.relabelled(human_view)
                trainer.train_round(view)
    final = {"model": dict(trainer.final_model.state_dict())}
    Checkpoint(final, {"total_steps": trainer.position.total_steps}).save(run.model_path)


class Trainer:
    """A network in training: what changes from step to step, and how it is saved.

    Args:
        run: folder and settings.
        model: the network with its start weights.
        device: where to train.
        stop: the wish to stop, looked at after each step.
        resume: go on from the run's checkpoint; without one, from the start.
    """

    def __init__(self, run: Run, model: Segmenter, device: torch.device, stop: Stop, *, resume: bool = False) -> None:
        self.run, self.config, self.device, self.stop = run, run.config, device, stop
        self.model = model.to(device)
        # Convolutions are fastest in channels_last on CUDA, and no slower in it on the CPU; but there the backward pass
        # of those with 8 channels writes beyond its memory (torch 2.13, from some 208 x 256 pixels on).
        crashes = device.type == "cpu" and self.config.model.width == 8
        self.layout = torch.contiguous_format if crashes else torch.channels_last
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]  # a gap in the stubs
        self.optimizer = build_optimizer(model, self.config)
        self.average = average_of(model, self.config.ema) if self.config.ema else None
        self.augment = Augmentation.of(self.config)
        # bfloat16 matrix products are slower than float32 on most CPUs, so "auto" means CUDA.
        self.amp = self.config.amp == "bfloat16" or (self.config.amp == "auto" and device.type == "cuda")
        self.position = Position()
        pending = self._restore() if resume and run.checkpoint_path.exists() else {}
        self.metrics = MetricsLog(run, keep_until=self.position.total_steps)
        self.metrics.restore(pending, device)

    @property
    def final_model(self) -> Segmenter:
        """The network as it would be delivered now: that of the averaged weights if there are any."""
        return self.model if self.average is None else cast(Segmenter, self.average.module)

    @cached_property
    def validation_view(self) -> TrainingView:
        """The validation cases, without any pseudo-label."""
        return self.run.view("validation")

    def relabelled(self, human_view: TrainingView) -> TrainingView:
        """The training cases with the pseudo-labels of this round, which are computed if they have to be."""
        number, rounds = self.position.round, self.run.rounds_path
        # Pseudo-labels belong to the weights at the start of their round: later in it they are on disk already.
        if self.position.step == 0 or number not in existing_rounds(rounds):
            this = Round(number, self.config.gamma(number), self.config.scope)
            written = relabel(self.final_model, human_view, rounds, this, check=self.stop.check)
            kept = ", ".join(f"{total['kept']:,} of {organ}" for organ, total in written.totals().items()) or "none"
            print(f"round {number} (gamma {this.gamma:.3g}), pseudo-label voxels kept: {kept}", file=sys.stderr)
        return self.run.view("train", number)

    def train_round(self, view: TrainingView) -> None:
        """All steps of one round, and the checkpoint at its end, which is the start of the next one."""
        config, position = self.config, self.position
        source = BatchSource.of(config, view, position.round)
        course = Course(config, source.steps_per_epoch)
        pace = course.paces[position.round]
        loss_of = _loss(config, view, self.device)
        self.model.train()
        self.metrics.start_round(position, course)
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
                    self.metrics.write_step(position)
                self.metrics.show(position)
                if pace.validates(position):
                    self.metrics.write_validation(position, validate(self.final_model, self.validation_view))
                if self.stop.is_set() or time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    self.save()
                    saved_at = time.monotonic()
                self.stop.check()
        self.metrics.end_round(position)
        # Relabelling that is cut short begins again from these weights.
        self.position = Position(position.round + 1, 0, position.total_steps)
        self.save()

    def step(self, batch: Batch, loss_of: Loss, lr: float) -> StepLoss:
        """One step of the optimizer on one batch."""
        # The seed makes augmentation and dropout functions of the position: nothing random has to be stored.
        seed = step_seed(self.config.seed, self.position.round, self.position.step)
        torch.manual_seed(seed)
        hu, labels = self.augment(_to(batch.hu, self.device), _to(batch.labels, self.device), seed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            logits = self.model(hu.contiguous(memory_format=self.layout))  # [N, M, h, w]
        loss = loss_of(logits, labels, _to(batch.cases, self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss

    def save(self) -> None:
        """Write the checkpoint from which a resumed training goes on."""
        self.metrics.flush()
        tensors = {"model": dict(self.model.state_dict()), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors["average"] = dict(self.average.module.state_dict())
        tensors["metrics"] = self.metrics.pending()
        Checkpoint(tensors, vars(self.position)).save(self.run.checkpoint_path)

    def _restore(self) -> dict[str, Tensor]:
        """Go on from the run's checkpoint.

        Returns:
            What the metrics had collected and not yet written.
        """
        path = self.run.checkpoint_path
        checkpoint = Checkpoint.load(path)
        if set(checkpoint.state) != set(vars(self.position)):  # model.safetensors under this name, for example
            raise InputError(f"{path}: it does not say where training stood; restore it from a copy, or train again")
        load_model_state(self.model, checkpoint, path)
        try:
            restore_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
            self.position = Position(**checkpoint.state)
            if self.average is not None:
                self.average.module.load_state_dict(checkpoint.tensors["average"])
                set_averaged_steps(self.average, self.position.total_steps)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: it does not fit the settings of its run ({error!r}); train again") from None
        return checkpoint.tensors.get("metrics", {})


def _loss(config: TrainConfig, view: TrainingView, device: torch.device) -> Loss:
    if config.method == "baseline":
        return MissingIsBackground()
    tables = view.tables(Policy(config.policy), pseudo_negative=config.pseudo_negative)
    return MaskedHeads(tables, device)


def _to(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
