"""The gradient of a batch that several ranks share, added up while the backward pass goes on."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

from smile_fast.training.ranks import Ranks

_BUCKET_BYTES = 25 << 20  # as torch's DistributedDataParallel has it


class _Bucket:
    """Gradients that travel together.

    Attributes:
        gradients: by parameter, each a part of one flat tensor, with the parameter's strides.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        self._flat = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        self.gradients: dict[Parameter, Tensor] = {}
        self._missing, first = len(parameters), 0
        for parameter in parameters:
            self.gradients[parameter] = self._flat.as_strided(parameter.shape, parameter.stride(), first)
            first += parameter.numel()
        self._wait: Callable[[], None] | None = None

    def take(self, parameter: Parameter) -> None:
        """Move a parameter's new gradient here."""
        own = self.gradients[parameter]
        assert parameter.grad is not None
        own.copy_(parameter.grad)
        parameter.grad = own
        self._missing -= 1

    @property
    def whole(self) -> bool:
        """Whether all gradients are here."""
        return self._missing == 0

    def send(self, ranks: Ranks) -> None:
        """Begin to add them up over the ranks."""
        self._wait = ranks.sum_later(self._flat)

    def finish(self) -> None:
        """Wait for the sums, and be ready for the next backward pass."""
        assert self._wait is not None, "a parameter had no gradient"
        self._wait()
        self._wait, self._missing = None, len(self.gradients)


class GradientSum:
    """Adds up the gradients of a network over the ranks.

    The loss of a rank has been divided by the pairs of the whole batch: sums are what is wanted, not means. Buckets are
    the same in every step and in every process: the numbers of a bucket are added in an order that depends on where in
    it they stand. (DistributedDataParallel rearranges its buckets after the first step; a training that was resumed
    would not repeat an uninterrupted one's sums.)

    Args:
        parameters: of the network, in its order; on their device and in their memory format.
        ranks: whose gradients are added.
    """

    def __init__(self, parameters: Iterable[Parameter], ranks: Ranks) -> None:
        self._ranks = ranks
        # Those that are used last have their gradients first.
        self._buckets = [_Bucket(some) for some in _in_buckets(reversed(list(parameters)))]
        self._sent = 0
        for bucket in self._buckets:
            for parameter in bucket.gradients:
                parameter.register_post_accumulate_grad_hook(self._taker(bucket))  # type: ignore[no-untyped-call]

    def _taker(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert isinstance(parameter, Parameter)
            with torch.no_grad():
                bucket.take(parameter)
            # Every rank sends them in the same order.
            while self._sent < len(self._buckets) and self._buckets[self._sent].whole:
                self._buckets[self._sent].send(self._ranks)
                self._sent += 1

        return take

    def finish(self) -> None:
        """Wait for the sums of a backward pass that is done: they are the gradients now."""
        for bucket in self._buckets:
            bucket.finish()
        self._sent = 0


def _in_buckets(parameters: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    bucket: list[Parameter] = []
    filled = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and filled + size > _BUCKET_BYTES:
            yield bucket
            bucket, filled = [], 0
        bucket.append(parameter)
        filled += size
    if bucket:
        yield bucket
