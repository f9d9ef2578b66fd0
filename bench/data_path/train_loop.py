"""A training step with all that belongs to it, against the forward and backward pass of the same network alone.

The step takes its batches from the store as a training does, by a thread or by a process that makes them ahead,
augments them, computes the loss, and runs the optimizer. The bare network gets one batch that lies in memory, as
augmentation leaves it, and the mean of its logits as its loss: no optimizer, unless its name says so.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bench.comparison import OURS, Call, Comparison, Conditions
from bench.data_path.names import AUGMENTATION, BARE, BARE_STEP, BATCH, BY_PROCESS, IN_MEMORY, LOSS
from bench.data_path.read_ahead import config_of, view_of
from bench.data_path.volumes import dataset, store
from bench.data_path.workloads import Workload
from smile_fast.models import Segmenter
from smile_fast.training.augment import Augmentation
from smile_fast.training.batches import BatchSource
from smile_fast.training.config import TrainConfig
from smile_fast.training.objectives import Loss, loss_of_method
from smile_fast.training.read_ahead import read_ahead
from smile_fast.training.schedule import step_seed
from smile_fast.training.step import Learner
from smile_fast.training.upload import Inputs, upload

STEPS = 2  # of a run
CPU = torch.device("cpu")


class Training:
    """A network in training, whoever gives it batches."""

    def __init__(self, config: TrainConfig, loss_of: Loss) -> None:
        torch.manual_seed(config.seed)
        self.config, self.loss_of = config, loss_of
        self.learner = Learner(Segmenter(config.model), config, CPU)
        self.learner.model.train()
        self.steps = 0

    def step(self, inputs: Inputs) -> float:
        """One step of `smile-fast train`; its loss."""
        images, _, height, width = inputs.hu.shape
        seed = step_seed(self.config.seed, 0, self.steps)
        changes = self.learner.prepare(seed, self.config.peak_lr, self.steps, images, (height, width))
        self.steps += 1
        return float(self.learner.compute(self.loss_of, *inputs, changes).loss)


class Bare:
    """The same network, forward and backward, on a batch in memory."""

    def __init__(self, config: TrainConfig, images: Tensor) -> None:
        self.config, self.images = config, images
        self.learner = Learner(Segmenter(config.model), config, CPU)
        self.learner.model.train()

    def step(self, *, optimizer: bool) -> None:
        """Forward and backward, and the optimizer if it is wanted."""
        model = self.learner.model
        model.zero_grad(set_to_none=True)
        model(self.images).mean().backward()
        if optimizer:
            clip_grad_norm_(model.parameters(), self.config.clip_norm or math.inf)
            self.learner.optimizer.step()


def compare(workload: Workload, conditions: Conditions, folder: Path) -> Comparison:
    """Make the cohort, start what makes batches, and take the parts of a step apart."""
    prepared = store(dataset(workload.volumes, conditions, folder), folder / "store")
    config = config_of(workload, prepared.organs)
    view = view_of(prepared)
    source = BatchSource.of(config, view, 0)
    training = Training(config, loss_of_method(config, view, CPU))
    batch = Inputs.of(source.batch(0))
    augmentation = _augmentation(config, batch)
    images, labels = augmentation()
    bare = Bare(config, images.contiguous(memory_format=training.learner.layout))
    logits = training.learner.model(bare.images).detach().requires_grad_()
    made = {OURS: read_ahead(source, 0), BY_PROCESS: read_ahead(source, 0, workload.workers)}

    def loss() -> None:
        training.loss_of(logits, labels, batch.cases).loss.backward()  # type: ignore[no-untyped-call]

    ours = [_several(name, _next_step(training, upload(batches, CPU))) for name, batches in made.items()]
    parts = {
        BARE: lambda: bare.step(optimizer=False),
        BARE_STEP: lambda: bare.step(optimizer=True),
        IN_MEMORY: lambda: training.step(batch),
        BATCH: lambda: source.batch(1),
        AUGMENTATION: augmentation,
        LOSS: loss,
    }
    peers = [_several(name, part) for name, part in parts.items()]

    def check() -> dict[str, float]:
        for call in (*ours, *peers):
            call.run()
        assert images.shape == batch.hu.shape, f"{images.shape} and {batch.hu.shape}"
        value = training.step(batch)
        assert 0 < value < math.inf, f"a loss of {value}"
        return {}

    def close() -> None:
        for batches in made.values():
            batches.close()

    facts = {"images": list(batch.hu.shape), "organs": len(prepared.organs), "optimizer": config.optimizer}
    return Comparison(ours, peers, check, facts, steps=STEPS, close=close)


def _several(name: str, part: Callable[[], object]) -> Call:
    """A run of some steps, after one that is not timed: everybody finds what the same step before has left."""

    def run() -> None:
        for _ in range(STEPS):
            part()

    return Call(name, run, part)


def _next_step(training: Training, batches: Iterator[Inputs]) -> Callable[[], float]:
    return lambda: training.step(next(batches))


def _augmentation(config: TrainConfig, batch: Inputs) -> Callable[[], tuple[Tensor, Tensor]]:
    augment, generator = Augmentation.of(config), torch.Generator()
    images, _, height, width = batch.hu.shape
    changes = augment.draw(images, (height, width), generator.manual_seed(0))
    return lambda: augment(batch.hu, batch.labels, changes, generator)
