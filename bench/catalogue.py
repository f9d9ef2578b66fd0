"""All workloads by name, "op/workload", and how one is set up."""

import importlib
from pathlib import Path
from typing import Any

from bench.comparison import CPU, CUDA, Comparison, Conditions
from bench.data_path import workloads as data_path
from bench.ops import (
    label_map_upsampled,
    masked_bce,
    masked_bce_upsampled,
    memory,
    pseudo_labels_upsampled,
    select_top_fraction,
    training_step,
)
from bench.timing import CpuTimer, CudaTimer, ProcessTimer, Timer
from bench.whole_volume.workloads import FOLDERS, LONG, SMOKE, WORKLOADS, small, small_folder

MODULES: dict[str, Any] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        masked_bce,
        masked_bce_upsampled,
        select_top_fraction,
        label_map_upsampled,
        pseudo_labels_upsampled,
        memory,
        training_step,
    )
}
VOLUMES, LONG_VOLUMES, PREDICT = "whole_volume", "whole_volume_long", "predict"
LONG_REPETITIONS = 3  # of minutes each


def _workloads(long: bool) -> dict[str, Any]:
    found = {f"{op}/{name}": one for op, module in MODULES.items() for name, one in module.WORKLOADS.items()}
    found |= {f"{VOLUMES}/{name}": one for name, one in WORKLOADS.items()}
    found |= {f"{PREDICT}/{name}": one for name, one in FOLDERS.items()}
    found |= {f"{op}/{name}": one for op, few in data_path.WORKLOADS.items() for name, one in few.items()}
    return found | {f"{LONG_VOLUMES}/{name}": one for name, one in LONG.items()} if long else found


def names(device: str, *, long: bool = False) -> list[str]:
    """The workloads that a device measures; `long` adds those that take minutes each, and run only by name."""
    return [name for name, workload in _workloads(long).items() if device in workload.devices]


def comparison(name: str, conditions: Conditions, folder: Path) -> Comparison:
    """Set a workload up.

    Args:
        name: "op/workload".
        conditions: where it runs; whole volumes that are shrunk are small phantoms.
        folder: an empty one, for files.
    """
    workload = _workloads(long=True)[name]
    op = name.partition("/")[0]
    if op in MODULES:
        compared: Comparison = MODULES[op].compare(workload, conditions)
        return compared
    if op in data_path.WORKLOADS:
        suite = importlib.import_module(f"bench.data_path.{op}")  # needs nibabel, which the ops do not
        on_disk: Comparison = suite.compare(
            data_path.small(workload) if conditions.shrink > 1 else workload, conditions, folder
        )
        return on_disk
    if op == PREDICT:
        from bench.whole_volume import folder_on_gpu

        return folder_on_gpu.compare(small_folder(workload) if conditions.shrink > 1 else workload, conditions, folder)
    from bench.whole_volume import volume  # needs nibabel and onnxruntime, which the ops do not

    return volume.compare(small(workload) if conditions.shrink > 1 else workload, conditions, folder)


def differs_in_size_alone(name: str) -> bool:
    """Whether a smoke run may leave it out, because it takes a workload that does the same."""
    op, _, workload = name.partition("/")
    if op in data_path.WORKLOADS:
        return name not in data_path.SMOKE
    return op == LONG_VOLUMES or (op == VOLUMES and CPU in WORKLOADS[workload].devices and workload not in SMOKE)


def timer(name: str, device: str) -> Timer:
    """How a workload is timed: whole volumes begin and end on the host, wherever they are computed."""
    op = name.partition("/")[0]
    if op == LONG_VOLUMES:
        return CpuTimer(LONG_REPETITIONS)
    if op in data_path.IN_CPU_TIME:
        return ProcessTimer()
    if device == CUDA and op not in (VOLUMES, PREDICT):
        return CudaTimer(queued=op != "training_step")
    return CpuTimer()


def environment(name: str) -> dict[str, str]:
    """Variables of a workload's process: whoever shares the cores with what makes batches waits as commands do."""
    return {"OMP_WAIT_POLICY": "PASSIVE"} if name.partition("/")[0] in data_path.AS_COMMANDS else {}
