"""Large results in memory that the core keeps for the next call: csrc/core/common/memory_pool.h."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from smile_fast.ops.native.core import CORE

POOLED_BYTES = 1 << 20  # smaller tensors come from torch, whose allocator keeps such blocks itself


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a contiguous tensor on the CPU with unspecified contents.

    A training step frees its gradient and asks for the same size again. The system would take the pages back and
    hand out others, which are zeroed one by one at first touch: that costs several times what the kernels need to
    fill them.
    """
    numbers = math.prod(shape)
    if numbers * dtype.itemsize < POOLED_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(CORE.Memory(numbers * dtype.itemsize), dtype=dtype).view(shape)
