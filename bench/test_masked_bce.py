"""masked_bce, forward and backward, against eager torch on the same logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.interleaved import ratio_of_medians
from smile_fast.ops import available, masked_bce
from smile_fast.supervision import Policy, State, build_tables

WORKLOADS = {
    "K3-half-missing": (3, 0.5),
    "K13-none-missing": (13, 0.0),
    "K13-half-missing": (13, 0.5),
    "K13-70%-missing": (13, 0.7),
}


def eager(logits: Tensor, known: Tensor, positive: Tensor) -> Tensor:
    """What one writes without a kernel: the peer gets its masks ready-made and in its own dtype."""
    losses = F.binary_cross_entropy_with_logits(logits, positive, weight=known, reduction="sum")
    return losses / known.sum()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_masked_bce(benchmark: Callable[..., object], workload: str) -> None:
    if not any(name == "native" and usable for name, usable, _ in available("masked_bce", "cpu")):
        pytest.skip("the native core is not installed: see smile-fast doctor")
    organs, missing = WORKLOADS[workload]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, organs, 512, 512, generator=generator, requires_grad=True)
    labels = torch.zeros(4, 512, 512, dtype=torch.uint8)
    labels[:, 128:384, 128:384] = torch.randint(1, organs + 1, (4, 1, 1), generator=generator)
    draw = torch.rand(4, organs, generator=generator)
    states = [[State.MISSING if value < missing else State.ANNOTATED for value in row] for row in draw.tolist()]
    table = build_tables(states, Policy.SMILE)
    words = table[torch.arange(4)[:, None, None], labels.long()]  # [B, H, W, 2, words]
    bits = (words[..., None] >> torch.arange(32)) & 1
    known, positive = bits.flatten(-2)[..., :organs].permute(3, 0, 4, 1, 2).float()

    def ours() -> Tensor:
        logits.grad = None
        loss = masked_bce(logits, labels, table, implementation="native")
        loss.backward()
        return loss

    def peer() -> Tensor:
        logits.grad = None
        loss = eager(logits, known, positive)
        loss.backward()
        return loss

    expected, expected_grad = peer().detach(), logits.grad
    torch.testing.assert_close(ours().detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, expected_grad, rtol=1e-4, atol=1e-10)
    benchmark.extra_info["eager / ours"] = round(ratio_of_medians(ours, peer), 2)
    benchmark.pedantic(ours, rounds=11, warmup_rounds=1)
