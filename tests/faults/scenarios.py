"""Commands that are cut short, what they start from, how they are repeated, and what must come out all the same."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smile_fast.evaluation.verify import verify_run
from smile_fast.training.metrics import read_metrics
from smile_fast.training.rounds import existing_rounds
from smile_fast.training.run import Run
from tests.cohorts import annotate, edit_label, make_cohort, stored
from tests.faults.inject import Fault

NETWORK = "--backbone resnet18 --width 8 --rates 1 --crop-size 32 --batch-size 2 --epochs 0.3 --lr 0.01 --device cpu"
CURRICULUM = "--method smiler --rounds 2 --round-share 0.5 --ema 0.9 --optimizer sgd --lr 0.3"
STATES = {("case_01", "liver"): "missing", ("case_02", "pancreas"): "missing"}

Command = list[str]


def words(*commands: str) -> list[Command]:
    return [command.split() for command in commands]


PREPARED = words("prepare cohort store --workers 1")
SOURCE = words(f"train store source {NETWORK} --seed 5")
TRAINED = words(f"train store run {NETWORK} {CURRICULUM}")

SWEPT = words(
    "sweep store out --shard 1/1 --methods smile,smiler --alphas .5 --folds 1 --rounds 1 --optimizer sgd "
    + NETWORK.replace("--lr 0.01", "--lr 0.3")
)


def again(work: Path, commands: list[Command]) -> list[Command]:
    return commands


def resumed(work: Path, commands: list[Command]) -> list[Command]:
    """What a user does: --resume where there is a run, else the same command."""
    return words("train store run --resume --device cpu") if (work / "run").exists() else commands


def next_round(work: Path, commands: list[Command]) -> list[Command]:
    """The same, unless the round is there already."""
    return [] if 3 in existing_rounds(work / "run" / "rounds") else commands


@dataclass(frozen=True)
class Scenario:
    """One command, or several in a row.

    Attributes:
        name: of the test. before: what made the folders that it finds. commands: what is cut short.
        repeat: commands that bring what was cut short to its end. result: what must be the same then.
    """

    name: str
    before: list[Command]
    commands: list[Command]
    repeat: Callable[[Path, list[Command]], list[Command]] = again
    result: tuple[str, ...] = field(default=("store",))


SCENARIOS = [
    Scenario("prepare", [], PREPARED),
    Scenario("prepare more", words("prepare cohort store --workers 1"), words("prepare changed store --workers 1")),
    Scenario("train", PREPARED, words(f"train store run {NETWORK}"), resumed, ("store", "run")),
    Scenario(
        "train from weights",
        PREPARED + SOURCE,
        words(f"train store run {NETWORK} --weights source"),
        resumed,
        ("store", "run"),
    ),
    Scenario("train with rounds", PREPARED, TRAINED, resumed, ("store", "run")),
    Scenario("relabel", PREPARED + TRAINED, words("relabel run --gamma 0.5 --device cpu"), next_round, ("run",)),
    Scenario("relabel undone", PREPARED + TRAINED, words("relabel run --undo 0"), again, ("run",)),
    Scenario(
        "prepare by shards",
        [],
        words(
            "prepare cohort store --workers 1 --shard 2/2",
            "prepare cohort store --workers 1 --shard 1/2",
            "prepare cohort store --finish",
        ),
    ),
    Scenario(
        "relabel by shards",
        PREPARED + TRAINED,
        [
            f"relabel run --round 3 --gamma 0.5 {more}".split()
            for more in ("--shard 2/2 --device cpu", "--shard 1/2 --device cpu", "--finish")
        ],
        next_round,
        ("run",),
    ),
    Scenario(
        "evaluate by shards",
        PREPARED + TRAINED,
        words(
            "evaluate run --split train --workers 1 --device cpu --write maps --shard 2/2",
            "evaluate run --split train --workers 1 --device cpu --write maps --shard 1/2",
            "evaluate run --split train --write maps --finish",
        ),
        again,
        ("run", "maps"),
    ),
    Scenario("merge", [], words("merge cohort changed merged --prefix"), again, ("merged",)),
    Scenario(
        "evaluate",
        PREPARED + TRAINED,
        words("evaluate run --workers 1 --device cpu --write maps"),
        again,
        ("store", "run", "maps"),
    ),
    Scenario("sweep", PREPARED, SWEPT, again, ("out",)),
]


class Bench:
    """A folder in which scenarios are played, always at the same place, and the server that plays them."""

    def __init__(self, folder: Path) -> None:
        self.work, self.kept = folder / "work", folder / "kept"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._made: dict[str, Path] = {}

    def close(self) -> None:
        self._server.communicate()

    def run(self, commands: list[Command], kind: str = "kill", number: int = 0) -> dict[str, Any]:
        """Run commands; see `server.py` for the answer."""
        fault = Fault(kind, number, str(self.work))
        job = {**vars(fault), "commands": commands, "cwd": str(self.work)}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        found: dict[str, Any] = json.loads(self._server.stdout.readline())
        return found

    def start(self, scenario: Scenario) -> None:
        """Bring the folder to where the scenario begins."""
        made = json.dumps(scenario.before)
        shutil.rmtree(self.work, ignore_errors=True)
        if made not in self._made:
            self.work.mkdir(parents=True)
            annotate(make_cohort(self.work / "cohort", train=3, test=1), STATES)
            shutil.copytree(self.work / "cohort", self.work / "changed")
            edit_label(self.work / "changed", "case_00", lambda labels: np.roll(labels, 1, axis=2))
            for command in scenario.before:
                answer = self.run([command])
                assert answer["status"] == 0, answer["said"]
            self._made[made] = self.kept / str(len(self._made))
            shutil.copytree(self.work, self._made[made])
            return
        shutil.copytree(self._made[made], self.work)

    def result(self, scenario: Scenario) -> dict[str, Any]:
        """What the scenario has brought about, without times."""
        found: dict[str, Any] = {}
        for name in scenario.result:
            found |= {f"{name}/{file}": digest for file, digest in digests(self.work / name).items() if _counts(file)}
        if "run" in scenario.result and (self.work / "run").exists():
            times = ("seconds", "steps_per_second")
            lines = read_metrics(Run.open(self.work / "run"))
            found["metrics"] = [{key: value for key, value in line.items() if key not in times} for line in lines]
        return found

    def human(self) -> dict[str, str]:
        """The files of the cohorts, and every case of the store that is not being converted again."""
        return {name: digests(self.work / name) for name in ("cohort", "changed")}

    def assert_whole(self, label: str) -> None:
        """Whatever is visible of runs and rounds is whole; of scores and their table one may be older, and is said."""
        for folder in (self.work / "run", self.work / "source", *(self.work / "out").glob("cells/*/*/fold-*")):
            if folder.exists():
                faults = verify_run(folder, workers=1).faults
                tables = [fault for fault in faults if Path(fault.partition(".csv: ")[0]).name.startswith("evaluation")]
                faults = [fault for fault in faults if fault not in tables]
                assert faults == [], label

    def check_survives(
        self,
        scenario: Scenario,
        places: Callable[[list[str]], list[tuple[str, int]]],
        judge: Callable[[str, dict[str, Any]], None],
    ) -> int:
        """Disturb a scenario at many places: what is there is whole, and repeated it ends as if nothing had been.

        Args:
            scenario: what runs.
            places: the changes of an undisturbed run -> (kind, number) of what to disturb.
            judge: gets each disturbed run's label and answer.

        Returns:
            How many places there were.
        """
        self.start(scenario)
        human = self.human()
        answer = self.run(scenario.commands)
        assert answer["status"] == 0, answer["said"]
        wanted, chosen = self.result(scenario), places(answer["seen"])
        for kind, number in chosen:
            label = f"{scenario.name}: {kind} at change {number} of {len(answer['seen'])}"
            self.start(scenario)
            judge(label, self.run(scenario.commands, kind, number))
            self.assert_whole(label)
            repeated = self.run(scenario.repeat(self.work, scenario.commands))
            assert repeated["status"] == 0, f"{label}: {repeated['said']}"
            assert self.result(scenario) == wanted, label
            assert self.human() == human, label
        return len(chosen)


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in stored(folder).items()}


_OTHERWISE = ("environment.json", "metrics.jsonl", "case.json", "cell.json")
"""Files with a clock in them, or with the inodes of what they were made from."""


def _counts(file: str) -> bool:
    """Whether a file is one of those that must be the same: no clock in it, nothing that a kill may leave."""
    name = Path(file).name
    hidden = any(part.startswith(".") for part in Path(file).parts)
    return not hidden and name not in _OTHERWISE and not name.startswith("checkpoint")
