"""How much device memory a relabelling takes, from the sizes of what is allocated: no kernel runs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from tests.ops.triton_launches import noting

BYTES_A_VOXEL = 6


class Allocations(TorchDispatchMode):
    """Adds up the bytes of all memory that operations return, as if none were given back."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}  # so that no address occurs twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return result

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize(("channels", "organs"), [(13, 7), (126, 126)])
def test_relabelling_takes_at_most_6_bytes_a_voxel(channels: int, organs: int, scope: str) -> None:
    labels, logits = torch.zeros((20, 512, 512), dtype=torch.uint8), torch.zeros((20, channels, 64, 64))
    with Allocations() as allocations, noting():
        overlay, _ = torch.ops.smile_fast.pseudo_labels_upsampled.triton(
            logits, labels, list(range(organs)), 0.5, 8, scope
        )
    assert overlay.untyped_storage().data_ptr() in allocations.kept
    assert labels.numel() + allocations.bytes <= BYTES_A_VOXEL * labels.numel()
    assert allocations.bytes >= overlay.numel()
