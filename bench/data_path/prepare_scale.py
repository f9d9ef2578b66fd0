"""What `python -m bench.prepare_scale` recorded of a whole cohort's preparation, as figures that goals judge."""

import json
from pathlib import Path
from typing import Any

from bench.measure import COSTS, ERRORS, MILLISECONDS, RATIOS
from bench.records import RESULTS, BrokenRecordError, Figures

SCALE = "prepare_scale/1000"
SCALE_SECONDS, SCALE_MEMORY, SCALE_SHARDS = "seconds of 1,000 volumes", "growth of memory", "two shards"
FILE = "prepare_scale.json"


def recorded(folder: Path = RESULTS) -> dict[str, Figures]:
    """The record by the name that goals know it by; nothing where it was not written.

    Raises:
        BrokenRecordError: it lacks what goals judge.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        costs = {
            SCALE_SECONDS: float(written["1,000 by extrapolation"]["seconds"]),
            SCALE_SHARDS: float(written["shards"]["ratio"]),
            SCALE_MEMORY: max(_growth(written["growth"], "worker MB"), _growth(written["tiny cases"], "parent MB")),
        }
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenRecordError(f"{path}: lacks {error}; take it from git again, or measure again") from None
    return {SCALE: {"name": SCALE, ERRORS: {}, MILLISECONDS: {}, RATIOS: {}, COSTS: costs}}


def _growth(runs: dict[str, Any], key: str) -> float:
    """What the most cases take over what the fewest take, by runs such as "10", "200, all kept" and "10 converted"."""
    by_cases: dict[int, float] = {}
    for name, run in runs.items():
        cases = int(name.replace(",", " ").split()[0])
        by_cases[cases] = max(by_cases.get(cases, 0.0), float(run[key]))
    return by_cases[max(by_cases)] / by_cases[min(by_cases)]
