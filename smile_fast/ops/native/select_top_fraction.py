"""select_top_fraction in C++, on the CPU: csrc/core/select_top_fraction/select_top_fraction.h."""

import torch
from torch import Tensor

from smile_fast.ops.checks import check_shape, check_tensor
from smile_fast.ops.native.core import CORE, DTYPES, refused_dtype
from smile_fast.ops.native.memory import empty


def refusal(scores: Tensor, candidates: Tensor, gamma: Tensor, segments: Tensor) -> str:
    """Return why `select_top_fraction` cannot take these arguments; empty when it can."""
    return refused_dtype(scores.dtype)


def select_top_fraction(scores: Tensor, candidates: Tensor, gamma: Tensor, segments: Tensor) -> Tensor:
    """Kernel of `smile_fast::select_top_fraction`; results as in `smile_fast.ops.reference.select_top_fraction`."""
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_tensor("scores", scores, tuple(DTYPES), torch.device("cpu"))
    check_tensor("candidates", candidates, (torch.bool,), scores.device)
    check_tensor("gamma", gamma, (torch.float64,), scores.device)
    check_tensor("segments", segments, (torch.int64,), scores.device)
    check_shape("candidates", candidates, (scores.numel(),), "[N]")
    check_shape("segments", segments, (gamma.numel() + 1,), "[S + 1]")
    scores, candidates = scores.contiguous(), candidates.contiguous()
    gamma, segments = gamma.contiguous(), segments.contiguous()
    selection = empty(candidates.shape, torch.bool)
    CORE.select_top_fraction(
        dtype=DTYPES[scores.dtype],
        scores=scores.data_ptr(),
        candidates=candidates.data_ptr(),
        length=scores.numel(),
        gamma=gamma.data_ptr(),
        offsets=segments.data_ptr(),
        segments=gamma.numel(),
        selection=selection.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return selection
