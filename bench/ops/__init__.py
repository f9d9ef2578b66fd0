"""One file an op: its workloads by name, its peers, and how they are brought together."""

from types import ModuleType

from bench.ops import (
    label_map_upsampled,
    masked_bce,
    masked_bce_upsampled,
    pseudo_labels_upsampled,
    select_top_fraction,
)

OPS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        masked_bce,
        masked_bce_upsampled,
        select_top_fraction,
        label_map_upsampled,
        pseudo_labels_upsampled,
    )
}
NAMES = [f"{op}/{workload}" for op, module in OPS.items() for workload in module.WORKLOADS]
"""All workloads, as "op/workload"."""
