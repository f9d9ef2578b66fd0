"""A stand-in for CUDA graphs on the CPU: operations are recorded below autograd and replayed where they wrote."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smile_fast.training.objectives import StepLoss

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "bincount", "_unique2", "masked_select"}
"""What makes the host wait for a device: a number that is read, or a shape that depends on numbers."""


class Read(RuntimeError):
    """The work read something from the device."""


class NoReads(TorchDispatchMode):
    """Refuses every operation for which the host would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, unless it is refused."""
        if func.name().removeprefix("aten::").partition(".")[0] in READS:
            raise Read(f"{func} reads on the host")
        return func(*args, **(kwargs or {}))


class Recorder(NoReads):
    """Keeps what ran, with its arguments, and what the memory held that it found."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._found: dict[int, tuple[Tensor, Tensor]] = {}  # by address: whole memory, and its content before
        self._made: set[int] = set()
        self._generators: dict[torch.Generator, Tensor] = {torch.default_generator: torch.get_rng_state()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and keep it."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        for generator in (leaf for leaf in leaves if isinstance(leaf, torch.Generator)):
            self._generators.setdefault(generator, generator.get_state())
        given = {_address(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        for address, tensor in given.items():
            if address not in self._found and address not in self._made:
                whole = _whole(tensor)
                self._found[address] = (whole, whole.clone())
        results = super().__torch_dispatch__(func, types, args, kwargs)
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor) and _address(leaf) not in given]
        self._made.update(map(_address, made))
        self.operations.append((func, args, kwargs, made))
        return results

    def undo(self) -> None:
        """Bring back what the operations have overwritten: a capture computes nothing."""
        for whole, before in self._found.values():
            whole.copy_(before)
        for generator, state in self._generators.items():
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        """Run everything again, with the arguments of the recording, into the memory of its results."""
        for func, args, kwargs, made in self.operations:
            results = func(*args, **kwargs)
            if made:
                leaves = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
                for own, new in zip(made, leaves[-len(made) :], strict=True):
                    own.copy_(new)


class RecordedSteps:
    """Captures as CUDA graphs do: numbers of the host are those of the capture, and nothing is computed by it."""

    def __init__(self) -> None:
        self.captures = 0

    def run(self, work: Callable[[], StepLoss]) -> StepLoss:
        """Do the work; it may read nothing."""
        with NoReads():
            return work()

    def capture(self, work: Callable[[], StepLoss]) -> tuple[StepLoss, Callable[[], object]]:
        """Record the work and undo it."""
        self.captures += 1
        recorder = Recorder()
        with recorder:
            results = work()
        recorder.undo()
        return results, recorder.replay


class Unable(RecordedSteps):
    """A device on which every capture fails."""

    def capture(self, work: Callable[[], StepLoss]) -> tuple[StepLoss, Callable[[], object]]:
        """Fail as CUDA does."""
        self.captures += 1
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _whole(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]
