"""The goals of a GPU, held against its record. They were set for an H100; ratios are of the same run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from bench.commands.workloads import BUSY, CASE, EXPORT, SHARE, STEPS, VOLUME
from bench.comparison import OURS, listed
from bench.goals import Direction
from bench.measure import COSTS, MILLISECONDS, RATIOS
from bench.ops.masked_bce_upsampled import DENSE
from bench.ops.names import BYTES, COMPILE, COPY, EAGER, IMPLEMENTATION
from bench.ops.pseudo_labels_upsampled import HOST_TO_HOST
from bench.ops.select_top_fraction import TOPK
from bench.records import Figures, Record
from bench.timing import EXTRA_MEMORY
from bench.whole_volume.workloads import EAGER as EAGER_LOOP

MET, MISSED, UNMEASURED = "met", "missed", "nobody has measured it yet"
Figure = Callable[[Figures], float | None]
"""The figure of one benchmark; None where the record does not hold it."""


@dataclass(frozen=True)
class GpuGoal:
    """One goal.

    Attributes:
        wording: what is measured, in words.
        workload: "op/workload", or a pattern of them, of which the worst counts.
        figure: what of it. unit: of the figure.
        goal: the figure aimed at. direction: "at most" or "at least".
        first: the figure of the first run on an H100, where it held one.
    """

    wording: str
    workload: str
    figure: Figure
    unit: str
    goal: float
    direction: Direction = "at most"
    first: float | None = None


@dataclass(frozen=True)
class Verdict:
    """How a goal stands.

    Attributes:
        state: MET, MISSED or UNMEASURED.
        figure: the one that says so. workload: whose it is. whose: the implementation, and the commit.
    """

    goal: GpuGoal
    state: str
    figure: float | None = None
    workload: str = ""
    whose: str = ""

    @property
    def gap(self) -> str:
        """How far off a missed goal is."""
        if self.state != MISSED or not self.figure:
            return ""
        factor = self.figure / self.goal.goal
        return f"{factor if self.goal.direction == 'at most' else 1 / factor:.2f} times off"

    def line(self) -> str:
        """One line of the report."""
        figure = "" if self.figure is None else f"{number(self.figure)} {self.goal.unit}"
        first = "" if self.goal.first is None else f"; first run {number(self.goal.first)}"
        remark = f"  ({self.whose})" if self.whose else ""
        state = f"{self.state}, {self.gap}" if self.gap else self.state
        wanted = f"{self.goal.direction} {number(self.goal.goal)} {self.goal.unit}{first}"
        return f"{state:26}  {self.goal.wording:60}  {figure:>14}  {wanted}{remark}"


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def variant(figures: Figures) -> str:
    """Which of ours counts: that of the implementation that a GPU runs today, or else what was then the choice."""
    then, op = figures.get(IMPLEMENTATION), figures["name"].partition("/")[0]
    for now in listed(op, "cuda")[:1]:
        if then != now and f"{OURS}, {now}" in figures[MILLISECONDS]:
            return f"{OURS}, {now}"
    return OURS


def implementation(figures: Figures) -> str:
    """Whose figure counts, by the name of the implementation; "" where there is but one."""
    named = variant(figures)
    return str(figures.get(IMPLEMENTATION, "")) if named == OURS else named.removeprefix(f"{OURS}, ")


def time(scale: float, name: str = "") -> Figure:
    """Median time of ours, or of another call, in units of 1 ms / scale."""

    def figure(figures: Figures) -> float | None:
        taken = figures[MILLISECONDS].get(name or variant(figures))
        return None if taken is None else taken["median"] * scale

    return figure


def against(peer: str) -> Figure:
    """A peer's time over ours, by the medians."""

    def figure(figures: Figures) -> float | None:
        ratio = figures[RATIOS].get(variant(figures), {}).get(peer)
        return None if ratio is None else float(ratio["medians"])

    return figure


def bandwidth(figures: Figures) -> float | None:
    """Bytes a second of ours, those that have to be moved, over those of a copy of the logits in the same run."""
    ratio = against(COPY)(figures)
    if ratio is None or BYTES not in figures or "labels" not in figures:
        return None
    voxels = 1
    for length in figures["labels"]:
        voxels *= length
    return ratio * figures[BYTES] / (figures[BYTES] - voxels)  # the copy moves no labels


def cost(name: str) -> Figure:
    """Something that is no time of a call."""
    return lambda figures: figures.get(COSTS, {}).get(name)


def memory_a_voxel(figures: Figures) -> float | None:
    """Bytes of the device that ours needs at its peak, a voxel of the labels."""
    extra = figures.get(COSTS, {}).get(EXTRA_MEMORY)
    if extra is None or variant(figures) != OURS:  # only of the first of ours is that known
        return None
    for length in figures["labels"]:
        extra /= length
    return float(extra)


def a_volume(figures: Figures) -> float | None:
    """Seconds a volume of a folder."""
    taken, recorded = figures[MILLISECONDS].get(OURS), figures.get(COSTS, {}).get(VOLUME)
    return recorded if taken is None else taken["median"] / 1e3 / figures.get("volumes", 1)


def ratio(wording: str, workload: str, peer: str, least: float, first: float | None) -> GpuGoal:
    """A goal against a peer of the same run."""
    return GpuGoal(f"{wording}: times as fast as {peer}", workload, against(peer), "x", least, "at least", first)


def _goals() -> Iterator[GpuGoal]:
    micro = time(1e3)
    for wording, name, most, first in (
        ("K=13 fp32", "K13-none", 44, 78.4),
        ("K=13 bf16", "K13-bf16-none", 26, 60.9),
        ("K=3 fp32", "K3-half", 18, 48),
        ("K=64 bf16", "K64-bf16-half", 105, 143.7),
    ):
        yield GpuGoal(f"masked_bce {wording}", f"masked_bce/{name}", micro, "us", most, first=first)
    for wording, name, first in (("fp32", "K13-none", 0.444), ("bf16", "K13-bf16-none", 0.291)):
        text = f"masked_bce K=13 {wording}: share of a copy's bandwidth"
        yield GpuGoal(text, f"masked_bce/{name}", bandwidth, "", 0.8, "at least", first)
    yield ratio("masked_bce K=3 fp32", "masked_bce/K3-half", COMPILE, 1, 0.669)
    wording, name = "masked_bce_upsampled K=13, stride 8, half missing", "masked_bce_upsampled/K13-half"
    yield GpuGoal(wording, name, micro, "us", 45, first=162.9)
    for peer, least, before in ((EAGER, 25, 7.17), (COMPILE, 12, 3.53), (DENSE, 1, 0.443)):
        yield ratio(wording.partition(",")[0], name, peer, least, before)
    for wording, name, most, first, times, ratio_first in (
        ("5%", "3x26M-5pct*", 200, 409.8, 6, 3.04),
        ("adversarial", "3x26M-near-one", 240, 486.5, 5, 2.57),
        ("all candidates", "3x26M-all", 300, 2938, 4, 0.449),
    ):
        wording, name = f"select 3 x 26.2M, {wording}", f"select_top_fraction/{name}"
        yield GpuGoal(wording, name, micro, "us", most, first=first)
        yield ratio(wording, name, TOPK, times, ratio_first)
    for wording, name, before in (("", "K13-noise-volume", 674.9), (" of a sure network", "K13-volume", None)):
        text = f"label map, 100 x 512 x 512, K=13{wording}"
        yield GpuGoal(text, f"label_map_upsampled/{name}", micro, "us", 80, first=before)
    wording, name = "pseudo-labels, 100 x 512 x 512, 7 organs", "pseudo_labels_upsampled/K13-noise-volume"
    yield GpuGoal(f"{wording}, device to device", name, micro, "us", 700, first=1981)
    yield GpuGoal(f"{wording}, host to host", name, time(1e3, HOST_TO_HOST), "us", 3500, first=6916)
    yield GpuGoal(f"{wording}, device memory a voxel", name, memory_a_voxel, "bytes", 6, first=18.1)
    yield from _commands()


def _commands() -> Iterator[GpuGoal]:
    for network, least, steps, share, busy in (
        ("ResNet-50", 33, 15.8, 0.455, 0.42),
        ("ResNet-18", 85, 22.5, 0.245, None),
    ):
        name = f"commands/train-{network.lower().replace('-', '')}"
        wording = f"smile-fast train, {network}, batch 8"
        yield GpuGoal(wording, name, cost(STEPS), "steps/s", least, "at least", steps)
        yield GpuGoal(f"{wording}: {SHARE}", name, cost(SHARE), "", 0.97, "at least", share)
        yield GpuGoal(f"{wording}: {BUSY}", name, cost(BUSY), "", 0.95, "at least", busy)
    yield GpuGoal("smile-fast evaluate, a case of 512 x 512 x 60", "commands/evaluate", cost(CASE), "s", 0.3, first=2.8)
    yield GpuGoal("smile-fast export, ResNet-18", "commands/export", cost(EXPORT), "s", 6, first=22)
    predict = "smile-predict, 512 x 512 x 60, ResNet-18 fp16"
    folder = "predict/folder-fp16"
    yield GpuGoal(f"{predict}: a folder, a volume", folder, a_volume, "s", 0.1, first=0.47)
    yield GpuGoal(f"{predict}: one alone", "predict/alone-fp16", time(1e-3), "s", 0.35)
    yield ratio(f"{predict}: a folder", folder, EAGER_LOOP, 1.5, None)


GOALS = list(_goals())


def judge(goal: GpuGoal, measured: dict[str, Figures]) -> Verdict:
    """Hold one goal against what was measured; of several workloads the worst counts."""
    found = [
        (value, name)
        for name, figures in measured.items()
        if fnmatch(name, goal.workload) and (value := goal.figure(figures)) is not None
    ]
    if not found:
        return Verdict(goal, UNMEASURED)
    at_least = goal.direction == "at least"
    value, name = (min if at_least else max)(found)
    met = value >= goal.goal if at_least else value <= goal.goal
    figures = measured[name]
    whose = " at ".join(filter(None, [implementation(figures), figures["commit"]]))
    if remark := figures.get("remark"):
        whose += f", {remark}"
    return Verdict(goal, MET if met else MISSED, value, name, whose)


def verdicts(record: Record) -> list[Verdict]:
    """All goals against a record."""
    return [judge(goal, record.benchmarks) for goal in GOALS]


def report(record: Record) -> tuple[list[str], bool]:
    """All goals: the lines, and whether none is missed. What nobody has measured is not missed."""
    found = verdicts(record)
    states = [verdict.state for verdict in found]
    summary = f"{states.count(MET)} met, {states.count(MISSED)} missed, {states.count(UNMEASURED)} nobody has measured"
    return [*(verdict.line() for verdict in found), summary], MISSED not in states
