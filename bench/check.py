"""The regression gate: are ours slower, against the same peers, than they were when this machine was recorded?

Times of a shared machine mean nothing, and one ratio may be noise, or a peer that got faster or slower. So a workload
is worse when ours lost more than TOLERANCE against its median peer, by the ratio of medians and by that of minima.
"""

import statistics
from collections.abc import Callable

from bench.measure import RATIOS
from bench.records import Figures

TOLERANCE = 1.25


def losses(recorded: Figures, measured: Figures) -> dict[str, float]:
    """How many times slower ours got, for each variant of ours that both have and that has a common peer.

    The median over the peers, so that one of them that changed decides nothing; the smaller of that of medians and that
    of minima: above TOLERANCE it is worse.
    """
    found = {}
    for ours, peers in recorded[RATIOS].items():
        now = measured[RATIOS].get(ours, {})
        common = [(then, now[peer]) for peer, then in peers.items() if peer in now]
        if common:
            found[ours] = min(
                statistics.median(then[statistic] / new[statistic] for then, new in common)
                for statistic in ("medians", "minima")
            )
    return found


def gone(recorded: Figures, measured: Figures) -> list[str]:
    """Variants of ours that are recorded, but cannot be compared any more: they or all their peers have vanished."""
    found = losses(recorded, measured)
    return [ours for ours in recorded[RATIOS] if ours not in found]


def worse(recorded: dict[str, Figures], measured: dict[str, Figures]) -> list[str]:
    """Workloads that got worse, of those that both have."""
    return [
        name
        for name, figures in measured.items()
        if name in recorded and any(lost > TOLERANCE for lost in losses(recorded[name], figures).values())
    ]


def gate(
    recorded: dict[str, Figures],
    names: list[str],
    measure: Callable[[list[str]], dict[str, Figures]],
    say: Callable[[str], None] = print,
) -> bool:
    """Measure and compare; what looks worse is measured once more, and fails only if it is worse again.

    Args:
        recorded: what the machine once reached.
        names: workloads to look at.
        measure: measures workloads.
        say: takes the lines of the report.

    Returns:
        Whether nothing got worse, and nothing has vanished.
    """
    known = [name for name in names if name in recorded]
    for name in names:
        if name not in recorded:
            say(f"no record    {name}: not in this machine's record, not compared")
    measured = measure(known) if known else {}
    suspects = worse(recorded, measured)
    if suspects:
        say(f"once more: {', '.join(suspects)}")
        again = measure(suspects)
        measured.update(again)
        suspects = worse(recorded, again)
    for name, figures in measured.items():
        for ours, lost in losses(recorded[name], figures).items():
            verdict = "worse" if lost > TOLERANCE else "as recorded"
            say(f"{verdict:12} {name}, {ours}: {lost:.2f} times the recorded time, by the median of the peers")
    missing = [name for name in known if name not in measured]
    for name, figures in measured.items():
        missing += [f"{name}, {ours}" for ours in gone(recorded[name], figures)]
    for name in missing:
        say(f"gone         {name}: recorded, but it cannot be measured any more")
    say(f"{len(measured)} compared, {len(suspects)} worse by more than {TOLERANCE:.2f}, {len(missing)} gone")
    return not suspects and not missing
