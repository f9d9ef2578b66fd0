"""`smile-fast prepare` of real-size volumes: time, memory and disk, and how they grow with the number of cases.

python -m bench.prepare_scale OUT [--volumes 200]     # volumes in OUT, made once; -> prepare_scale.json

Three phantoms are the base of all volumes: each is moved through the slices and gets its own noise, so no two are alike
and making one takes a second. Every run is the command in processes of its own. The goal is wall time of 1,000 volumes
on two cores, extrapolated with the growth that was measured; CPU time tells whether they were free.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bench.machine import ROOT, commit, describe, instruction_set
from smile_fast.data.phantom import PhantomOptions, make_case
from smile_runtime.io.files import write_json
from smile_runtime.io.gzip import pack_labels

RECORD = ROOT / "bench" / "results" / "prepare_scale.json"
GOAL_S = 300.0  # of 1,000 volumes of 512 x 512 x 100, on two cores
SHARDS_GOAL = 0.55
WORKERS = 2
BASES = 3
ORGANS = ("liver", "pancreas", "stomach")
TINY = (10, 1000)  # cases of 32 x 32 x 8 voxels, for what the number of cases alone costs
_SAMPLE_S = 0.05  # between two looks at the memory of processes
Run = dict[str, float]


def base_volumes(size: int, slices: int) -> list[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """The phantoms that all volumes are made from: image and labels [D, H, W]; large ones of doubled voxels."""
    factor = 2 if size >= 256 else 1
    options = PhantomOptions(size=-(-size // factor), slices=-(-slices // factor), organs=ORGANS)
    bases = []
    for index in range(BASES):
        image, labels, _ = make_case(options, 0, index)
        bases.append((_enlarged(image, factor, size, slices), _enlarged(labels, factor, size, slices)))
    return bases


def _enlarged(volume: NDArray[Any], factor: int, size: int, slices: int) -> NDArray[Any]:
    for axis in range(3):
        volume = volume.repeat(factor, axis)
    return volume[:slices, :size, :size]


def make_cohort(folder: Path, count: int, size: int, slices: int) -> None:
    """Write an nnU-Net dataset of training cases with annotations.csv; what is there already is not made again."""
    bases: list[tuple[NDArray[np.int16], NDArray[np.uint8]]] = []
    names = [f"case_{number:04}" for number in range(count)]
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image, label = folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"
        if label.exists():
            continue
        bases = bases or base_volumes(size, slices)
        hu, labels = bases[number % BASES]
        shift = number // BASES
        rng = np.random.default_rng(number)
        noise = rng.integers(-12, 13, hu.shape, np.int8)
        write_volume(image, np.maximum(np.roll(hu, shift, axis=0) + noise, -1024).astype(np.int16))
        write_volume(label, np.roll(labels, shift, axis=0))
    describe_cohort(folder, names)


def write_volume(path: Path, slices: NDArray[Any]) -> None:
    """Write a volume [D, H, W] as `.nii.gz`; rows and columns run as in most files, so that they have to be turned."""
    data = slices[:, ::-1, ::-1].T
    header = nib.Nifti1Image(data, np.diag([0.8, 0.8, 1.5, 1.0])).header
    header["vox_offset"] = 352
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file, pack_labels(file) as packed:
        packed.write(header.binaryblock + bytes(4))
        packed.write(data.tobytes("F"))
    temporary.rename(path)


def describe_cohort(folder: Path, names: Sequence[str]) -> None:
    """Write dataset.json and annotations.csv of training cases in which all is annotated."""
    labels = {"background": 0} | {organ: value for value, organ in enumerate(ORGANS, start=1)}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", described)
    rows = [f"{name},{organ},annotated" for name in names for organ in ORGANS]
    (folder / "annotations.csv").write_text("\n".join(["case,organ,state", *rows]) + "\n")


def first_cases(folder: Path, part: Path, count: int) -> Path:
    """A dataset of the first cases of another; its files are links."""
    shutil.rmtree(part, ignore_errors=True)
    names = [f"case_{number:04}" for number in range(count)]
    for sub, suffix in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (part / sub).mkdir(parents=True)
        for name in names:
            os.link(folder / sub / (name + suffix), part / sub / (name + suffix))
    describe_cohort(part, names)
    return part


class Memory(threading.Thread):
    """Watches processes and their children: the highest memory of any parent and of any child, MB."""

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.parents, self.parent, self.worker, self.ended = parents, 0.0, 0.0, threading.Event()

    def run(self) -> None:
        """Look until `ended` is set."""
        while not self.ended.wait(_SAMPLE_S):
            for parent in self.parents:
                self.parent = max(self.parent, peak_mb(parent))
                self.worker = max([self.worker, *map(peak_mb, children(parent))])


def peak_mb(process: int) -> float:
    """The highest memory that a process had, MB; 0 of one that is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max([int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:")], default=0.0)


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def run_commands(*commands: Sequence[object]) -> Run:
    """Run `smile-fast prepare` once or several times at once; wall time, CPU time of all, and memory."""
    paths = [str(ROOT), str(ROOT / "export"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    before, start = os.times(), time.perf_counter()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "smile_fast", "prepare", *map(str, command)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    memory = Memory([process.pid for process in started])
    memory.start()
    for process in started:
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"prepare ended with {process.returncode}: {errors[-2000:]}")
    seconds, after = time.perf_counter() - start, os.times()
    memory.ended.set()
    memory.join()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": round(seconds, 2),
        "CPU seconds": round(cpu, 2),
        "parent MB": round(memory.parent, 1),
        "worker MB": round(memory.worker, 1),
    }


def gigabytes(folder: Path) -> float:
    """What the files below a folder take, GB."""
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9, 4)


def measure_growth(cohort: Path, out: Path, counts: Sequence[int]) -> dict[str, Run]:
    """Prepare the first so many cases, into a new store each time; the largest once more, when all are kept."""
    found: dict[str, Run] = {}
    store = out / "store"
    for count in counts:
        part = first_cases(cohort, out / "part", count)
        shutil.rmtree(store, ignore_errors=True)
        disk = {"source GB": gigabytes(part)}
        found[str(count)] = run_commands([part, store, "--workers", WORKERS]) | disk | {"store GB": gigabytes(store)}
    found[f"{counts[-1]}, all kept"] = run_commands([out / "part", store, "--workers", WORKERS])
    shutil.rmtree(store)
    return found


def measure_shards(cohort: Path, out: Path, count: int) -> dict[str, Any]:
    """One process against two shards at once, of one worker each; the index is part of both."""
    part, store = first_cases(cohort, out / "part", count), out / "store"
    one_worker = [part, store, "--workers", 1]
    shutil.rmtree(store, ignore_errors=True)
    one = run_commands(one_worker)
    shutil.rmtree(store)
    shards = run_commands(*([*one_worker, "--shard", f"{number}/2"] for number in (1, 2)))
    finish = run_commands([part, store, "--finish"])
    shutil.rmtree(store)
    two = shards["seconds"] + finish["seconds"]
    return {"cases": count, "one": one, "two shards": shards, "finish": finish, "ratio": round(two / one["seconds"], 3)}


def extrapolated(growth: dict[str, Run], counts: Sequence[int], to: int = 1000) -> Run:
    """What so many volumes take, by the line through the last two counts."""
    few, many = (growth[str(count)] for count in counts[-2:])
    span = counts[-1] - counts[-2]
    return {key: round(many[key] + (to - counts[-1]) * (many[key] - few[key]) / span, 2) for key in many}


def measure_tiny(out: Path, counts: Sequence[int]) -> dict[str, Run]:
    """What the number of cases alone costs: cases of a few voxels, converted and kept, in the parent itself."""
    found: dict[str, Run] = {}
    cohort, store = out / "tiny", out / "store"
    make_cohort(cohort, counts[-1], size=32, slices=8)
    for count in counts:
        part = first_cases(cohort, out / "part", count)
        for state in ("converted", "kept"):
            found[f"{count} {state}"] = run_commands([part, store, "--workers", WORKERS])
        shutil.rmtree(store)
    return found


def main() -> None:
    """Measure and record; exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for volumes and stores, 60 MB a volume")
    parser.add_argument("--volumes", type=int, default=200, metavar="N", help="the largest number (default: 200)")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="rows and columns (default: 512)")
    parser.add_argument("--slices", type=int, default=100, metavar="N", help="slices of a volume (default: 100)")
    parser.add_argument("--tiny", type=int, default=TINY[-1], metavar="N", help=f"tiny cases (default: {TINY[-1]})")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="default: bench/results")
    args = parser.parse_args()
    out = args.out.absolute()
    load = os.getloadavg()[0]  # of the minute before: what else runs
    make_cohort(out / "cohort", args.volumes, args.size, args.slices)
    counts = sorted({max(1, args.volumes // 20), max(1, args.volumes // 4), args.volumes})
    growth = measure_growth(out / "cohort", out, counts)
    record: dict[str, Any] = {
        **commit(),
        "machine": describe(instruction_set()) | {"workers": WORKERS},
        "volume": [args.size, args.size, args.slices],
        "load average before": round(load, 2),
        "goal, s of 1,000": GOAL_S,
        "growth": growth,
        "1,000 by extrapolation": extrapolated(growth, counts),
        "shards": measure_shards(out / "cohort", out, counts[-2]),
        "tiny cases": measure_tiny(out, (TINY[0], args.tiny)),
    }
    shutil.rmtree(out / "part")
    write_json(args.record, record)
    print(
        json.dumps({key: record[key] for key in ("growth", "1,000 by extrapolation", "shards", "tiny cases")}, indent=1)
    )
    met = record["1,000 by extrapolation"]["seconds"] <= GOAL_S and record["shards"]["ratio"] <= SHARDS_GOAL
    print("met" if met else "missed")
    sys.exit(not met)


if __name__ == "__main__":
    main()
