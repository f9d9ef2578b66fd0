"""The processes that train one network together, and what they tell each other."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor

from smile_fast.training.config import TrainConfig
from smile_fast.training.interrupt import Stop
from smile_runtime.errors import InputError
from smile_runtime.sharding import Shard

_T = TypeVar("_T")
_FEWEST_IMAGES = 2  # of a rank: with one, most of its time goes to waiting for the others


class RankLost(Exception):
    """Another process of the training has ended, or does not answer."""


class Ranks:
    """The processes of a training; this class is that of one that is alone, which has nobody to wait for.

    `sum`, `sum_later`, `copy_first`, `agree`, `any`, `wait` and `gather` are collectives: all ranks call them, in the
    same order. `check`, `check_batch` and `opened` may be called by each when it likes.

    Attributes:
        rank: number of this process, from 0. world: how many there are. neighbours: how many of them are on this
            machine.
    """

    rank = 0
    world = 1
    neighbours = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> Shard:
        """This rank's share of anything: rank r takes r, r + world, ..."""
        return Shard(self.rank + 1, self.world)

    def check_batch(self, config: TrainConfig) -> None:
        """Refuse a batch that is too small for the ranks."""
        fewest = _FEWEST_IMAGES * self.world
        if self.world > 1 and config.batch_size < fewest:
            raise InputError(
                f"--batch-size: {config.batch_size} slices are less than {_FEWEST_IMAGES} for each of {self.world} "
                f"processes; give {fewest} or more, or start fewer"
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the ranks, in place; without a wait for a GPU."""
        return tensor

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to add up a tensor over the ranks, in place; what is returned waits for it."""
        return lambda: None

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""

    def agree(self, seconds: float, stop: Stop) -> tuple[float, int]:
        """Return the seconds of rank 0, and the signal that any rank has got by now: the same to all, 0 for none."""
        return seconds, stop.received

    def any(self, wish: bool) -> bool:
        """Whether any rank says so."""
        return wish

    def wait(self) -> None:
        """Wait until all are here, however long their work takes them."""

    def gather(self, found: _T) -> list[_T]:
        """Return what every rank has found, by rank; on the others than rank 0 an empty list."""
        return [found]

    def check(self, stop: Stop) -> None:
        """Raise what ends a long work in which no rank waits for another: a signal here or elsewhere, a lost rank."""
        stop.check()

    def opened(self) -> None:
        """Wait until rank 0 has called this, too; rank 0 does not wait."""


ALONE = Ranks()
"""One process that trains by itself."""
