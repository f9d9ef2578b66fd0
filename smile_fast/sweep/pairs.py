"""Which (case, organ) pairs count: those whose truth holds voxels, so that all methods have the same ones.

An organ that is not predicted there has Dice 0. Where the truth is empty there is no overlap to measure: a false alarm
is counted apart, and a right empty prediction is not counted, whatever the method.
"""

from smile_fast.evaluation.compared import Key
from smile_fast.evaluation.scores import WITH_ORGAN, Outcome
from smile_fast.sweep.cell import CellRecord

MEAN = "mean"
Pair = Key  # of one fold


def dice_of_pairs(record: CellRecord) -> dict[Pair, float]:
    """Dice of every pair of a cell that counts."""
    return {Pair(pair.case, pair.organ): pair.dice or 0.0 for pair in record.pairs if pair.outcome in WITH_ORGAN}


def false_alarms(record: CellRecord, organ: str) -> int:
    """Pairs of an organ, or of all for `MEAN`, whose truth is empty and whose prediction is not."""
    return sum(pair.outcome is Outcome.FALSE_ALARM and organ in (MEAN, pair.organ) for pair in record.pairs)
