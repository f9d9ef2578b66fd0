"""The ops of the mission, with one semantics and several implementations each.

>>> loss = masked_bce_upsampled(logits, labels, build_tables(states, Policy.SMILE))  # doctest: +SKIP
"""

from smile_fast.ops.label_map_upsampled import label_map_upsampled
from smile_fast.ops.loss_autograd import LossStats
from smile_fast.ops.masked_bce import masked_bce, masked_bce_stats
from smile_fast.ops.masked_bce_upsampled import masked_bce_upsampled, masked_bce_upsampled_stats
from smile_fast.ops.pseudo_labels_upsampled import pseudo_labels_upsampled
from smile_fast.ops.registry import available, defined
from smile_fast.ops.scale_gradient import scale_gradient
from smile_fast.ops.select_top_fraction import select_top_fraction

OPS: tuple[str, ...] = defined()
"""The names of all ops."""

__all__ = [
    "OPS",
    "LossStats",
    "available",
    "label_map_upsampled",
    "masked_bce",
    "masked_bce_stats",
    "masked_bce_upsampled",
    "masked_bce_upsampled_stats",
    "pseudo_labels_upsampled",
    "scale_gradient",
    "select_top_fraction",
]
