"""A run's own training step on one batch again and again: what the speed of its loop is measured against."""

from collections.abc import Callable
from functools import partial

import torch

from smile_fast.models import Segmenter
from smile_fast.training.batches import BatchSource
from smile_fast.training.execution import DEFAULT_EXECUTION, Execution
from smile_fast.training.objectives import StepLoss, loss_of_method
from smile_fast.training.run import Run
from smile_fast.training.step import Learner
from smile_fast.training.step_graph import StepGraph, cuda_graphs
from smile_fast.training.upload import Inputs
from smile_runtime.errors import InputError


def steps_on_one_batch(
    run: Run, device: torch.device, execution: Execution = DEFAULT_EXECUTION
) -> Callable[[], StepLoss]:
    """The step of a run's training on human labels, with random start weights.

    Nothing of the run's folder is changed. On CUDA the first `EAGER_STEPS` calls run operation by operation, the next
    one captures, and all later ones only replay, where graphs are wanted.

    Args:
        run: whose settings and cases are taken.
        device: where to train.
        execution: how; the workers are not needed.

    Returns:
        Queues one step, always on the same patches, turned and scaled in the same way; noise and dropout go on.

    Raises:
        InputError: by a step, if graphs are wanted and it cannot be captured: its speed would be another one's.
    """
    config, view = run.config, run.view("train")
    capturer = cuda_graphs(device, execution.graph)
    captured = capturer is not None
    learner = Learner(Segmenter(config.model), config, device, compiled=execution.compile, captured=captured)
    learner.model.train()

    def refuse(reason: str) -> None:
        raise InputError(f"--graph: the step cannot be captured ({reason}); give --graph off")

    work = partial(learner.compute, loss_of_method(config, view, device))
    step = StepGraph(work, capturer, refuse)
    batch = Inputs.of(BatchSource.of(config, view, 0).batch(0))
    images, _, height, width = batch.hu.shape
    changes = learner.prepare(config.seed, config.peak_lr, 0, images, (height, width)).to(device)
    inputs = [tensor.to(device) for tensor in batch]
    return lambda: step(device, *inputs, changes)
