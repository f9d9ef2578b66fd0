"""The README's table of benchmarks, from the newest recorded runs."""

from collections.abc import Iterator
from pathlib import Path

from bench.goals import GOALS
from bench.heap import ALLOCATORS
from bench.machine import ROOT
from bench.measure import COSTS, MILLISECONDS, RATIOS
from bench.ops.peers import COMPILE, COPY, EAGER, IN_PLACE, ONE_GRAPH, OURS, READ
from bench.ops.select_top_fraction import COMPACT_PARTITION, COMPACT_TOPK, KTHVALUE, SORT, TOPK
from bench.record import Figures, NoRecordError, Record, commits, figures, newest
from bench.whole_volume import workloads
from smile_runtime.io.files import atomic_path

README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->\n", "<!-- bench:end -->\n"

TITLES = {
    "masked_bce/K3-half": "masked_bce, K = 3, half missing",
    "masked_bce/K13-none": "masked_bce, K = 13, none missing",
    "masked_bce/K13-half": "masked_bce, K = 13, half missing",
    "masked_bce/K13-70": "masked_bce, K = 13, 70% missing",
    "masked_bce/K13-bf16-half": "masked_bce, K = 13, bf16, half missing",
    "masked_bce/K13-fp16-none": "masked_bce, K = 13, fp16, none missing",
    "masked_bce_upsampled/K3-half": "masked_bce_upsampled, K = 3, half missing",
    "masked_bce_upsampled/K13-half": "masked_bce_upsampled, K = 13, half missing",
    "masked_bce_upsampled/K13-70": "masked_bce_upsampled, K = 13, 70% missing",
    "label_map_upsampled/K3": "label_map_upsampled, K = 3",
    "label_map_upsampled/K13": "label_map_upsampled, K = 13",
    "pseudo_labels_upsampled/K13": "pseudo_labels_upsampled, K = 13, 32 slices",
}
SELECTIONS = {
    "select_top_fraction/3x26M-5pct": "5% candidates",
    "select_top_fraction/3x26M-5pct-scattered": "5% candidates, scattered",
    "select_top_fraction/3x26M-50pct": "50% candidates",
    "select_top_fraction/3x26M-near-one": "5%, all scores within 2^-12 of 1",
}
PEERS = {EAGER: "eager", COMPILE: "torch.compile", ONE_GRAPH: "the same, gradient by hand", COPY: "copy of the logits"}
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
}
INFERENCE = {
    workloads.SESSION: "bare session",
    workloads.NO_CROP: "ours, --no-crop",
    workloads.FP32: "ours, fp32",
    workloads.EAGER: "torch eager loop",
    workloads.CHANNELS_LAST: "the same, channels_last",
    workloads.MONAI: "MONAI sliding window",
}
ALLOCATOR_NAMES = {
    "default": "glibc's default allocator",
    "keep": "glibc told to keep freed memory, for everybody",
    "huge": "torch told to use huge pages, as our own buffers always do (THP_MEM_ALLOC_ENABLE=1)",
}
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
            title = f"{titles[name]}, in place" if ours == IN_PLACE else titles[name]
            cells = [ratio(ratios[peer]["medians"]) if peer in ratios else "" for peer in peers]
            time = measured[name][MILLISECONDS][ours]["median"]
            yield f"| {title} | {f'{time:.3g}' if time < 1000 else f'{time:.0f}'} | {' | '.join(cells)} |"
    yield ""


def _counted(measured: Figures) -> Figures:
    """Leave the variant of ours that goals count: in place, where there is one."""
    ratios = measured[RATIOS]
    best = IN_PLACE if IN_PLACE in ratios else OURS
    return measured | {RATIOS: {best: ratios[best]}}


def table(record: Record) -> str:
    """A record as Markdown: all of it, or JUDGED alone where the allocator is not the default one."""
    machine, measured = record["machine_info"], figures(record)
    corner = "logits [4, K, 512, 512] or to that size; their time / ours"
    if machine["allocator"] == "default":
        shown = [
            *rows(measured, TITLES, PEERS, corner),
            *rows(measured, SELECTIONS, SELECTORS, "select_top_fraction, 3 x 26.2M scores"),
            *rows(measured, VOLUMES, INFERENCE, "smile-predict: whole volume, HU on disk to labels on disk"),
            *costs(measured),
        ]
    else:
        shown = [*rows({name: _counted(measured[name]) for name in JUDGED if name in measured}, JUDGED, PEERS, corner)]
    lines = [
        *shown,
        f"Medians of interleaved runs with {ALLOCATOR_NAMES[machine['allocator']]}; {machine['threads']} threads of "
        f"{machine['cpu']}, {machine['instruction set']}, torch {machine['torch']}; {commits(measured)}.",
    ]
    return "\n".join(lines) + "\n"


def costs(measured: dict[str, Figures]) -> Iterator[str]:
    """One paragraph: what whole volumes cost beside time, of what was measured."""
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


def tables(folder: Path) -> str:
    """The tables of the newest run with each allocator; the default one must be there.

    Raises:
        NoRecordError: nothing was recorded with the default allocator.
    """
    found = [table(newest(folder)[1])]
    for allocator in ALLOCATORS:
        if allocator != "default":
            try:
                found.append(table(newest(folder, allocator)[1]))
            except NoRecordError:
                continue  # the other settings are measured on request only
    return "\n".join(found)


def write(text: str, readme: Path = README) -> None:
    """Put the tables between the markers."""
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    with atomic_path(readme) as path:
        path.write_text(before + BEGIN + text + END + after, encoding="utf-8")
