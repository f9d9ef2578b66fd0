"""Many organs: 13 of real label maps, trained and scored, and what 3, 13 and 64 synthetic organs cost.

python -m bench.organs OUT [--labelmaps DIR]   # cohorts and runs in OUT; -> bench/results/organs.json, and a table

`trained`: phantoms painted on real label maps, half of the annotations hidden, SMILE and SMILEr by the commands of a
user. Without label maps it is left out, and an earlier record of it stays. `costs`: see `bench.organ_costs`.
`PREDICTED` was written down before anything was measured; the record holds it beside the figures.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import ROOT, commit, describe, instruction_set
from bench.organ_costs import COUNTS, measure_costs
from bench.prepare_scale import Memory
from smile_fast.demo.timed_commands import fresh_folder
from smile_fast.evaluation.results import read_evaluation
from smile_fast.text_table import text_table
from smile_fast.training.metrics import read_metrics
from smile_fast.training.run import Run
from smile_runtime.io.files import read_json, write_json

RECORD = ROOT / "bench" / "results" / "organs.json"
ORGANS = (
    *("liver", "pancreas", "stomach", "spleen", "kidney_right", "kidney_left", "gallbladder", "aorta"),
    *("inferior_vena_cava", "duodenum", "small_bowel", "colon", "esophagus"),
)
ALPHA = "0.5"
PHANTOM = ("--train", "16", "--test", "6", "--size", "112", "--slices", "20", "--workers", "1")
TRAIN = (
    *("--backbone", "resnet18", "--width", "16", "--rates", "3", "6", "9", "--batch-size", "8", "--crop-size", "96"),
    *("--lr", "0.003", "--epochs", "8", "--ema", "0.98", "--device", "cpu"),
)
METHODS = ("smile", "smiler")
PREDICTED = {
    "Dice of 13 organs, SMILE": "mean 0.4 to 0.6: liver above 0.8; gallbladder, duodenum, esophagus below 0.3",
    "SMILEr less SMILE": "within 0.05 of 0 on the mean",
    "K = 64 / K = 3": {
        "prepare, s a case": "below 1.2: the voxels are the same",
        "store, bytes": "below 1.1: the image is most of it",
        "training step, s": "1.3: the network is most of it, its head grows",
        "loss, s": "12 to 20: one pass over K logits a pixel",
        "relabel, s a case": "3 to 5: candidates are listed organ by organ, the network is the same",
        "evaluate, s a case": "5 to 10: surfaces organ by organ",
        "export, s": "1.1",
        "model, bytes": "1.0: a head of K rows",
        "train, peak MB": "below 1.1",
    },
}
"""Written before the first run."""


class CommandFailed(RuntimeError):
    """A command of the measurement did not end well."""


def run_command(*arguments: object) -> dict[str, float]:
    """Run `smile-fast` in a process of its own.

    Returns:
        Wall seconds, CPU seconds, and the highest resident memory, MB.

    Raises:
        CommandFailed: it did not end with 0.
    """
    paths = [str(ROOT), str(ROOT / "export"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "smile_fast", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    memory = Memory([process.pid])  # ru_maxrss of a child counts what its parent held when it was started
    memory.start()
    _, status, used = os.wait4(process.pid, 0)
    memory.ended.set()
    memory.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandFailed(f"smile-fast {' '.join(map(str, arguments))} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "CPU seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak MB": round(memory.parent),
    }


def measure_trained(out: Path, labelmaps: Path) -> dict[str, Any]:
    """All 13 organs from phantom to scores: commands, and for each method Dice by organ, steps and memory."""
    cohort, store = out / "cohort", out / "store"
    painted = ("--labelmaps", labelmaps, "--organs", ",".join(ORGANS))
    commands = {
        "phantom": run_command("phantom", cohort, *painted, *PHANTOM),
        "simulate-missing": run_command("simulate-missing", cohort, "--alpha", ALPHA),
        "prepare": run_command("prepare", cohort, store, "--workers", 1),
    }
    found: dict[str, Any] = {"alpha": float(ALPHA), "cohort": " ".join(PHANTOM), "settings": " ".join(TRAIN)}
    for method in METHODS:
        run = out / method
        commands[f"train {method}"] = run_command("train", store, run, "--method", method, *TRAIN)
        commands[f"evaluate {method}"] = run_command("evaluate", run, "--workers", 1, "--device", "cpu")
        found[method] = scores(run)
    return found | {"commands": commands}


def scores(run: Path) -> dict[str, Any]:
    """What a run scored: mean Dice by organ, of pairs whose truth holds voxels, their mean, and its steps."""
    evaluation = read_evaluation(run)
    assert evaluation is not None, f"{run}: no scores were written"
    dice: dict[str, list[float]] = {organ: [] for organ in ORGANS}
    for pair in evaluation.pairs:
        if pair.truth_ml and pair.dice is not None:
            dice[pair.organ].append(pair.dice)
    means = {organ: float(np.mean(values)) for organ, values in dice.items() if values}
    lines = [line for line in read_metrics(Run.open(run)) if "steps_per_second" in line]
    return {
        "Dice": {organ: round(mean, 3) for organ, mean in means.items()},
        "mean Dice": round(float(np.mean(list(means.values()))), 3),
        "steps": lines[-1]["iteration"],
        "steps a second": round(float(np.median([line["steps_per_second"] for line in lines])), 2),
    }


def table(record: dict[str, Any]) -> str:
    """The figures as text."""
    blocks = []
    if trained := record.get("trained"):
        rows = [
            [organ, *(f"{trained[method]['Dice'].get(organ, float('nan')):.3f}" for method in METHODS)]
            for organ in ORGANS
        ]
        rows += [
            [name, *(f"{trained[method][name]:g}" for method in METHODS)]
            for name in ("mean Dice", "steps", "steps a second")
        ]
        rows.append(["peak MB", *(f"{trained['commands'][f'train {method}']['peak MB']:g}" for method in METHODS)])
        blocks.append(text_table([["13 organs, half of the annotations hidden", *METHODS], *rows]))
    costs = record["costs"]
    few, many = (costs[str(count)] for count in (COUNTS[0], COUNTS[-1]))
    rows = [
        [name, *(f"{costs[str(count)][name]:.4g}" for count in COUNTS), f"{many[name] / few[name]:.2f}"] for name in few
    ]
    head = ["CPU seconds of one core", *(f"K = {n}" for n in COUNTS), f"K = {COUNTS[-1]} / {COUNTS[0]}"]
    blocks.append(text_table([head, *rows]))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def main() -> None:
    """Measure, record, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for cohorts and runs; new, or of this program")
    parser.add_argument("--labelmaps", type=Path, metavar="DIR", help="label maps of the 13 organs, and labels.json")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="default: bench/results")
    args = parser.parse_args()
    load = os.getloadavg()[0]  # of the minute before: what else runs
    out = fresh_folder(args.out.absolute())
    earlier = read_json(args.record, "measure again") if args.record.exists() else {}
    record: dict[str, Any] = {
        **commit(),
        "machine": describe(instruction_set()),
        "load average before": round(load, 2),
        "predicted": PREDICTED,
    }
    if args.labelmaps is not None:
        record["trained"] = measure_trained(out, args.labelmaps.absolute())
    elif "trained" in earlier:
        record["trained"] = earlier["trained"]
    record["costs"] = measure_costs(out / "costs", run_command)
    write_json(args.record, record)
    print(table(json.loads(json.dumps(record))))


if __name__ == "__main__":
    main()
