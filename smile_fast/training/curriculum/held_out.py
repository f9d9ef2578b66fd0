"""Whether a round has made the network worse on annotated organs of cases that it does not train on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from smile_fast.supervision import State
from smile_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from smile_fast.training.view import TrainingView

Dice = dict[str, float]
"""organ -> mean Dice over the held-out cases in which it is annotated, see `validate`."""
_PREFIX = "start_"  # of groups of tensors in a checkpoint


@dataclass(frozen=True)
class RoundStart:
    """A network at the start of a round: what is gone back to if the round makes it worse.

    Attributes:
        weights: by name of the network ("model", and "average" where there is one) its parameters and buffers, copied.
        dice: its score.
    """

    weights: dict[str, dict[str, Tensor]]
    dice: Dice

    @classmethod
    def of(cls, networks: dict[str, nn.Module], dice: Dice) -> "RoundStart":
        """Copy the weights to the host: later steps change them in place."""
        copied = {
            name: {key: tensor.detach().to("cpu", copy=True) for key, tensor in network.state_dict().items()}
            for name, network in networks.items()
        }
        return cls(copied, dice)

    def restore(self, networks: dict[str, nn.Module]) -> None:
        """Copy the weights back."""
        for name, network in networks.items():
            network.load_state_dict(self.weights[name])

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All of it as groups of a checkpoint."""
        dice = {organ: torch.tensor(score, dtype=torch.float64) for organ, score in self.dice.items()}
        return {f"{_PREFIX}{name}": tensors for name, tensors in {**self.weights, "dice": dice}.items()}

    @classmethod
    def from_groups(cls, groups: dict[str, dict[str, Tensor]]) -> "RoundStart | None":
        """The inverse of `groups`; None where there are none."""
        own = {name.removeprefix(_PREFIX): tensors for name, tensors in groups.items() if name.startswith(_PREFIX)}
        dice = own.pop("dice", None)
        return None if dice is None else cls(own, {organ: float(score) for organ, score in dice.items()})


def goes_back(config: TrainConfig, held_out: "TrainingView") -> bool:
    """Whether a round that makes the network worse is undone: it is wanted, and there is something to see it by."""
    return bool(config.brakes.stop and config.last_round and _shows_annotated(held_out))


def without_held_out(config: TrainConfig, held_out: "TrainingView") -> str | None:
    """What is to be said where it is wanted, and there is nothing to see it by."""
    if not (config.brakes.stop and config.last_round) or _shows_annotated(held_out):
        return None
    return (
        "--stop: no validation case shows an annotated organ, so rounds are stopped by their candidates alone, and "
        "none is undone; give --folds 5, or validation cases with --splits"
    )


def fell(before: Dice, after: Dice, tolerance: float) -> str | None:
    """What is to be said if the mean over the organs has fallen by more than the tolerance; None if it has not."""
    was, is_now = (float(np.mean(list(dice.values()))) for dice in (before, after))
    if was - is_now <= tolerance:
        return None
    organs = ", ".join(f"{organ} {before[organ]:.3f} to {after[organ]:.3f}" for organ in before if organ in after)
    return (
        f"the held-out Dice fell from {was:.3f} to {is_now:.3f} ({organs}), by more than --stop-tolerance "
        f"{tolerance:g}; the curriculum ends, with the weights from before this round"
    )


def _shows_annotated(view: "TrainingView") -> bool:
    return any(
        state is State.ANNOTATED and view.counts[case][:, k].any()
        for case in view.cases
        for k, state in enumerate(view.states[case])
    )
