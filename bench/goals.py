"""The goals of the CPU kernels on two cores, held against a recorded run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Literal

from bench.comparison import OURS
from bench.data_path import names as data
from bench.data_path.prepare_scale import SCALE, SCALE_MEMORY, SCALE_SECONDS, SCALE_SHARDS
from bench.measure import COSTS, ERRORS, RATIOS
from bench.ops.losses import LOSS_ERROR, ULPS, ULPS_OF_LARGEST
from bench.ops.names import COMPILE, COPY, EAGER, IN_PLACE, ONE_GRAPH, READ, WRONG_VOXELS
from bench.ops.select_top_fraction import COMPACT_PARTITION, COMPACT_TOPK, SORT, TOPK
from bench.records import Figures
from bench.whole_volume.workloads import BYTES_A_VOXEL, CHANNELS_LAST, FEWER_PIXELS, FP32, HELP, IMPORT, MONAI, SESSION
from bench.whole_volume.workloads import EAGER as EAGER_LOOP

Direction = Literal["at least", "at most"]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        wording: what is wanted, in words.
        workload: "op/workload" or a pattern of them, of which the worst counts.
        peer: which one, or several, of which the best counts; or the name of an error or of another cost.
        threshold: peer's time over ours, at least; or ours over the peer's, or a cost, at most. None: nothing is aimed
            at, the figure is only shown.
        direction: see threshold.
    """

    wording: str
    workload: str
    peer: str | tuple[str, ...]
    threshold: float | None = None
    direction: Direction = "at least"


@dataclass(frozen=True)
class Verdict:
    """How a goal stands: "met", "missed", "no goal" or "not measured", and the figure that says so."""

    goal: Goal
    state: str
    figure: float | None = None
    remark: str = ""

    def line(self) -> str:
        """One line of the report."""
        wanted = "" if self.goal.threshold is None else f"{self.goal.direction} {self.goal.threshold:g}"
        figure = "" if self.figure is None else f"{self.figure:.3g}"
        remark = f"  ({self.remark})" if self.remark else ""
        return f"{self.state:12}  {self.goal.wording:72}  {figure:>9}  {wanted}{remark}".rstrip()


def _goals() -> Iterator[Goal]:
    def against(wording: str, workload: str, **wanted: float) -> Iterator[Goal]:
        for name, threshold in wanted.items():
            peer = {"eager": EAGER, "compile": COMPILE}[name]
            yield Goal(f"{wording}: {peer}", workload, peer, threshold)

    bce, upsampled, select = "masked_bce", "masked_bce_upsampled", "select_top_fraction"
    yield from against(f"{bce} fp32, K=13, none missing", f"{bce}/K13-none", eager=25, compile=10)
    yield Goal(f"{bce} fp32, K=13, none missing: times a copy of the logits", f"{bce}/K13-none", COPY, 3, "at most")
    yield from against(f"{bce} fp32, K=13, 70% missing", f"{bce}/K13-70", eager=40, compile=18)
    yield from against(f"{bce} K=3 fp32, half missing", f"{bce}/K3-half", eager=18, compile=6)
    yield from against(f"{bce} K=13 bf16, half missing", f"{bce}/K13-bf16-half", eager=12, compile=9)
    for peer in (EAGER, COMPILE):
        yield Goal(f"{bce} K=13 fp16, none missing: {peer}", f"{bce}/K13-fp16-none", peer)
    for organs in (3, 13):
        wording = f"{upsampled}, stride 8, K={organs}"
        yield from against(f"{wording}, half missing", f"{upsampled}/K{organs}-half", eager=40, compile=50)
        yield from against(f"{wording}, 70% missing", f"{upsampled}/K{organs}-70", eager=60)
    main = f"{select}/3x26M-5pct"
    yield Goal(f"{select}, 3 x 26.2M: sort", main, SORT, 400)
    yield Goal(f"{select}, 3 x 26.2M: topk", main, TOPK, 70)
    yield Goal(f"{select}, 3 x 26.2M: the best compact baseline", main, (COMPACT_TOPK, COMPACT_PARTITION), 5)
    yield Goal(f"{select}, 3 x 26.2M: times one read", main, READ, 2.2, "at most")
    yield from against("label map from logits, stride 8, K=13", "label_map_upsampled/K13", eager=40, compile=15)
    yield from against("label map from logits, stride 8, K=3", "label_map_upsampled/K3", eager=25, compile=6)
    for op in (bce, upsampled):
        yield Goal(f"{op}: loss relative to float64", f"{op}/*", LOSS_ERROR, 1e-7, "at most")
    yield Goal(f"{bce}: fp32 gradient, ulp", f"{bce}/*", f"gradient{ULPS}", 4, "at most")
    # An entry is a sum of up to 256 terms of both signs: it has no fixed error relative to itself, in any order.
    of_largest = "fp32 gradient, ulp of its largest entry"
    yield Goal(f"{upsampled}: {of_largest}", f"{upsampled}/*", f"gradient{ULPS_OF_LARGEST}", 4, "at most")
    for op in (bce, upsampled):
        yield Goal(f"{op}: bf16 and fp16 gradient, ulp", f"{op}/*", f"16-bit gradient{ULPS}", 1, "at most")
    for op in (select, "label_map_upsampled", "pseudo_labels_upsampled"):
        yield Goal(f"{op}: voxels that are not exact", f"{op}/*", WRONG_VOXELS, 0, "at most")
    yield from _data_goals()
    yield from _whole_volume_goals()


def _data_goals() -> Iterator[Goal]:
    """From files on disk to a training step."""
    loader, slices = "loader", "loader: random 512x512 int16 slices"
    yield Goal(f"{slices}, verified, a second and core", f"{loader}/*", data.SLICES_PER_SECOND, 4000)
    yield Goal(f"{slices}: times the same without checksums", f"{loader}/*", data.UNCHECKED, 1.03, "at most")
    # A library's users choose its settings; nnU-Net's are nnU-Net's.
    yield Goal(f"{slices}: zarr v3 at its best", f"{loader}/*", (data.ZARR, data.ZARR_BEST), 10)
    yield Goal(f"{slices}: {data.CHUNKS}", f"{loader}/*", data.CHUNKS, 15)
    yield Goal(f"{slices}: {data.NIFTI}", f"{loader}/*", data.NIFTI, 80)
    for peer in (data.ZARR, data.CHUNKS_INT16, data.CHUNKS_2D, data.PERSISTENT):
        yield Goal(f"{slices}: {peer}", f"{loader}/*", peer)
    yield Goal("batches by two processes: torch DataLoader", "read_ahead/*", data.DATALOADER)
    prepare = "prepare: a volume of 512x512x100"
    for peer in (data.BY_HAND, data.BY_HAND_NNUNET):
        yield Goal(f"{prepare}: {peer}", "prepare/*", peer)
    yield Goal(f"{prepare}, CPU seconds", "prepare/*", data.CPU_SECONDS, direction="at most")
    yield Goal("prepare: 1,000 such volumes on 2 cores, seconds", SCALE, SCALE_SECONDS, 300, "at most")
    yield Goal("prepare: memory at the end of a cohort, times that after a few", SCALE, SCALE_MEMORY, 1.1, "at most")
    yield Goal("prepare: two shards by two processes, times one by one", SCALE, SCALE_SHARDS, 0.55, "at most")
    step = "training step, ResNet-18, 8 x 256x256"
    yield Goal(f"{step}: times forward and backward", "train_loop/*", data.BARE, 1.05, "at most")
    yield Goal(f"{step}: times these and the optimizer", "train_loop/*", data.BARE_STEP, None, "at most")
    for cases, most in ((1000, 0.2), (10000, 1.5)):
        yield Goal(f"opening a store of {cases:,} cases, CPU seconds", f"cohort/{cases}", data.OPENING, most, "at most")
    yield Goal("first batch of 1,000 cases, CPU seconds", "cohort/1000", data.FIRST_BATCH, None, "at most")
    training = "training: peak memory of 1,000 cases, times that of 10"
    yield Goal(training, "cohort/1000", data.TRAINING_GROWTH, 1.1, "at most")


def _whole_volume_goals() -> Iterator[Goal]:
    volume = "whole volume, HU on disk to labels on disk"
    for network, most in (("ResNet-50", 1.05), ("ResNet-18", 1.15)):
        # CT of 512 x 512: "whole_volume" a part of it, "whole_volume_long" all of its slices.
        pattern = f"whole_volume*/thorax-{network.replace('-', '').lower()}"
        yield Goal(f"{volume}, {network}: times the bare session", pattern, SESSION, most, "at most")
        # The least of the two: torch's best memory format.
        eager = (EAGER_LOOP, CHANNELS_LAST)
        yield Goal(f"{volume}, {network}: torch eager loop", pattern.replace("*", ""), eager, 2)
        yield Goal(f"{volume}, {network}: MONAI's sliding window", pattern.replace("*", ""), MONAI, 1)
    yield Goal(f"{volume}, int8: the same in fp32", "whole_volume/int8-*", FP32, 1.5)
    for scan in ("phantom", "abdomen"):
        yield Goal(f"whole volume: fewer pixels, {scan}", f"whole_volume/{scan}-*", FEWER_PIXELS, 1.3)
    memory = "whole volume: peak memory, bytes a voxel beyond the session"
    yield Goal(memory, "whole_volume/memory-*", BYTES_A_VOXEL, 5, "at most")
    yield Goal("the runtime's import, seconds", "whole_volume/memory-*", IMPORT, 0.5, "at most")
    yield Goal("smile-predict --help, seconds", "whole_volume/memory-*", HELP, 0.3, "at most")


GOALS = tuple(_goals())


def judge(goal: Goal, measured: dict[str, Figures]) -> Verdict:
    """Hold one goal against what was measured, by workload."""
    found = {name: _figure(goal, figures) for name, figures in measured.items() if fnmatch(name, goal.workload)}
    values = [(value, remark) for value, remark in found.values() if value is not None]
    if not values:
        return Verdict(goal, NOT_MEASURED, remark=_why_not(goal, [measured[name] for name in found]))
    at_least = goal.direction == "at least"
    value, remark = (min if at_least else max)(values)
    if goal.threshold is None:
        return Verdict(goal, "no goal", value, remark)
    met = value >= goal.threshold if at_least else value <= goal.threshold
    return Verdict(goal, "met" if met else "missed", value, remark)


def _why_not(goal: Goal, measured: list[Figures]) -> str:
    """Why a goal has no figure."""
    peer = goal.peer if isinstance(goal.peer, str) else goal.peer[0]
    for figures in measured:
        if peer in figures.get(data.LEFT_OUT, {}):
            return f"{peer}: {figures[data.LEFT_OUT][peer]}"
    return f"{peer} is not in the record" if measured else f"{goal.workload} is not in the record"


def _figure(goal: Goal, figures: Figures) -> tuple[float | None, str]:
    """The figure of one workload, and what should be said of it."""
    peers = (goal.peer,) if isinstance(goal.peer, str) else goal.peer
    costs = figures[ERRORS] | figures.get(COSTS, {})
    if peers[0] in costs:
        return costs[peers[0]], ""
    by_variant = {}
    for ours, ratios in figures[RATIOS].items():
        medians = [ratios[peer]["medians"] for peer in peers if peer in ratios]
        if medians:
            by_variant[ours] = min(medians) if goal.direction == "at least" else 1 / min(medians)
    # Users who care for speed let the gradient overwrite the logits; the other figure is not kept secret.
    best = IN_PLACE if IN_PLACE in by_variant else OURS
    others = [f"{value:.3g} in a new buffer" for ours, value in by_variant.items() if ours != best]
    remarks = ["in place", *others] if best == IN_PLACE else []
    stronger = figures[RATIOS].get(best, {}).get(ONE_GRAPH)
    if goal.peer == COMPILE and stronger:
        remarks.append(f"{stronger['medians']:.3g} against {ONE_GRAPH}")
    return by_variant.get(best), ", ".join(remarks)


def report(held: Mapping[str, dict[str, Figures]]) -> tuple[list[str], bool]:
    """All goals: the lines, and whether none is missed. What is not measured is not missed.

    Args:
        held: figures of each record, the one that counts first; what it has not measured is judged by the next.
    """
    verdicts = [_first(goal, held) for goal in GOALS]
    states = [verdict.state for verdict in verdicts]
    summary = ", ".join(f"{states.count(state)} {state}" for state in ("met", "missed", NOT_MEASURED))
    return [*(verdict.line() for verdict in verdicts), summary], "missed" not in states


def _first(goal: Goal, held: Mapping[str, dict[str, Figures]]) -> Verdict:
    """How a goal stands by the first record that knows; another one than the first of all is named."""
    verdicts = {name: judge(goal, measured) for name, measured in held.items()}
    known = {name: verdict for name, verdict in verdicts.items() if verdict.state != NOT_MEASURED}
    if not known:
        return next(iter(verdicts.values()))
    name, verdict = next(iter(known.items()))
    if name == next(iter(held)):
        return verdict
    return replace(verdict, remark=", ".join(filter(None, [verdict.remark, name])))
