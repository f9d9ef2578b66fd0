"""The modules are the ops, with a reduction that is chosen once."""

from typing import Any

import pytest
import torch

from smile_fast.losses import MaskedBCELoss, MaskedBCEUpsampledLoss
from smile_fast.ops import masked_bce, masked_bce_upsampled
from tests.ops.problems import gradient, problem

SIZES = {MaskedBCELoss: (), MaskedBCEUpsampledLoss: (4, 5)}  # of the low-resolution logits
OPS = {MaskedBCELoss: masked_bce, MaskedBCEUpsampledLoss: masked_bce_upsampled}


@pytest.mark.parametrize("module", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_module_is_its_op(module: Any, reduction: str) -> None:
    given = problem(2, 3, (8, 9), torch.float32, low=SIZES[module])
    criterion = module(reduction)
    found = gradient(lambda z: criterion(z, given.labels, given.table).sum(), given.logits)
    wanted = gradient(lambda z: OPS[module](z, given.labels, given.table, reduction=reduction).sum(), given.logits)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert list(criterion.parameters()) == []
    assert reduction in repr(criterion)


def test_overwriting_the_logits() -> None:
    given = problem(2, 3, (8, 9), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    logits = leaf * 1
    MaskedBCELoss(overwrite_logits=True)(logits, given.labels, given.table).backward()
    assert torch.equal(logits, leaf.grad)


@pytest.mark.parametrize("module", SIZES)
def test_unknown_reduction(module: Any) -> None:
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'avg'"):
        module("avg")
