"""The optimizer and the average of the weights."""

from itertools import chain

import torch
from torch import Tensor, nn

from smile_fast.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig, *, on_device: bool = False) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum; weight decay for weights of two and more dimensions only.

    Args:
        model: whose parameters are trained, on their device.
        config: settings of the run.
        on_device: keep the learning rate, and all else that changes from step to step, in tensors on the parameters'
            device, where a captured step finds it.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    device = decayed[0].device
    rate = torch.tensor(config.peak_lr, device=device) if on_device else config.peak_lr
    fused = True if on_device else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
    # On the CPU torch knows no capturable AdamW; its fused one needs no such name.
    return torch.optim.AdamW(groups, lr=rate, fused=fused, capturable=on_device and device.type == "cuda")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; where it is a tensor, a captured step reads the new one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, weight: float | Tensor) -> None:
    """Take a model's parameters and buffers into the exponential moving average of them.

    Counters (the batches that a BatchNorm has seen) are copied.

    Args:
        average: a copy of the model, overwritten.
        model: the model after a step.
        weight: of the model against the average; a tensor on the model's device is read there.
    """
    pairs = zip(chain(average.parameters(), average.buffers()), chain(model.parameters(), model.buffers()), strict=True)
    averaged: list[Tensor] = []
    current: list[Tensor] = []
    for kept, new in pairs:
        if not kept.is_floating_point():
            kept.copy_(new)
        elif isinstance(weight, float):
            kept.lerp_(new, weight)
        else:
            averaged.append(kept)
            current.append(new)
    if isinstance(weight, float):
        return
    # Few launches for all of them; a lerp over many tensors takes its weight from the host.
    steps = torch._foreach_sub(current, averaged)
    torch._foreach_mul_(steps, weight)
    torch._foreach_add_(averaged, steps)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<parameter index>.<name>``."""
    return {
        f"{index}.{name}": tensor
        for index, slots in optimizer.state_dict()["state"].items()
        for name, tensor in slots.items()
        if isinstance(tensor, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer of the same kind and parameters, on any device."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
