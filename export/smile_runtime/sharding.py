"""A share of the work: any number of processes, on any machines, each do theirs and need not know of each other."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from smile_runtime.errors import InputError

_T = TypeVar("_T")
AUTO = "auto"
_TORCHRUN = ("RANK", "WORLD_SIZE")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
_KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


@dataclass(frozen=True)
class Shard:
    """One of N equal shares.

    Attributes:
        number: I, counted from 1.
        count: N.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[_T]) -> list[_T]:
        """This shard's part of a list: every N-th item, so that neighbours, which are often alike, are spread."""
        return list(items[self.number - 1 :: self.count])

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """Read I/N, or ``auto`` for what torchrun, Slurm or Kubernetes say of this process, asked in this order.

        Whoever has started a process last comes first: in a task of a Slurm array that starts torchrun its processes
        share out all of the work among them, and the array none of it.

        Args:
            text: "I/N" with 1 <= I <= N, or "auto".
            environment: where it is said. torchrun sets RANK, from 0, and WORLD_SIZE. A Slurm array sets all that is
                needed. An Indexed Job of Kubernetes sets JOB_COMPLETION_INDEX, from 0; its manifest has to set
                JOB_COMPLETIONS.

        Raises:
            InputError: it is neither, or nobody says anything, or says it in part.
        """
        if text == AUTO:
            return cls._of_scheduler(environment)
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard: {text!r} is no share of the work; give I/N with I from 1 to N, or auto")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _of_scheduler(cls, environment: Mapping[str, str]) -> "Shard":
        if all(name in environment for name in _TORCHRUN):
            rank, count = (_number(environment, name) for name in _TORCHRUN)
            if rank >= count:
                raise InputError(f"--shard auto: rank {rank} of torchrun is none of 0 to {count - 1}; give I/N")
            return cls(rank + 1, count)
        if _SLURM[0] in environment:
            task, first, step, count = (_number(environment, name) for name in _SLURM)
            number, rest = divmod(task - first, step or 1)
            if rest or not 0 <= number < count:
                raise InputError(
                    f"--shard auto: task {task} of Slurm is none of {count} from {first} in steps of {step}; give I/N"
                )
            return cls(number + 1, count)
        if _KUBERNETES[0] in environment:
            index, count = (_number(environment, name) for name in _KUBERNETES)
            if index >= count:
                raise InputError(f"--shard auto: index {index} of Kubernetes is none of 0 to {count - 1}; give I/N")
            return cls(index + 1, count)
        raise InputError(
            f"--shard auto: none of {_TORCHRUN[0]}, {_SLURM[0]} and {_KUBERNETES[0]} is set here; give I/N, or start "
            "it by torchrun, a Slurm array or an Indexed Job of Kubernetes"
        )


WHOLE = Shard()
"""All of the work."""


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare --shard; the value is a `Shard`, None where it is not given.

    Args:
        parser: of the command.
        what: what is shared out, a plural noun for the help.
    """
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_argument,
        help=f"do the I-th of N shares of the {what} (auto: what torchrun, a Slurm array or an Indexed Job of "
        "Kubernetes says)",
    )


def _argument(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--shard: ")) from None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        said = f"is {text!r}" if name in environment else "is not set"
        raise InputError(f"--shard auto: {name} {said}; set it to a number, or give I/N")
    return int(text)
