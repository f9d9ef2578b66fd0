"""The optimizer and the average of the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smile_fast.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum; weight decay for weights of two and more dimensions only."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.peak_lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.peak_lr)


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's parameters and buffers, the model itself to begin with.

    The decay of the step t is min(decay, (1 + t) / (10 + t)), so that the random start weights are forgotten early.
    Counters (the batches that a BatchNorm has seen) are copied.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        t = int(average.n_averaged) - 1  # this one is on the host; the one that is handed in is on the model's device
        weight = 1 - min(decay, (1 + t) / (10 + t))
        for kept, new in zip(averaged, current, strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, weight)
            else:
                kept.copy_(new)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    set_averaged_steps(average, 0)
    return average


def set_averaged_steps(average: AveragedModel, steps: int) -> None:
    """Say how many steps an average has taken in; the start weights are its first model, which are no step."""
    average.n_averaged.fill_(1 + steps)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<parameter index>.<name>``."""
    return {
        f"{index}.{name}": tensor
        for index, slots in optimizer.state_dict()["state"].items()
        for name, tensor in slots.items()
        if isinstance(tensor, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer that was built in the same way."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
