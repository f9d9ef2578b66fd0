"""What a round in the making is made of, what is known of its finished cases, and what its files are called."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from smile_fast import __version__
from smile_fast.data.case_info import Digest, SliceCounts
from smile_fast.records import read_record
from smile_fast.text_table import listed
from smile_fast.training.curriculum.braking import Braking
from smile_fast.training.rounds import UNFINISHED, Confidences, OrganCounts, Round, check_confidences, check_counted
from smile_runtime.errors import InputError

SCHEMA: Final = 1
PLAN, CASES, ROUND = "plan.json", "cases", "round"


@dataclass(frozen=True)
class Plan:
    """What a round is made of; cases that were made by another plan are none of it.

    Attributes:
        number, gamma, scope: see `Round`.
        organs: K names.
        weights: digest of the network's weights.
        version: of the program.
        braking: see `Round`.
    """

    number: int
    gamma: float
    scope: str
    organs: tuple[str, ...]
    weights: str
    version: str
    schema: Literal[1] = SCHEMA
    braking: Braking | None = None

    @property
    def round(self) -> Round:
        """What the round says of itself."""
        return Round(self.number, self.gamma, self.scope, self.braking)

    @cached_property
    def digest(self) -> str:
        """Names the plan in the records of its cases."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class DoneCase:
    """The record of a case; without a missing organ it has no overlay."""

    schema: Literal[1]
    plan: str
    organs: OrganCounts
    slices: SliceCounts
    overlay: Digest | None
    confidences: Confidences = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_counted([self.organs])
        check_confidences([self.confidences])


def plan_of(this: Round, organs: Sequence[str], weights: str) -> Plan:
    """The plan of this version of the program."""
    return Plan(this.number, this.gamma, this.scope, tuple(organs), weights, __version__, braking=this.braking)


def read_plan(folder: Path) -> Plan:
    """Read the plan of an unfinished round.

    Args:
        folder: of the unfinished round.

    Raises:
        InputError: it is damaged or gone.
    """
    return read_record(folder / PLAN, Plan, SCHEMA, f"remove the folder {folder}, and relabel again")


def folder_of(rounds: Path, number: int) -> Path:
    """Where a round is made."""
    return rounds / f".{number}.{UNFINISHED}"


def lock_of(number: int) -> str:
    """Name of the lock of a round, in the folder of all rounds."""
    return f".{number}.lock"


def other_round(path: Path, found: Round, this: Round) -> InputError:
    """What to say of a round that has another gamma or scope than the one that is asked for."""
    if (found.gamma, found.scope) == (this.gamma, this.scope):
        return InputError(f"{path}: has other brakes than those that are asked for; finish it with its own, or undo it")
    return InputError(
        f"{path}: has gamma {found.gamma:g} and scope {found.scope}, not {this.gamma:g} and {this.scope}; finish it "
        "with its own, or undo it"
    )


def missing_cases(target: Path, missing: Sequence[str], cases: Sequence[str]) -> InputError:
    """What to say of a round that cannot be finished yet."""
    return InputError(
        f"{target}: {len(missing)} of {len(cases)} cases of the round are missing ({listed(missing, 3)}); run "
        "'smile-fast relabel' for their shards, or without --shard for all that is missing"
    )
