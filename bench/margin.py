"""What the margin of the curriculum costs where pseudo-labels are selected, in CPU seconds of one core.

python -m bench.margin OUT   # a cohort and runs in OUT, a minute of one core; -> bench/results/margin.json, and a table

`relabel`: a round of a cohort of phantoms of 112 x 112 x 20, per case, without and with the margin: reading,
inference, selection and writing. `selection`: logits and labels of one case to its overlay, and no network; the default
of three organs on 512 x 512 x 100, too. `organ by organ` is the way of all other brakes, with the same result.
`confidence` is the mean confidence of pseudo-labels that every round says, with and without a margin.

All take turns; figures are medians. `PREDICTED` was written down before any round was measured.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.machine import ROOT, commit, describe, instruction_set
from bench.organ_costs import COUNTS, PHANTOM, SETTINGS, cpu_seconds, first_organs, in_turns, untrained_run
from bench.organs import run_command
from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.store import Store
from smile_fast.demo.timed_commands import fresh_folder
from smile_fast.text_table import text_table
from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.conduct import round_of
from smile_fast.training.curriculum.limits import Limits
from smile_fast.training.curriculum.selection import braked_pseudo_labels
from smile_fast.training.mean_confidence import mean_confidences
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_fast.training.relabel import relabel
from smile_fast.training.run import Run
from smile_runtime.io.files import write_json

RECORD = ROOT / "bench" / "results" / "margin.json"
MARGINS = (0.0, 20.0)  # mm
GAMMA, STRIDE = 0.33, 8  # gamma of the selections alone
SIZES = {"K = 3": (20, 3, 112), "K = 13": (20, 13, 112), "K = 64": (20, 64, 112), "512 x 512 x 100": (100, 3, 512)}
PREDICTED = {
    "relabel, with / without": {"3": "1.03", "13": "1.06", "64": "1.25: 32 missing organs, each with an edge"},
}
PLAIN, MARGIN, BY_ORGAN, CONFIDENCE = "without", "with the margin", "organ by organ", "confidence"


def measure_relabel(out: Path) -> dict[str, dict[str, float]]:
    """CPU seconds a case of a round, by number of organs and margin."""
    whole = out / "whole"
    run_command("phantom", whole, "--synthetic-organs", COUNTS[-1], *PHANTOM)
    runs: dict[int, Run] = {}
    for count in COUNTS:
        first_organs(whole, out / f"cohort-{count}", count)
        store = out / f"store-{count}"
        prepare(RawDataset.open(out / f"cohort-{count}"), store, workers=1, report=str, note=str)
        runs[count] = untrained_run(out / f"run-{count}", Store.open(store))
    times: dict[int, dict[str, list[float]]] = {count: {} for count in COUNTS}
    in_turns({count: _relabel(run) for count, run in runs.items()}, times)
    return {str(count): _medians(each) for count, each in times.items()}


def _relabel(run: Run) -> Callable[[], dict[str, float]]:
    model, view, rounds = run.load_model(), run.view("train"), run.path / "measured"

    def once() -> dict[str, float]:
        found = {}
        for margin in MARGINS:
            shutil.rmtree(rounds, ignore_errors=True)
            config = TrainConfig.from_options(SETTINGS | {"method": "smiler", "margin": margin})
            this = round_of(config, view, rounds, 1, gamma=0.5, scope="volume")
            seconds = cpu_seconds(partial(relabel, model, view, rounds, this))
            found[MARGIN if margin else PLAIN] = seconds / len(view.cases)
        return found

    return once


def case_of(depth: int, organs: int, size: int) -> tuple[Tensor, Tensor]:
    """Logits [D, K, h, w] that fall with the distance from a place of each organ, and labels [D, H, W] of a quarter."""
    low = -(-size // STRIDE)
    random = np.random.default_rng(organs)
    grid = np.meshgrid(*(np.linspace(0, 1, side, dtype=np.float32) for side in (depth, low, low)), indexing="ij")
    logits = np.empty((depth, organs, low, low), np.float32)
    for organ in range(organs):
        place = random.uniform(0.2, 0.8, 3)
        far = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(grid, place, strict=True)))
        logits[:, organ] = 3 - 30 * far + random.normal(0, 0.1, far.shape)
    labels = torch.zeros((depth, size, size), dtype=torch.uint8)
    labels[:, :, : size // 4] = 1
    return torch.from_numpy(logits), labels


@torch.inference_mode()
def measure_selection() -> dict[str, dict[str, float]]:
    """CPU seconds of one case, by size and way; every second organ is missing, with room for a tenth or a fiftieth."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in SIZES}
    in_turns({name: _selection(*size) for name, size in SIZES.items()}, times)
    return {name: _medians(each) for name, each in times.items()}


def _selection(depth: int, organs: int, size: int) -> Callable[[], dict[str, float]]:
    logits, labels = case_of(depth, organs, size)
    missing = list(range(1, organs, 2)) if organs > 3 else [1, 2]
    rooms = [labels.numel() // (10 if number % 3 == 0 else 50) for number in range(len(missing))]
    labeller = PseudoLabeller()

    def fused(of: list[int] | None) -> Tensor:
        return labeller(logits, labels, missing, GAMMA, STRIDE, "volume", of)[0]

    def by_organ() -> Tensor:
        limits, positions = [Limits()] * len(missing), np.arange(depth)
        return braked_pseudo_labels(
            logits, labels, missing, GAMMA, STRIDE, "volume", limits=limits, positions=positions, rooms=rooms
        )[0]

    overlay = fused(rooms)
    assert torch.equal(overlay, by_organ()), "the two ways give other pseudo-labels"
    ways: Mapping[str, Callable[[], object]] = {
        PLAIN: partial(fused, None),
        MARGIN: partial(fused, rooms),
        BY_ORGAN: by_organ,
        CONFIDENCE: partial(mean_confidences, logits, overlay, missing, STRIDE),
    }
    return lambda: {name: cpu_seconds(way) for name, way in ways.items()}


def _medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: float(f"{statistics.median(each):.4g}") for name, each in times.items()}


def table(record: dict[str, Any]) -> str:
    """The figures as text."""
    head = ["relabel, CPU ms a case", PLAIN, MARGIN, "ratio"]
    rounds = [head] + [
        [f"K = {count}", *(f"{1e3 * own[way]:.4g}" for way in (PLAIN, MARGIN)), f"{own[MARGIN] / own[PLAIN]:.2f}"]
        for count, own in record["relabel"].items()
    ]
    ways = (PLAIN, MARGIN, BY_ORGAN, CONFIDENCE)
    selections = [["selection, CPU ms", *ways]] + [
        [name, *(f"{1e3 * own[way]:.4g}" for way in ways)] for name, own in record["selection"].items()
    ]
    return "\n\n".join("\n".join(text_table(rows)) for rows in (rounds, selections))


def main() -> None:
    """Measure, record, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for cohorts and runs; new, or of this program")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="default: bench/results")
    args = parser.parse_args()
    load = os.getloadavg()[0]  # of the minute before: what else runs
    out = fresh_folder(args.out.absolute())
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **commit(),
        "machine": describe(instruction_set()),
        "load average before": round(load, 2),
        "predicted": PREDICTED,
        "relabel": measure_relabel(out),
        "selection": measure_selection(),
    }
    write_json(args.record, record)
    print(table(json.loads(json.dumps(record))))


if __name__ == "__main__":
    main()
