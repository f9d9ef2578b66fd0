"""The training loop, from the first step on human labels to the last step of the last round."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from smile_fast.data.same_scans import leak_warning
from smile_fast.models import Segmenter
from smile_fast.training.batches import BatchSource
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.curriculum.conduct import judge_of, round_of, warnings_of_round
from smile_fast.training.curriculum.fit import Fit, fit_round, fits
from smile_fast.training.curriculum.held_out import Dice, RoundStart, fell, goes_back, without_held_out
from smile_fast.training.execution import DEFAULT_EXECUTION, Execution
from smile_fast.training.interrupt import Interrupted, Stop, stop_signals
from smile_fast.training.learnable import check_learnable
from smile_fast.training.memory import enough_memory
from smile_fast.training.metrics import MetricsLog, SilentLog
from smile_fast.training.objectives import StepLoss, loss_of_method
from smile_fast.training.optimization import optimizer_tensors, restore_optimizer
from smile_fast.training.ranks import ALONE, Ranks
from smile_fast.training.read_ahead import read_ahead
from smile_fast.training.relabel import relabel_share
from smile_fast.training.rounds import Round, existing_rounds, open_round
from smile_fast.training.run import Run, load_model_state
from smile_fast.training.schedule import Course, Position, learning_rate, step_seed
from smile_fast.training.step import Learner
from smile_fast.training.step_graph import Capturer, StepGraph, cuda_graphs
from smile_fast.training.unfinished_round import finish_round
from smile_fast.training.upload import Inputs, upload
from smile_fast.training.validation import validate
from smile_fast.training.view import TrainingView
from smile_fast.training.weights import start_network
from smile_runtime.errors import InputError

CHECKPOINT_SECONDS = 120.0
_LOG_STEPS = 10


def train(
    run: Run,
    *,
    resume: bool = False,
    device: torch.device,
    execution: Execution = DEFAULT_EXECUTION,
    ranks: Ranks = ALONE,
) -> None:
    """Train a run to its end.

    On the CPU an interrupted and resumed training gives the same bits as one that was left alone (with the
    same number of threads and of ranks, and `epochs` rather than `budget`), whoever makes its batches.

    Args:
        run: a new run, or one to go on with.
        resume: go on from the run's checkpoint, if it has one; a run with start weights has (see `start_from`).
        device: where to train.
        execution: how; a resumed training may be executed in another way.
        ranks: the processes that train it together, each of which calls this. Rank 0 writes; the others read the
            store, the run's folder and its rounds.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, of whichever rank, when the checkpoint is on disk.
        RankLost: another rank has ended.
        InputError: if nothing is annotated; for damaged checkpoints, a disk that cannot be written, or too little
            memory.
    """
    config = run.config
    human_view = run.view("train")
    leak = leak_warning(run.store, run.cases("train"), [*run.cases("validation"), *run.cases("test")])
    unseen = without_held_out(config, run.view("validation")) if config.brakes.stop else None
    for warning in filter(None, [*check_learnable(human_view, config), leak, unseen]):
        print(f"warning: {warning}", file=sys.stderr)
    model = start_network(run, human_view)
    if ranks.first:
        run.record_execution({"device": str(device), "processes": ranks.world, **execution.to_json()})
    with stop_signals() as stop, _on(device), enough_memory(run.path):
        trainer = Trainer(run, model, device, stop, resume=resume, execution=execution, ranks=ranks)
        with closing(trainer.metrics):
            while trainer.position.round <= config.last_round:
                view = run.first_view() if trainer.position.round == 0 else trainer.relabelled(human_view)
                trainer.train_round(view)
    final = {"model": dict(trainer.final_model.state_dict())}
    if ranks.first:
        Checkpoint(final, {"total_steps": trainer.position.total_steps}).save(run.model_path)
    ranks.wait()  # none says that it is done before the network is on disk


class Trainer:
    """A network in training: what changes from step to step, and how it is saved.

    Args:
        run: folder and settings.
        model: the network with its start weights.
        device: where to train.
        stop: the wish to stop, looked at after each step.
        resume: go on from the run's checkpoint; without one, from the start.
        execution: how steps and batches are made.
        capturer: captures steps; None for CUDA graphs where there are any and they are wanted.
        ranks: the processes that train it together.
    """

    def __init__(
        self,
        run: Run,
        model: Segmenter,
        device: torch.device,
        stop: Stop,
        *,
        resume: bool = False,
        execution: Execution = DEFAULT_EXECUTION,
        capturer: Capturer | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if execution.compile and ranks.world > 1:
            raise InputError("--compile: it cannot be had with several processes; leave the option out")
        self.ranks = ranks
        self.run, self.config, self.device, self.stop = run, run.config, device, stop
        self.workers = execution.worker_count(device.type, ranks.neighbours)
        self.or_a_thread = execution.or_a_thread
        self.capturer = capturer or cuda_graphs(device, execution.graph, ranks.world)
        captured = self.capturer is not None
        self.learner = Learner(model, self.config, device, compiled=execution.compile, captured=captured, ranks=ranks)
        self.position = Position()
        self.start: RoundStart | None = None  # of the round, on rank 0, where a round may be undone
        self._scored: tuple[int, Dice] | None = None  # after which step
        pending = self._restore() if ranks.any(resume and run.has_checkpoint) else {}
        ranks.copy_first(self.learner.tensors())
        self.metrics: MetricsLog | SilentLog = (
            MetricsLog(run, keep_until=self.position.total_steps, unwritten=bool(pending))
            if ranks.first
            else SilentLog()
        )
        self.metrics.restore(pending, device)

    @property
    def final_model(self) -> Segmenter:
        """The network as it would be delivered now: that of the averaged weights if there are any."""
        return self.learner.final_model

    @cached_property
    def validation_view(self) -> TrainingView:
        """The validation cases, without any pseudo-label."""
        return self.run.view("validation")

    @cached_property
    def goes_back(self) -> bool:
        """Whether a round that makes the network worse is undone."""
        return self.config.brakes.stop and goes_back(self.config, self.validation_view)

    @property
    def _networks(self) -> dict[str, nn.Module]:
        """What is delivered and what is trained, by the names of a checkpoint."""
        learner = self.learner
        averages: dict[str, nn.Module] = {} if learner.average is None else {"average": learner.average}
        return {"model": learner.model, **averages}

    def relabelled(self, human_view: TrainingView) -> TrainingView:
        """The training cases with the pseudo-labels of this round, which are computed if they have to be."""
        number, rounds = self.position.round, self.run.rounds_path
        # Pseudo-labels belong to the weights at the start of their round: later in it they are on disk already.
        gone = self.ranks.any(self.position.step > 0 and number not in existing_rounds(rounds))
        if gone:
            raise InputError(
                f"{rounds / str(number)}: the training stopped in the middle of this round, whose folder is gone, and "
                "so are the weights that its pseudo-labels belong to; restore the folder from a copy, or train again"
            )
        if self.position.step == 0:
            if self.goes_back:
                dice = self._held_out_dice(replace(self.position, round=number - 1))
                self.start = RoundStart.of(self._networks, dice) if self.ranks.first else None
            this = round_of(self.config, human_view, rounds, number)
            this, fit = self._learned(human_view, this)
            self._relabel(human_view, this, fit)
            if self.config.keep_rounds and self.ranks.first:
                kept = {"model": dict(self.final_model.state_dict())}
                Checkpoint(kept, {"round": number}).save(self.run.round_weights_path(number))
            totals = open_round(rounds, number).totals()
            found = ", ".join(f"{total['kept']:,} of {organ}" for organ, total in totals.items()) or "none"
            print(f"round {number} (gamma {this.gamma:.3g}), pseudo-label voxels kept: {found}", file=sys.stderr)
            for sentence in warnings_of_round(human_view, rounds, number, self.config.brakes.growth):
                print(f"warning: {sentence}", file=sys.stderr)
        return self.run.view("train", number)

    def _learned(self, human_view: TrainingView, this: Round) -> tuple[Round, Fit]:
        """What a round learns from annotated organs before it relabels; rank 0 does, and tells the others."""
        model, ranks, organs = self.final_model, self.ranks, human_view.organs
        fit = Fit.empty(model, len(organs))
        if fits(self.config):
            if ranks.first:
                held_out, check = self.validation_view, partial(ranks.check, self.stop)
                fit = fit_round(self.config, model, human_view, held_out, this.number, check)
            ranks.wait()
            ranks.copy_first(fit.tensors)
        return fit.of(this, organs), fit

    def _relabel(self, human_view: TrainingView, this: Round, fit: Fit) -> None:
        """Write a round; the ranks share out its cases, and none waits for another before all are done.

        Cases that are finished stay when a signal, a kill or an error ends it: a resumed training does the others.
        """
        model, rounds, ranks = self.final_model, self.run.rounds_path, self.ranks
        relabel_share(model, human_view, rounds, this, lambda: ranks.check(self.stop), ranks.share, fit.heads)
        ranks.wait()
        if ranks.first:
            finish_round(rounds, this, human_view.cases, judge=judge_of(human_view, rounds, this))
        ranks.wait()

    def train_round(self, view: TrainingView) -> None:
        """All steps of one round, and the checkpoint at its end, which is the start of the next one."""
        config, position = self.config, self.position
        source = BatchSource.of(config, view, position.round, self.ranks.share)
        course = Course(config, source.steps_per_epoch)
        pace = course.paces[position.round]
        run_step = self.step_of(view)
        self.learner.model.train()
        self.metrics.start_round(position, course)
        saved_at = time.monotonic()
        started = saved_at - position.seconds
        made_ahead = read_ahead(source, position.step, self.workers, device=self.device, or_a_thread=self.or_a_thread)
        with closing(made_ahead) as batches:
            inputs = upload(batches, self.device)
            batch, stopped = self._next(inputs, started)
            while batch is not None and not stopped and (done := pace.progress(position)) < 1.0:
                lr = learning_rate(config, done)
                self.metrics.add(self.step(batch, run_step, lr), lr)
                position.step += 1
                position.total_steps += 1
                batch, stopped = self._next(inputs, started)
                if position.step % _LOG_STEPS == 0:
                    self.metrics.write_step(position)
                self.metrics.show(position)
                if pace.validates(position):
                    dice = validate(self.final_model, self.validation_view, self.ranks)
                    self.metrics.write_validation(position, dice)
                if not stopped and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self.save()
                    saved_at = time.monotonic()
            if stopped:
                self.save()
                raise Interrupted(stopped)
        self.metrics.end_round(position)
        undone = self.goes_back and self._undo_if_worse()
        # Relabelling that is cut short begins again from these weights.
        following = config.last_round + 1 if undone else position.round + 1
        self.position, self.start = Position(following, 0, position.total_steps), None
        # Processors of other kinds may round in another way, and a round is made with the same weights by all.
        self.ranks.copy_first(self.learner.tensors())
        self.save()

    def _held_out_dice(self, position: Position) -> Dice:
        """Dice of the validation cases now, which the metrics have once; empty on the other ranks than 0."""
        if self._scored is None or self._scored[0] != position.total_steps:
            self._scored = position.total_steps, validate(self.final_model, self.validation_view, self.ranks)
            self.ranks.wait()
            self.metrics.write_validation(position, self._scored[1])
        return self._scored[1]

    def _undo_if_worse(self) -> bool:
        """At the end of a round go back to its start if that was better; rank 0 decides, and its weights are copied."""
        position, start = self.position, self.start
        dice = self._held_out_dice(position)
        reason = None if start is None else fell(start.dice, dice, self.config.brakes.stop_tolerance)
        if start is not None and reason is not None:
            start.restore(self._networks)
            self.metrics.write_undone(position, start.dice)
            print(f"round {position.round}: undone: {reason}", file=sys.stderr)
        return self.ranks.any(reason is not None)

    def step_of(self, view: TrainingView) -> StepGraph:
        """What runs the steps of a round: their shapes and tables are the round's."""
        loss_of = loss_of_method(self.config, view, self.device, self.ranks)
        return StepGraph(partial(self.learner.compute, loss_of), self.capturer, self._go_uncaptured)

    def _go_uncaptured(self, reason: str) -> None:
        """Say why steps are not captured; those of later rounds are not tried."""
        print(
            f"warning: --graph: the step cannot be captured ({reason}); it runs operation by operation", file=sys.stderr
        )
        self.capturer = None

    def step(self, inputs: Inputs, run_step: StepGraph, lr: float) -> StepLoss:
        """One step of the optimizer on one batch; nothing is read from the device."""
        position, size = self.position, inputs.hu.shape[2:]
        seed = step_seed(self.config.seed, position.round, position.step)
        images = self.config.batch_size
        changes = self.learner.prepare(seed, lr, position.total_steps, images, (size[0], size[1]))
        return run_step(self.device, *inputs, changes)

    def save(self) -> None:
        """Write the checkpoint from which a resumed training goes on; rank 0 does, and nobody waits for it."""
        if not self.ranks.first:
            return
        self.metrics.flush()
        learner = self.learner
        tensors = {"model": dict(learner.model.state_dict()), "optimizer": optimizer_tensors(learner.optimizer)}
        if learner.average is not None:
            tensors["average"] = dict(learner.average.state_dict())
        tensors["metrics"] = self.metrics.pending()
        if self.start is not None:
            tensors.update(self.start.groups())
        Checkpoint(tensors, vars(self.position)).save(self.run.checkpoint_path, before=self.run.previous_path)

    def _next(self, inputs: Iterator[Inputs], started: float) -> tuple[Inputs | None, int]:
        """The next batch, and the signal that all ranks stop for, 0 for none.

        A signal that comes after the ranks have agreed, to whichever of them, counts at the next step: a rank that
        stopped by itself would leave the others in theirs. Whoever stops a process may have stopped its workers, too,
        and a batch does not come: that rank takes no step any more, and tells the others so before they begin theirs.

        Args:
            inputs: the batches of the round.
            started: when the round would have begun if it had never been interrupted.
        """
        batch = None
        try:
            batch = next(inputs)
        except InputError:
            if not self.stop.is_set():
                raise
        self.position.seconds, stopped = self.ranks.agree(time.monotonic() - started, self.stop)
        return batch, stopped

    def _check_position(self) -> None:
        """Refuse ranks that do not stand where rank 0 does: they have read another checkpoint, or none."""
        own = torch.tensor([float(number) for number in vars(self.position).values()], dtype=torch.float64)
        first = own.clone()
        self.ranks.copy_first([first])
        if self.ranks.any(not torch.equal(own, first)):
            raise InputError(
                f"{self.run.checkpoint_path}: not all processes read the same checkpoint; put the run's folder where "
                "all machines see it, and try again"
            )

    def _restore(self) -> dict[str, Tensor]:
        """Go on from the run's checkpoint.

        Returns:
            What the metrics had collected and not yet written.
        """
        checkpoint, path = self.run.load_checkpoint()
        if set(checkpoint.state) != set(vars(self.position)):  # model.safetensors under this name, for example
            raise InputError(f"{path}: it does not say where training stood; restore it from a copy, or train again")
        load_model_state(self.learner.model, checkpoint, path)
        try:
            restore_optimizer(self.learner.optimizer, checkpoint.tensors.get("optimizer", {}))
            self.position = Position(**checkpoint.state)
            if self.learner.average is not None:
                self.learner.average.load_state_dict(checkpoint.tensors["average"])
            self.start = RoundStart.from_groups(checkpoint.tensors) if self.ranks.first else None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: it does not fit the settings of its run ({error!r}); train again") from None
        self._check_position()
        if self.ranks.first:  # after all have read it
            self.run.make_newest(path)
        return checkpoint.tensors.get("metrics", {})


def _on(device: torch.device) -> AbstractContextManager[None]:
    """Make a CUDA device the one that streams and graphs are made on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
