"""Several processes that train one network, over gloo on the host and NCCL between GPUs; torchrun starts them."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from smile_fast.training.interrupt import Interrupted, Stop
from smile_fast.training.launch import Launch, quiet_unless_first
from smile_fast.training.ranks import RankLost, Ranks
from smile_runtime.errors import InputError

# Shares of relabelling and validation take as long as they take. A process that dies closes its connections, which ends
# the others' wait at once; only a machine that vanishes without a word is waited for, unless torchrun notices it.
_WORK = timedelta(days=1)
_T = TypeVar("_T")
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0  # what is wrong for all is best said by rank 0, whose folder it is that others miss something in
_OPENED, _STOPPED, _SAID, _LEFT = "opened", "stopped", "said", "left"
_BAD_INPUT = "bad input"


class ProcessGroup(Ranks):
    """The ranks that torchrun started.

    Args:
        launch: which of them this is.
        device: what --device says; for GPUs there is NCCL beside gloo.
        timeout: seconds after which a rank that does not answer is lost.

    Raises:
        RankLost: not all ranks have come; by every method, when one is lost.
    """

    def __init__(self, launch: Launch, device: str, timeout: float) -> None:
        self.rank, self.world, self.neighbours = launch.rank, launch.world, launch.local_world
        self._timeout = timeout
        limit = timedelta(seconds=timeout)
        backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
        with self._answered():
            store, _, _ = next(rendezvous("env://", timeout=limit))
            self._store = PrefixStore(f"smile-fast/{launch.attempt}", store)
            groups = PrefixStore("groups", self._store)
            dist.init_process_group(backend, store=groups, rank=self.rank, world_size=self.world, timeout=limit)
            self._patient = dist.new_group(backend="gloo", timeout=_WORK)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # every error of torch.distributed is one
            raise RankLost(
                f"process {self.rank} of {self.world}: another one has ended, or did not answer within "
                f"{self._timeout:g} s; look for its message, and go on with --resume"
            ) from error

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Ranks.sum`."""
        with self._answered():
            dist.all_reduce(tensor)
        return tensor

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        """See `Ranks.sum_later`."""
        with self._answered():
            work: Any = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with self._answered():
                work.wait()

        return wait

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """See `Ranks.copy_first`."""
        with self._answered():
            for tensor in tensors:
                dense = tensor.contiguous()
                dist.broadcast(dense, src=0)
                if dense is not tensor:
                    tensor.copy_(dense)

    def agree(self, seconds: float, stop: Stop) -> tuple[float, int]:
        """See `Ranks.agree`: one message of 16 bytes on the host, once a step, beside megabytes of gradients."""
        first, number = self._largest([seconds if self.first else 0.0, float(stop.received)])
        return first, int(number)

    def any(self, wish: bool) -> bool:
        """See `Ranks.any`."""
        return self._largest([float(wish)]) == [1.0]

    def _largest(self, numbers: list[float]) -> list[float]:
        said = torch.tensor(numbers, dtype=torch.float64)
        with self._answered():
            dist.all_reduce(said, op=dist.ReduceOp.MAX)
        largest: list[float] = said.tolist()
        return largest

    def wait(self) -> None:
        """See `Ranks.wait`."""
        with self._answered():
            dist.all_reduce(torch.zeros(1), group=self._patient)

    def gather(self, found: _T) -> list[_T]:
        """See `Ranks.gather`."""
        everything: list[Any] | None = [None] * self.world if self.first else None
        with self._answered():
            dist.gather_object(found, everything, dst=0, group=self._patient)
        return everything or []

    def check(self, stop: Stop) -> None:
        """See `Ranks.check`."""
        if stop.is_set():
            self.say_stopped(stop.received)
        elif number := self.stopped():
            stop.receive(number)
        stop.check()
        with self._answered():
            if self._store.check([_SAID]):
                raise RuntimeError("another rank has said why it ended")

    def opened(self) -> None:
        """See `Ranks.opened`."""
        if self.first:
            with self._answered():
                self._store.set(_OPENED, "")
            return
        end = time.monotonic() + self._timeout
        with self._answered():
            while not self._store.check([_OPENED]):
                if self._store.check([_SAID]) or time.monotonic() > end:
                    raise RuntimeError("rank 0 has not opened the run")
                time.sleep(_POLL_SECONDS)

    def say_stopped(self, number: int) -> None:
        """Tell the others, wherever they are, that this rank ends because of a signal."""
        with suppress(RuntimeError):  # whoever cannot be told has ended already
            self._store.set(_STOPPED, str(number))

    def stopped(self) -> int:
        """The signal because of which some rank has ended; 0 if none has."""
        with self._answered():
            return int(self._store.get(_STOPPED)) if self._store.check([_STOPPED]) else 0

    def say_bad_input(self) -> None:
        """Tell the others that this rank ends because of what it was given."""
        with suppress(RuntimeError):
            self._store.set(_BAD_INPUT, "")

    def status(self) -> int:
        """The exit status of a rank whose group has ended."""
        if number := self.stopped():
            return 128 + number
        with self._answered():
            return 2 if self._store.check([_BAD_INPUT]) else 1

    def is_first_to_say(self, grace: float = 0.0) -> bool:
        """Whether no other rank has said yet why the training ends; whoever cannot ask says it.

        Args:
            grace: seconds that others than rank 0 give it to be the first.
        """
        end = time.monotonic() + (0.0 if self.first else grace)
        try:
            while not self._store.check([_SAID]) and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            return self._store.add(_SAID, 1) == 1
        except RuntimeError:
            return True

    def leave(self) -> None:
        """Take this process out of the group; a group that is broken may say so, which is known.

        Whoever waits for this process learns of it at once. Without torchrun's agent rank 0 keeps what all have said,
        and lets the others read it before it goes.
        """
        end = time.monotonic() + _GRACE_SECONDS
        with suppress(AttributeError):  # it has left already
            del self._patient  # with the last reference its connections are closed
        with suppress(RuntimeError):
            dist.destroy_process_group()
        with suppress(RuntimeError):
            left = self._store.add(_LEFT, 1)
            while self.first and left < self.world and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
                left = self._store.add(_LEFT, 0)


def together(launch: Launch, device: str, timeout: float, work: Callable[[Ranks], int]) -> int:
    """Do the work of one rank.

    Args:
        launch: see `ProcessGroup`.
        device: see there.
        timeout: see there.
        work: what to do; returns an exit status.

    Returns:
        Exit status: that of the work, 2 for bad input of any rank, 128 + a signal if that has stopped another rank, 1
        if another rank was lost.

    Raises:
        InputError: that of the work, by the rank that is the first to have one.
    """
    ranks: ProcessGroup | None = None
    try:
        ranks = ProcessGroup(launch, device, timeout)
        with quiet_unless_first():
            return work(ranks)
    except InputError:
        if ranks is None:
            raise
        ranks.say_bad_input()
        if ranks.is_first_to_say(_GRACE_SECONDS):
            raise
        return 2
    except Interrupted as stopped:
        if ranks is not None:
            ranks.say_stopped(stopped.number)
        return 128 + stopped.number
    except RankLost as lost:
        return _lost(ranks, lost)
    finally:
        if ranks is not None:
            ranks.leave()


def _lost(ranks: ProcessGroup | None, lost: RankLost) -> int:
    """Say once that a rank was lost, unless one has said why it ended."""
    status = 1
    if ranks is not None:
        with suppress(RankLost):  # the one who kept what was said may be lost, too
            status = ranks.status()
    if status == 1 and (ranks is None or ranks.is_first_to_say()):
        print(f"error: {lost}", file=sys.stderr)
    return status
