"""The ops on a GPU against their peers and against what the memory reaches. `python -m bench.gpu_ops ROW OUT.json`."""

import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu_timing import REPETITIONS, Calls, times
from smile_fast.ops import (
    available,
    label_map_upsampled,
    masked_bce,
    masked_bce_upsampled,
    pseudo_labels_upsampled,
    select_top_fraction,
)
from smile_fast.supervision import Policy, State, build_tables
from smile_fast.training.pseudo_labels import PseudoLabeller

Row = dict[str, Any]
BATCH, STRIDE = 4, 8


def ours(op: str, device: str) -> list[str]:
    """Names of the implementations that a GPU would choose from; on a CPU, those that run there."""
    return [name for name, usable, _ in available(op, device) if usable and name != "reference"] or ["reference"]


def ceilings(device: str = "cuda", floats: int = 1 << 28, repetitions: int = REPETITIONS) -> Row:
    """Bandwidth of a copy (bytes read and written) and of a read, on 1 GiB."""
    source = torch.ones(floats, device=device)
    target = torch.empty_like(source)
    taken = times({"copy": lambda: target.copy_(source), "read": lambda: source.sum()}, device, repetitions)
    size = source.numel() * 4
    return {
        "copy_gbps": 2 * size / taken["copy"]["median"] / 1e6,
        "read_gbps": size / taken["read"]["median"] / 1e6,
    }


def supervision(
    organs: int, missing: float, device: str = "cuda", side: int = 512
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels [B, side, side], table, and what a peer gets ready-made: known and positive [B, K, side, side] bool."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(BATCH, side, side, dtype=torch.uint8)
    quarter = side // 4
    organ = torch.randint(1, organs + 1, (BATCH, 1, 1), generator=generator)
    labels[:, quarter:-quarter, quarter:-quarter] = organ
    draw = torch.rand(BATCH, organs, generator=generator)
    states = [[State.MISSING if value < missing else State.ANNOTATED for value in row] for row in draw.tolist()]
    table = build_tables(states, Policy.SMILE)
    words = table[torch.arange(BATCH)[:, None, None], labels.long()]  # [B, H, W, 2, words]
    organ_bits = [(words[..., number // 32] >> (number % 32)) & 1 for number in range(organs)]
    known, positive = torch.stack(organ_bits, 1).bool().unbind(-1)  # [B, K, H, W]
    return labels.to(device), table.to(device), known.contiguous().to(device), positive.contiguous().to(device)


def peer_of(known: Tensor, positive: Tensor, dtype: torch.dtype, size: tuple[int, int] | None) -> Callable[..., Tensor]:
    """What one writes without a kernel, its masks and their sum ready-made in the dtype of the logits."""
    weight, target = known.to(dtype), positive.to(dtype)
    count = known.sum().clamp(min=1).float()

    def loss(logits: Tensor) -> Tensor:
        if size is not None:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        losses = F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")
        return losses.sum(dtype=torch.float32) / count

    return loss


def forward_backward(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Loss of a leaf whose gradient is made and dropped."""
    logits.grad = None
    value = loss(logits)
    value.backward()
    return value.detach()


def loss_row(
    organs: int,
    missing: float,
    dtype: torch.dtype,
    upsampled: bool = False,
    device: str = "cuda",
    side: int = 512,
    repetitions: int = REPETITIONS,
) -> Row:
    """One of the losses, forward and backward, by every implementation, in eager torch and by torch.compile."""
    labels, table, known, positive = supervision(organs, missing, device, side)
    low = side // STRIDE if upsampled else side
    logits = torch.randn(BATCH, organs, low, low, device=device).to(dtype).requires_grad_()
    name, op = ("masked_bce_upsampled", masked_bce_upsampled) if upsampled else ("masked_bce", masked_bce)
    size = (side, side) if upsampled else None
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        chosen: functools.partial(op, labels=labels, table=table, implementation=chosen)
        for chosen in ours(name, device)
    }
    losses["eager"] = peer_of(known, positive, dtype, size)
    losses["torch.compile"] = torch.compile(peer_of(known, positive, dtype, size), dynamic=False)
    exact = forward_backward(
        peer_of(known, positive, torch.float64, size), logits.detach().double().requires_grad_()
    ).float()
    for loss in losses.values():
        torch.testing.assert_close(forward_backward(loss, logits).float(), exact, rtol=2e-2, atol=0)
    calls: Calls = {chosen: functools.partial(forward_backward, loss, logits) for chosen, loss in losses.items()}
    target = torch.empty_like(logits, requires_grad=False)
    calls["copy of the logits"] = lambda: target.copy_(logits.detach())
    facts = {f"error of {chosen}": _error(loss, logits, exact) for chosen, loss in losses.items()}
    if upsampled:
        fine = F.interpolate(logits.detach(), (side, side), mode="bilinear").requires_grad_()
        dense = functools.partial(masked_bce, labels=labels, table=table)
        calls["masked_bce of upsampled logits"] = functools.partial(forward_backward, dense, fine)
        first = next(iter(losses))
        facts["extra memory, share of full-resolution logits"] = extra_memory(calls[first], device) / (
            fine.numel() * fine.element_size()
        )
    traffic = 2 * logits.numel() * logits.element_size() + labels.numel()
    return {"milliseconds": times(calls, device, repetitions), "dense_bytes": traffic, "facts": facts}


def _error(loss: Callable[[Tensor], Tensor], logits: Tensor, exact: Tensor) -> float:
    """Relative error of a loss."""
    return float((loss(logits.detach()).float() - exact).abs() / exact.abs().clamp(min=1e-30))


def extra_memory(call: Callable[[], object], device: str) -> float:
    """Bytes that a call needs at its peak beyond what was there before; NaN on a CPU."""
    if device != "cuda":
        return math.nan
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def select_row(
    spread: float,
    positives: float = 0.05,
    device: str = "cuda",
    length: int = 26_214_400,
    count: int = 3,
    repetitions: int = REPETITIONS,
) -> Row:
    """Selection of a third of the candidates of three segments, against topk, sort and one read."""
    scores = 1 - spread * torch.rand(length * count, device=device)
    candidates = torch.rand(length * count, device=device) < positives
    segments = torch.arange(count + 1, device=device) * length
    gamma = torch.full((count,), 0.33, dtype=torch.float64, device=device)
    masked = torch.where(candidates, scores, -torch.inf).view(count, length)
    wanted = int(0.33 * positives * length)
    calls: Calls = {
        chosen: functools.partial(select_top_fraction, scores, candidates, gamma, segments, implementation=chosen)
        for chosen in ours("select_top_fraction", device)
    }
    expected = select_top_fraction(scores, candidates, gamma, segments, implementation="reference")
    for chosen, call in calls.items():
        if not torch.equal(call(), expected):  # type: ignore[arg-type]
            raise AssertionError(f"{chosen} selects other voxels than the reference")
    del expected
    calls["torch.topk"] = lambda: torch.topk(masked, wanted, dim=1, sorted=False)
    calls["torch.sort"] = lambda: torch.sort(masked, dim=1, descending=True)
    calls["one read"] = lambda: scores.sum()
    traffic = (scores.element_size() + 2) * scores.numel()  # and candidates read, selection written
    return {"milliseconds": times(calls, device, repetitions), "dense_bytes": traffic}


def relabel_row(
    device: str = "cuda", depth: int = 100, side: int = 512, organs: int = 13, repetitions: int = REPETITIONS
) -> Row:
    """One case of a relabelling round, without and with the copies to and from the host."""
    low = side // STRIDE
    logits = torch.randn(depth, organs, low, low, device=device) * 3 - 4
    labels = torch.zeros(depth, side, side, dtype=torch.uint8)
    labels[:, :, : side // 2] = 1
    there = labels.to(device)
    missing = list(range(0, organs, 2))
    labeller = PseudoLabeller()
    calls: Calls = {
        chosen: functools.partial(pseudo_labels_upsampled, logits, there, missing, 0.33, STRIDE, implementation=chosen)
        for chosen in ours("pseudo_labels_upsampled", device)
    }
    calls["host to host, captured"] = lambda: labeller(logits, labels, missing, 0.33, STRIDE, "volume")
    expected = pseudo_labels_upsampled(logits.cpu(), labels, missing, 0.33, STRIDE)
    for chosen, call in calls.items():
        overlay, counts = call()  # type: ignore[misc]
        if not (torch.equal(overlay.cpu(), expected[0]) and torch.equal(counts.cpu(), expected[1])):
            raise AssertionError(f"{chosen} gives other pseudo-labels than the CPU")
    per_voxel = extra_memory(next(iter(calls.values())), device) / labels.numel()
    return {"milliseconds": times(calls, device, repetitions), "facts": {"bytes a voxel": per_voxel}}


def label_map_row(
    device: str = "cuda", images: int = 100, side: int = 512, organs: int = 13, repetitions: int = REPETITIONS
) -> Row:
    """The label map of a volume from its logits, against interpolation and comparison in float32."""
    logits = torch.randn(images, organs, side // STRIDE, side // STRIDE, device=device)

    def eager() -> Tensor:
        best, label = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False).max(1)
        return torch.where(best > 0, label + 1, 0).byte()

    calls: Calls = {
        chosen: functools.partial(label_map_upsampled, logits, side, side, STRIDE, implementation=chosen)
        for chosen in ours("label_map_upsampled", device)
    }
    for chosen, call in calls.items():
        if (call() != eager()).float().mean() > 1e-4:  # type: ignore[operator]
            raise AssertionError(f"{chosen} decides other labels")
    calls["eager"] = eager
    return {"milliseconds": times(calls, device, repetitions), "dense_bytes": images * side * side}


def cub_row(segments: int = 3, length: int = 26_214_400) -> Row:
    """CUB's own sort of as many random keys as the selection has voxels, from a program of its own."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cub_segmented_sort")
        source = str(Path(__file__).parent / "cub_segmented_sort.cu")
        subprocess.run(["nvcc", "-O3", "-std=c++17", "-arch=native", source, "-o", program], check=True)
        command = [program, str(segments), str(length)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken = [float(line) for line in printed.split()]
    figures = {"median": statistics.median(taken), "min": min(taken)}
    return {"milliseconds": {"cub::DeviceSegmentedSort": figures}, "dense_bytes": 6 * segments * length}


FLOAT, HALF = torch.float32, torch.bfloat16
ROWS: dict[str, Callable[[], Row]] = {
    "ceilings": ceilings,
    "masked_bce K13 fp32 none missing": functools.partial(loss_row, 13, 0.0, FLOAT),
    "masked_bce K13 fp32 70% missing": functools.partial(loss_row, 13, 0.7, FLOAT),
    "masked_bce K13 bf16 none missing": functools.partial(loss_row, 13, 0.0, HALF),
    "masked_bce K3 fp32 half missing": functools.partial(loss_row, 3, 0.5, FLOAT),
    "masked_bce K64 bf16 half missing": functools.partial(loss_row, 64, 0.5, HALF),
    "masked_bce_upsampled K13 fp32 half missing": functools.partial(loss_row, 13, 0.5, FLOAT, upsampled=True),
    "masked_bce_upsampled K13 bf16 half missing": functools.partial(loss_row, 13, 0.5, HALF, upsampled=True),
    "select_top_fraction 3 x 26.2M": functools.partial(select_row, 0.5),
    "select_top_fraction 3 x 26.2M adversarial": functools.partial(select_row, 2.0**-12),
    "select_top_fraction 3 x 26.2M all candidates": functools.partial(select_row, 0.5, 1.0),
    "CUB segmented sort 3 x 26.2M": cub_row,
    "pseudo_labels_upsampled 100 x 512 x 512": relabel_row,
    "label_map_upsampled 100 x 512 x 512": label_map_row,
}


def main(arguments: list[str]) -> None:
    """Measure one row and write it."""
    name, out = arguments
    Path(out).write_text(json.dumps(ROWS[name]()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
