"""A folder of 20 phantoms of 512 x 512 x 60 through `smile-predict`, without the network: all that is around it.

python -m bench.whole_volume.folder OUT [--against CHECKOUT]     # phantoms in OUT, made once; -> predict_folder.json

Another checkout's runtime takes turns with this one's. The label maps must be those of one volume after another. The
goal is wall time and is judged on a quiet machine; CPU time, which must fit into the goal on two cores, on any.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.machine import ROOT, commit, describe, instruction_set
from smile_fast.data.phantom import PhantomOptions, write_cohort
from smile_runtime.io.files import write_json

RECORD = ROOT / "bench" / "results" / "predict_folder.json"
GOAL = 0.20  # s a volume, on 2 cores
QUIET = 0.5  # load of the minute before
THREADS = 2
CASES = 20
MET = "met"
Figures = dict[str, dict[str, float]]
_PROCESS = Path(__file__).with_name("folder_process.py")


def phantoms(folder: Path, options: PhantomOptions) -> Path:
    """The folder of the scans; they are made if they are not there yet, which takes minutes."""
    if not folder.exists():
        write_cohort(folder, options, workers=THREADS)
    return folder / "imagesTr"


def tiny_model(path: Path) -> Path:
    """A model with a body rule, for its card: no network of it runs."""
    from bench.whole_volume.by_hand import network
    from bench.whole_volume.volume import write_model
    from bench.whole_volume.workloads import Workload

    write_model(network(Workload("resnet18", width=8)), path)
    return path


def seconds_of(checkout: Path, model: Path, scans: Path, out: Path) -> dict[str, float]:
    """Seconds a volume of a checkout's runtime, in a process of its own; the labels stay in ``out``."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    paths = [str(checkout), str(checkout / "export"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(_PROCESS), *map(str, (model, scans, out)), str(THREADS)]
    done = subprocess.run(command, env=environment, cwd=out, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def same_bytes(out: Path) -> bool:
    """Whether every label map of the folder has the bytes that it has alone."""
    names = sorted(path.name for path in (out / "alone").iterdir())
    return bool(names) and all(
        (out / "alone" / name).read_bytes() == (out / "folder" / name).read_bytes() for name in names
    )


def summary(rounds: list[dict[str, float]]) -> Figures:
    """Stage -> median and minimum of all rounds, to 0.1 ms."""
    found = {stage: [seconds[stage] for seconds in rounds] for stage in rounds[0]}
    return {
        stage: {"median": round(statistics.median(times), 4), "minimum": round(min(times), 4)}
        for stage, times in found.items()
    }


def measure(scans: Path, model: Path, out: Path, against: Path | None = None, rounds: int = 3) -> dict[str, Figures]:
    """Seconds a volume, by stage, of this checkout's runtime and of another one's, which take turns."""
    checkouts = {"after": ROOT} if against is None else {"before": against, "after": ROOT}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            found[name].append(seconds_of(checkout, model, scans, out / name))
            assert same_bytes(out / name), f"{name}: a folder's label maps differ from those of single scans"
    return {name: summary(seconds) for name, seconds in found.items()}


def verdict(record: dict[str, Any]) -> str:
    """Whether a record shows the goal: `MET`, "missed", or "not quiet" where other work took the cores."""
    found = record["seconds a volume"]["after"]
    if found["folder, CPU"]["median"] > GOAL * THREADS:
        return "missed"
    if found["folder"]["median"] <= GOAL:
        return MET
    return "missed" if record["load average before"] <= QUIET else "not quiet"


def main() -> None:
    """Measure and record; exit status 1 where the goal is missed, or the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for phantoms and label maps")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, measured in turns")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each (default: 3)")
    args = parser.parse_args()
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    scans = phantoms(out / "phantoms", PhantomOptions(train=CASES, test=0, size=512, slices=60))
    against = None if args.against is None else args.against.absolute()
    load = os.getloadavg()[0]  # of the minute before: what else runs
    seconds = measure(scans, tiny_model(out / "model.onnx"), out, against, args.rounds)
    record: dict[str, Any] = {
        **commit(),
        "machine": describe(instruction_set()) | {"threads": THREADS},
        "scans": [CASES, 512, 512, 60],
        "load average before": round(load, 2),
        "goal, s a volume": GOAL,
        "seconds a volume": seconds,
    }
    write_json(RECORD, record)
    for stage in seconds["after"]:
        print(f"{stage:<20}" + "".join(f"  {name} {found[stage]['median']:.4f}" for name, found in seconds.items()))
    print(verdict(record))
    sys.exit(verdict(record) != MET)


if __name__ == "__main__":
    main()
