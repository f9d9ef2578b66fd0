"""How a cohort's cost grows with its cases: opening, the first batch, and bytes a case in memory and to a worker."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from bench.comparison import OURS, Call, Comparison, Conditions
from bench.data_path.names import (
    FIRST_BATCH,
    OPENED_BYTES,
    OPENING,
    PARSED,
    TO_A_WORKER,
    TRAINING_BYTES,
    TRAINING_GROWTH,
)
from bench.data_path.workloads import FEW, Cohort
from bench.machine import ROOT
from bench.measure import COSTS
from bench.ops.names import BYTES
from smile_fast.data.arrays import write_array
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo, StoredBox, gather_counts
from smile_fast.data.store import CASES, INDEX, Store, write_index
from smile_fast.supervision import State
from smile_runtime.volume.preprocessing import BodyRule, body_box

DISTINCT = 3  # cases with arrays of their own
SIDE = 64  # pixels of their slices
REPETITIONS = 3  # of a process


def compare(workload: Cohort, conditions: Conditions, folder: Path) -> Comparison:
    """Open a cohort's index, and measure in processes what it takes; growth is counted from a small cohort."""
    path = write_cohort(workload, folder / "cohort")
    few = write_cohort(replace(workload, cases=FEW), folder / "few")
    text, repetitions = path / INDEX, 1 if conditions.shrink > 1 else REPETITIONS

    def check() -> dict[str, float]:
        store = Store.open(path)
        assert len(store.cases) == workload.cases
        last = list(store.cases)[-1]
        assert store.read_image(last, [0]).shape == (1, SIDE, SIDE)
        return {}

    larger, smaller = ([_process("open", each) for _ in range(repetitions)] for each in (path, few))
    more = workload.cases - FEW
    costs = {FIRST_BATCH: statistics.median(run["first batch"] for run in larger)}
    if more:
        kinds = {OPENED_BYTES: "opened", TO_A_WORKER: "to a worker"}
        for name, key in kinds.items():
            most, least = (statistics.median(run[key] for run in runs) for runs in (larger, smaller))
            costs[name] = (most - least) / more
        peaks = [statistics.median(_process("train", each)["peak"] for _ in range(repetitions)) for each in (path, few)]
        costs |= {TRAINING_BYTES: (peaks[0] - peaks[1]) / more, TRAINING_GROWTH: peaks[0] / peaks[1]}
    return Comparison(
        [Call(OURS, lambda: Store.open(path))],
        [Call(PARSED, lambda: msgspec.json.decode(text.read_bytes()))],
        check,
        {"cases": workload.cases, BYTES: text.stat().st_size, COSTS: costs},
        derived=lambda seconds: {OPENING: seconds},
    )


def write_cohort(cohort: Cohort, path: Path) -> Path:
    """A store of so many cases, of which few have arrays of their own; the path."""
    organs = tuple(f"organ {number}" for number in range(1, cohort.organs + 1))
    distinct = [_case(cohort, organs, path, number) for number in range(min(DISTINCT, cohort.cases))]
    infos = list(distinct)
    for number in range(len(distinct), cohort.cases):
        info, name = distinct[number % len(distinct)], f"case_{number:05}"
        (path / CASES / name).mkdir()
        for file in (path / CASES / info.name).iterdir():
            os.link(file, path / CASES / name / file.name)
        infos.append(replace(info, name=name))
    write_index(path, organs, infos)
    return path


def _case(cohort: Cohort, organs: tuple[str, ...], path: Path, number: int) -> CaseInfo:
    """A case in which every organ is seen in a fifth to four fifths of the slices, in blocks beside each other."""
    rng = np.random.default_rng(number)
    depth = cohort.slices
    image = rng.normal(40, 20, (depth, SIDE, SIDE)).astype(np.int16)
    labels = np.zeros_like(image, dtype=np.uint8)
    for value in range(1, len(organs) + 1):
        first, last = np.sort(rng.choice(depth // 5 * np.arange(6), 2, replace=False))
        column = 4 * (value - 1) % SIDE
        labels[first:last, 8 : 8 + int(rng.integers(4, 40)), column : column + 4] = value
    counts = np.stack([(labels == value).sum(axis=(1, 2)) for value in range(1, len(organs) + 1)], axis=1)
    name = f"case_{number:05}"
    folder = path / CASES / name
    folder.mkdir(parents=True)
    spacing, rule = (1.5, 0.7, 0.7), BodyRule()
    return CaseInfo(
        name=name,
        split="train",
        shape=image.shape,
        spacing=spacing,
        affine=((-0.7, 0, 0, 0), (0, -0.7, 0, 0), (0, 0, 1.5, 0), (0, 0, 0, 1.0)),
        states=dict.fromkeys(organs, State.ANNOTATED),
        runs=gather_counts(counts, organs),
        sources={"image": f"{number:064x}", "label": f"{number:064x}"},
        arrays={IMAGE: write_array(folder, IMAGE, image), LABELS: write_array(folder, LABELS, labels)},
        body=StoredBox.of(body_box(image, spacing, rule), rule),
    )


def _process(what: str, path: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.data_path.growth_processes", what, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{what} {path} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
