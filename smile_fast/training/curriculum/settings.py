"""The settings of the brakes; each can be used alone or beside the others; the margin alone is on by default."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from smile_fast.settings import Settings, documented, setting


@documented
@dataclass(frozen=True)
class Brakes(Settings):
    """What a round of smiler may take for a pseudo-label, beside gamma.

    Source:
        the schedule t / T is that of Petit et al., DLMIA 2018; the brakes are this program's own.
    """

    negatives: float = setting(
        0.0,
        "share of the surest negatives of all missing organs that the last round takes as background (0: none)",
        "a number in [0, 1]",
        lambda share: 0 <= share <= 1,
        group="curriculum",
    )
    margin: float = setting(
        20.0,
        "mm: take as background, in every round, what lies beyond the likeliest voxels of all missing organs, as many "
        "as a ball of an organ's mean annotated volume holds when its radius grows by this (0: do not)",
        "0 or more",
        lambda mm: 0 <= mm < inf,
        group="curriculum",
    )
    limit_volume: bool = setting(
        False, "keep no more candidates of an organ than the annotated cases' volumes allow", group="curriculum"
    )
    one_component: bool = setting(
        False, "keep the connected component of an organ's candidates with the most evidence", group="curriculum"
    )
    limit_slices: bool = setting(
        False, "keep an organ's candidates within the annotated cases' largest extent along z", group="curriculum"
    )
    stop: bool = setting(
        False,
        "give an organ no pseudo-labels, in this round and later ones, once its candidates grow or exceed the "
        "annotated cases' volumes; and undo a round that makes the validation cases' Dice worse, and end with it",
        group="curriculum",
    )
    stop_tolerance: float = setting(
        0.01,
        "by how much the validation cases' mean Dice may fall in a round before --stop undoes it",
        "a number in [0, 1]",
        lambda fall: 0 <= fall <= 1,
        group="curriculum",
    )
    score: Literal["probability", "agreement", "confidence"] = setting(
        "probability",
        "what ranks the voxels: the network's probability, how surely it says so of perturbed images, too (agreement: "
        "5 times the work), or how likely it is right by a head that learns that on annotated organs (confidence)",
        group="curriculum",
        choices=("probability", "agreement", "confidence"),
    )
    calibrate: bool = setting(
        False,
        "divide the logits of each organ by a temperature that fits its annotated cases (validation cases if there are "
        "some) before organs are compared",
        group="curriculum",
    )
    growth: float = setting(
        1.5,
        "from which factor between two rounds on candidates are said to grow",
        "a number above 1",
        lambda factor: 1 < factor < inf,
        group="curriculum",
    )
