"""Which of the processes that torchrun started this one is; read without torch."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from smile_runtime.errors import InputError

_RANK, _WORLD, _ADDRESS = "RANK", "WORLD_SIZE", "MASTER_ADDR"
_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Launch:
    """One process of a training.

    Attributes:
        rank: its number, from 0. world: how many there are.
        local_rank, local_world: the same among those of its machine.
        attempt: how often torchrun has started them all again.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    attempt: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Launch":
        """Read what torchrun sets; a process that it has not started is alone.

        Raises:
            InputError: a variable is missing, or no number.
        """

        def number(name: str, default: str | None = None) -> int:
            text = environment.get(name, default)
            if text is None or not (text.isascii() and text.isdecimal()):
                said = "is not set" if text is None else f"is {text!r}"
                raise InputError(f"{name}: it {said}, with several processes it has to be a number; use torchrun")
            return int(text)

        if environment.get(_WORLD, "1") == "1":
            return cls(attempt=number(_ATTEMPT, "0"))
        launch = cls(
            number(_RANK),
            number(_WORLD),
            number("LOCAL_RANK"),
            number("LOCAL_WORLD_SIZE", "1"),
            number(_ATTEMPT, "0"),
        )
        if launch.rank >= launch.world:
            raise InputError(f"{_RANK}: {launch.rank} is none of {launch.world} processes; use torchrun")
        number("MASTER_PORT")
        if not environment.get(_ADDRESS):
            raise InputError(f"{_ADDRESS}: it is not set and has to be with several processes; use torchrun")
        return launch

    def hush(self) -> None:
        """Keep torch from printing stack traces of its own when a rank is lost; call this before torch is imported."""
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    def device(self, name: str) -> str:
        """The device of this process, given what --device says: with several, every one has a GPU of its own.

        Raises:
            InputError: it names one GPU for several processes.
        """
        if self.world == 1 or name == "cpu":
            return name
        if name == "auto":
            return f"auto:{self.local_rank}"
        if name != "cuda":
            raise InputError(f"--device: {name} is one device for {self.world} processes; give cuda, cpu or auto")
        return f"cuda:{self.local_rank}"


@contextmanager
def quiet_unless_first(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Let only the first of the processes print; what any of them raises is no print."""
    if environment.get(_RANK, "0") == "0" or environment.get(_WORLD, "1") == "1":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
