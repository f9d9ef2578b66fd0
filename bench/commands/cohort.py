"""A prepared store of synthetic CT for whole commands: few volumes are made, and most cases are links to them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.commands.workloads import Cohort
from bench.machine import ROOT

FOLDER = ROOT / "build" / "gpu-cohorts"  # kept between commands of one checkout
DISTINCT = 12  # training volumes that differ: 17 s of one core for each of 512 x 512 x 60


class CommandError(RuntimeError):
    """A command did not succeed."""


def command(*arguments: object) -> str:
    """Run `smile-fast ARGUMENTS` as a user does, in a process of its own; what it printed.

    Raises:
        CommandError: it failed; the last lines that it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "smile_fast", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise CommandError(f"smile-fast {' '.join(map(str, arguments))} ended with status {done.returncode}:\n{last}")
    return done.stdout


def store(cohort: Cohort, folder: Path = FOLDER) -> Path:
    """The prepared store of a cohort; made where it is not there."""
    name = f"{cohort.train}-{cohort.test}x{cohort.size}x{cohort.slices}"
    raw, unfinished, ready = (folder / f"{kind}-{name}" for kind in ("raw", "unfinished", "store"))
    if ready.exists():
        return ready
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    distinct = min(DISTINCT, cohort.train)
    size = ("--size", cohort.size, "--slices", cohort.slices)
    command("phantom", raw, "--train", distinct, "--test", cohort.test, *size, "--force")
    repeat(raw, cohort.train)
    command("prepare", raw, unfinished)
    unfinished.rename(ready)
    return ready


def repeat(raw: Path, train: int) -> None:
    """Let a raw dataset have `train` training cases: further ones are the first ones again, under other names."""
    described = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    ending, first = described["file_ending"], described["numTraining"]
    cases = sorted(file.name.removesuffix(f"_0000{ending}") for file in (raw / "imagesTr").iterdir())
    rows = list(csv.reader((raw / "annotations.csv").read_text(encoding="utf-8").splitlines()))
    for number in range(first, train):
        case, copy = cases[number % first], f"copy_{number:04d}"
        for folder, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
            os.link(raw / folder / f"{case}{suffix}{ending}", raw / folder / f"{copy}{suffix}{ending}")
        rows += [[copy, *row[1:]] for row in rows if row[0] == case]
    with (raw / "annotations.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    (raw / "dataset.json").write_text(json.dumps(described | {"numTraining": max(first, train)}), encoding="utf-8")
