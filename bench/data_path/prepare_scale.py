"""What `python -m bench.prepare_scale` recorded of a whole cohort's preparation, as figures that goals judge."""

import json
from pathlib import Path

from bench.measure import COSTS, ERRORS, MILLISECONDS, RATIOS
from bench.records import RESULTS, Figures

SCALE = "prepare_scale/1000"
SCALE_SECONDS, SCALE_MEMORY, SCALE_SHARDS = "seconds of 1,000 volumes", "growth of memory", "two shards"
FILE = "prepare_scale.json"


def recorded(folder: Path = RESULTS) -> dict[str, Figures]:
    """The record by the name that goals know it by; nothing where it was not written."""
    path = folder / FILE
    if not path.exists():
        return {}
    written = json.loads(path.read_text(encoding="utf-8"))
    costs = {name: written[key] for key, name in FIELDS.items() if written.get(key) is not None}
    return {SCALE: {"name": SCALE, ERRORS: {}, MILLISECONDS: {}, RATIOS: {}, COSTS: costs}}


FIELDS = {"seconds_of_1000": SCALE_SECONDS, "memory_growth": SCALE_MEMORY, "two_shards": SCALE_SHARDS}
