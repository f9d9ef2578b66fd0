"""How a training is executed: on what, by how many processes, captured or not. None of it is a part of the run."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from smile_fast.settings import Settings, documented, setting
from smile_fast.training.config import parse_time
from smile_runtime.threads import usable_cpus

_MOST_WORKERS = 4  # one makes some 40 batches of 8 a second, the fastest network takes 90
_LIMIT = 64  # each takes some 160 MB, and two batches of the memory that all share
_AUTO = "auto"


@documented
@dataclass(frozen=True)
class Execution(Settings):
    """Settings that a resumed training may change: what is trained does not depend on them, but for rounding."""

    graph: Literal["auto", "off"] = setting(
        "auto",
        "a whole step as one CUDA graph: auto takes one on CUDA and says why where it cannot",
        group="execution",
        choices=(_AUTO, "off"),
    )
    workers: str = setting(
        _AUTO,
        f"processes that make batches: a number, 0 for a thread of this process, or auto (0 on the CPU; at most "
        f"{_MOST_WORKERS} on CUDA, and a CPU is left to this process; 0, with a warning, where they cannot be had)",
        f"auto, or 0 to {_LIMIT}",
        lambda text: text == _AUTO or (text.isascii() and text.isdecimal() and int(text) <= _LIMIT),
        group="execution",
        metavar="auto|N",
    )
    compile: bool = setting(
        False, "compile the network with torch.compile, which takes a minute or more at the start", group="execution"
    )

    rank_timeout: float = setting(
        600.0,
        "with several processes: time after which one that does not answer the others in a step ends the training "
        "(shares of relabelling and validation take as long as they take, at most a day)",
        "a positive time",
        lambda seconds: 0 < seconds < inf,
        group="execution",
        metavar="TIME",
        parse=parse_time,
    )

    def worker_count(self, device_type: str, trainings: int = 1) -> int:
        """How many processes make the batches of a training; 0 stands for a thread.

        Args:
            device_type: "cpu" or "cuda".
            trainings: processes of the training on this machine.
        """
        if self.workers != _AUTO:
            return int(self.workers)
        return min(_MOST_WORKERS, max(0, usable_cpus() // trainings - 1)) if device_type == "cuda" else 0

    @property
    def or_a_thread(self) -> bool:
        """Whether a thread makes the batches where processes cannot: nobody has asked for a number of them."""
        return self.workers == _AUTO


DEFAULT_EXECUTION = Execution()
