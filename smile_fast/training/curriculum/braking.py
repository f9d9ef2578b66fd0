"""What the brakes say of one round, in plain numbers: the plan and the record of the round keep them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Braking:
    """The brakes of one round.

    Attributes:
        negatives: share of the negatives that become pseudo-background.
        room_ml: organ -> the volume of its likeliest voxels that do not become pseudo-background; empty for no margin.
        one_component: whether one component of an organ's candidates is kept.
        most_ml: organ -> the largest volume of its candidates, ml; organs without an entry have no limit.
        most_mm: organ -> the largest extent of its candidates along z, mm; likewise.
        barred: organs that get no pseudo-labels, since an earlier round stopped them.
        score: what ranks the voxels, "probability", "agreement" or "confidence".
        growth: factor between two rounds that stops an organ; 0 stops none.
        fitted_to: digest of what heads and temperatures were fitted to, beside the weights; "" without any.
        judged: organs whose candidates a confidence head ranks; those of the others are ranked by probability.
        temperatures: organ -> what its logits are divided by before they are compared with those of other organs.
    """

    negatives: float = 0.0
    one_component: bool = False
    most_ml: dict[str, float] = field(default_factory=dict)
    most_mm: dict[str, float] = field(default_factory=dict)
    barred: tuple[str, ...] = ()
    growth: float = 0.0
    score: str = "probability"
    fitted_to: str = ""
    judged: tuple[str, ...] = ()
    temperatures: dict[str, float] = field(default_factory=dict)
    room_ml: dict[str, float] = field(default_factory=dict)

    @property
    def only_rooms(self) -> bool:
        """Whether pseudo-labels are selected as without brakes, and nothing but background is added to them."""
        return self == Braking(room_ml=self.room_ml)
