"""The README's tables of benchmarks, from the newest recorded runs of CPUs and from those of all GPUs."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.allocators import ALLOCATORS
from bench.comparison import CUDA, OURS
from bench.data_path import titles as data_path
from bench.goals import GOALS
from bench.machine import ROOT
from bench.measure import COSTS, MILLISECONDS, RATIOS
from bench.ops import masked_bce_upsampled, training_step
from bench.ops.names import BYTES, COMPILE, COPY, EAGER, IMPLEMENTATION, IN_PLACE, ONE_GRAPH, READ
from bench.ops.select_top_fraction import COMPACT_PARTITION, COMPACT_TOPK, KTHVALUE, SORT, TOPK
from bench.records import RESULTS, Figures, NoRecordError, Record, commits, newest, remarks
from bench.whole_volume import workloads
from smile_fast.ops import OPS
from smile_runtime.io.files import atomic_path

README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->\n", "<!-- bench:end -->\n"
GPU_BEGIN, GPU_END = "<!-- gpu:begin -->\n", "<!-- gpu:end -->\n"

TITLES = {
    "masked_bce/K3-half": "masked_bce, K = 3, half missing",
    "masked_bce/K13-none": "masked_bce, K = 13, none missing",
    "masked_bce/K13-half": "masked_bce, K = 13, half missing",
    "masked_bce/K13-70": "masked_bce, K = 13, 70% missing",
    "masked_bce/K13-bf16-half": "masked_bce, K = 13, bf16, half missing",
    "masked_bce/K64-bf16-half": "masked_bce, K = 64, bf16, half missing",
    "masked_bce/K13-fp16-none": "masked_bce, K = 13, fp16, none missing",
    "masked_bce_upsampled/K3-half": "masked_bce_upsampled, K = 3, half missing",
    "masked_bce_upsampled/K13-half": "masked_bce_upsampled, K = 13, half missing",
    "masked_bce_upsampled/K13-70": "masked_bce_upsampled, K = 13, 70% missing",
    "label_map_upsampled/K3": "label_map_upsampled, K = 3",
    "label_map_upsampled/K13": "label_map_upsampled, K = 13",
    "label_map_upsampled/K13-volume": "label_map_upsampled, K = 13, 100 slices",
    "label_map_upsampled/K13-noise-volume": "label_map_upsampled, K = 13, 100 slices of noise",
    "pseudo_labels_upsampled/K13": "pseudo_labels_upsampled, K = 13, 32 slices",
    "pseudo_labels_upsampled/K13-noise-volume": "pseudo_labels_upsampled, K = 13, 100 slices of noise",
}
GPU_TITLES = TITLES | {
    "masked_bce/K13-bf16-none": "masked_bce, K = 13, bf16, none missing",
    "masked_bce_upsampled/K13-bf16-half": "masked_bce_upsampled, K = 13, bf16, half missing",
}
SELECTIONS = {
    "select_top_fraction/3x26M-5pct": "5% candidates",
    "select_top_fraction/3x26M-5pct-scattered": "5% candidates, scattered",
    "select_top_fraction/3x26M-50pct": "50% candidates",
    "select_top_fraction/3x26M-all": "all are candidates",
    "select_top_fraction/3x26M-near-one": "5%, all scores within 2^-12 of 1",
}
PEERS = {EAGER: "eager", COMPILE: "torch.compile", ONE_GRAPH: "the same, gradient by hand", COPY: "copy of the logits"}
STEPS = {
    "training_step/resnet50": "DeepLab ResNet-50 and masked_bce_upsampled",
    "training_step/resnet50-compiled": "the same, network through torch.compile",
}
ALONE = {training_step.ALONE: "the network alone"}
CORNER = "logits [4, K, 512, 512] or to that size; their time / ours"
MEMORY = "memory/1GiB"
SELECTORS = {
    SORT: "sort",
    TOPK: "topk",
    KTHVALUE: "kthvalue",
    COMPACT_TOPK: "compact + topk",
    COMPACT_PARTITION: "compact + argpartition",
    READ: "one read",
}
VOLUMES = {
    "whole_volume_long/thorax-resnet50": "CT 512 x 512 x 150, ResNet-50",
    "whole_volume_long/thorax-resnet18": "CT 512 x 512 x 150, ResNet-18",
    "whole_volume/thorax-resnet50": "CT 512 x 512 x 4, ResNet-50",
    "whole_volume/thorax-resnet18": "CT 512 x 512 x 12, ResNet-18",
    "whole_volume/int8-resnet50": "CT 512 x 512 x 6, ResNet-50 in int8",
    "whole_volume/int8-resnet18": "CT 512 x 512 x 12, ResNet-18 in int8",
    "whole_volume/phantom-resnet18": "phantom 256 x 256 x 24, ResNet-18",
    "whole_volume/abdomen-resnet18": "CT 122 x 101 x 48, ResNet-18",
    "whole_volume/gpu-fp32": "phantom 256 x 256 x 48, ResNet-50",
    "whole_volume/gpu-fp16": "phantom 256 x 256 x 48, ResNet-50 in fp16",
    "whole_volume/gpu-fp32-resnet18": "phantom 256 x 256 x 48, ResNet-18",
    "whole_volume/gpu-fp16-resnet18": "phantom 256 x 256 x 48, ResNet-18 in fp16",
}
INFERENCE = {
    workloads.SESSION: "bare session",
    workloads.NO_CROP: "ours, --no-crop",
    workloads.FP32: "ours, fp32",
    workloads.EAGER: "torch eager loop",
    workloads.CHANNELS_LAST: "the same, channels_last",
    workloads.MONAI: "MONAI sliding window",
}
GPU_PEERS = {masked_bce_upsampled.DENSE: "masked_bce of upsampled logits"}
GPU_SELECTORS = {SORT: "sort", TOPK: "topk", READ: "one read"}
GPU_INFERENCE = {
    workloads.SESSION: "bare session",
    workloads.NO_CROP: "ours, --no-crop",
    workloads.EAGER: "torch eager loop",
    workloads.COMPILED: "the same, torch.compile",
}
SELECTION_CORNER = "select_top_fraction, 3 x 26.2M scores"
VOLUME_CORNER = "smile-predict: whole volume, HU on disk to labels on disk"
ALLOCATOR_NAMES = {
    "default": "glibc's default allocator",
    "keep": "glibc told to keep freed memory, for everybody",
    "huge": "torch told to use huge pages, as our own buffers always do (THP_MEM_ALLOC_ENABLE=1)",
}
_OF_KERNELS = {*TITLES, *SELECTIONS, *VOLUMES}
# All that is shown of other allocators: the losses that are held against goals; their peers lose most to page faults.
JUDGED = {
    name: title
    for name, title in TITLES.items()
    if name.startswith("masked_bce") and any(goal.workload == name and goal.threshold is not None for goal in GOALS)
}


def ratio(value: float) -> str:
    """Write a ratio: three digits below 10, else none behind the point."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def rows(measured: dict[str, Figures], titles: dict[str, str], peers: dict[str, str], corner: str) -> Iterator[str]:
    """Lines of one Markdown table: a row for each workload and variant of ours that was measured."""
    found = [name for name in titles if name in measured]
    if not found:
        return
    yield f"| {corner} | ours, ms | {' | '.join(peers.values())} |"
    yield "|---|" + "---|" * (len(peers) + 1)
    for name in found:
        for ours, ratios in measured[name][RATIOS].items():
            cells = [ratio(ratios[peer]["medians"]) if peer in ratios else "" for peer in peers]
            time = measured[name][MILLISECONDS][ours]["median"]
            title = titles[name] + _whose(measured[name], ours)
            yield f"| {title} | {f'{time:.3g}' if time < 1000 else f'{time:.0f}'} | {' | '.join(cells)} |"
    yield ""


def _whose(measured: Figures, ours: str) -> str:
    """What a row says of a variant of ours: "in place", "host to host", and on a GPU the implementation.

    Its record keeps the figures of implementations that are no longer there: each goes by its name.
    """
    said = ours.removeprefix(OURS).replace(" in place", ", in place")
    op, implementation = measured["name"].partition("/")[0], measured.get(IMPLEMENTATION, "native")
    return said or (f", {implementation}" if op in OPS and implementation != "native" else "")


def _counted(measured: Figures) -> Figures:
    """Leave the variant of ours that goals count: in place, where there is one."""
    ratios = measured[RATIOS]
    best = IN_PLACE if IN_PLACE in ratios else OURS
    return measured | {RATIOS: {best: ratios[best]}}


def table(record: Record) -> str:
    """A record as Markdown: all of it, or JUDGED alone where the allocator is not the default one."""
    machine, measured = record.machine, record.benchmarks
    on_gpu = machine["device"] == CUDA
    if on_gpu or machine["allocator"] == "default":
        shown = [
            *rows(measured, *((GPU_TITLES, PEERS | GPU_PEERS) if on_gpu else (TITLES, PEERS)), CORNER),
            *rows(measured, SELECTIONS, GPU_SELECTORS if on_gpu else SELECTORS, SELECTION_CORNER),
            *rows(measured, STEPS, ALONE, "a training step, images [4, 1, 512, 512], 13 organs, bf16"),
            *rows(measured, VOLUMES, GPU_INFERENCE if on_gpu else INFERENCE, VOLUME_CORNER),
            *costs(measured),
        ]
    else:
        shown = [*rows({name: _counted(measured[name]) for name in JUDGED if name in measured}, JUDGED, PEERS, CORNER)]
    kernels = [figures for name, figures in measured.items() if name not in data_path.WORKLOADS]
    return "\n".join([*shown, f"{measured_on(machine)}; {commits(kernels)}."]) + "\n"


def data_table(record: Record) -> str:
    """The way from files to training steps as Markdown, of a record that holds any of it."""
    measured = record.benchmarks
    tables = (
        (data_path.LOADER, data_path.LOADER_PEERS, data_path.LOADER_CORNER),
        (data_path.READ_AHEAD, data_path.READ_AHEAD_PEERS, data_path.READ_AHEAD_CORNER),
        (data_path.PREPARE, data_path.PREPARE_PEERS, data_path.PREPARE_CORNER),
        (data_path.TRAIN_LOOP, data_path.TRAIN_LOOP_PEERS, data_path.TRAIN_LOOP_CORNER),
    )
    shown = [line for one in tables for line in rows(measured, *one)]
    if together := " ".join(data_path.sentences(measured)):
        shown += [together, ""]
    held = [figures for name, figures in measured.items() if name in data_path.WORKLOADS]
    return "\n".join([*shown, f"{measured_on(record.machine)}; {commits(held)}{remarks(held)}."]) + "\n"


def measured_on(machine: dict[str, Any]) -> str:
    if machine["device"] == CUDA:
        return (
            f"Medians of interleaved runs with a cold L2; {machine['gpu']}, torch {machine['torch']}, "
            f"triton {machine['triton']}, driver {machine['driver']}"
        )
    return (
        f"Medians of interleaved runs with {ALLOCATOR_NAMES[machine['allocator']]}; {machine['threads']} threads of "
        f"{machine['cpu']}, {machine['instruction set']}, torch {machine['torch']}"
    )


def costs(measured: dict[str, Figures]) -> Iterator[str]:
    """Paragraphs: what whole volumes cost beside time, and what a GPU's memory reaches, of what was measured."""
    found = [
        f"peak memory beyond the session's {measured[name][COSTS][workloads.BYTES_A_VOXEL]:.2f} bytes a voxel (K = {K})"
        for K in (3, 100)
        if (name := f"whole_volume/memory-K{K}") in measured
    ]
    if found:
        seconds = measured["whole_volume/memory-K3"][COSTS] if "whole_volume/memory-K3" in measured else {}
        found += [
            f"{name[:-3]} {seconds[name]:.2f} s" for name in (workloads.IMPORT, workloads.HELP) if name in seconds
        ]
        yield f"smile-predict: {', '.join(found)}."
        yield ""
    if MEMORY in measured:
        moved, taken = measured[MEMORY][BYTES], measured[MEMORY][MILLISECONDS]
        copy, read = (times * moved / taken[name]["median"] / 1e9 for times, name in ((2, COPY), (1, READ)))
        yield f"The GPU's memory: a copy {copy:.2f} TB/s, a read {read:.2f} TB/s."
        yield ""


def tables(folder: Path = RESULTS) -> str:
    """The tables of the newest CPU run with each allocator, of which the default one must be there.

    The way from files to training steps is shown of the newest run that measured it, whatever else that did.

    Raises:
        NoRecordError: nothing was recorded with the default allocator.
    """
    found = [table(newest(folder, holding=_OF_KERNELS)[1])]
    for allocator in ALLOCATORS:
        if allocator != "default":
            try:
                found.append(table(newest(folder, allocator)[1]))
            except NoRecordError:
                continue  # the other settings are measured on request only
    with suppress(NoRecordError):
        found.append(data_table(newest(folder, holding=data_path.WORKLOADS)[1]))
    return "\n".join(found)


def write(text: str, readme: Path = README, begin: str = BEGIN, end: str = END) -> None:
    """Put the tables between the markers."""
    before, rest = readme.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    with atomic_path(readme) as path:
        path.write_text(before + begin + text + end + after, encoding="utf-8")
