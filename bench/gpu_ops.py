"""The three ops on a GPU against their peers and against what the memory reaches in the same session."""

import functools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import available, masked_bce, masked_bce_upsampled, select_top_fraction
from smile_fast.supervision import Policy, State, build_tables

REPETITIONS = 21
SCRUB_BYTES = 256 << 20  # larger than any L2: what a run finds there is not its own


def times(calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Milliseconds of every call, from interleaved runs with a cold L2: median and minimum."""
    scrub = torch.empty(SCRUB_BYTES, dtype=torch.uint8, device="cuda")
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(REPETITIONS):
        for name, call in calls.items():
            scrub.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            found[name].append(begin.elapsed_time(end))
    return {name: {"median": statistics.median(taken), "min": min(taken)} for name, taken in found.items()}


def ceilings() -> dict[str, Any]:
    """Bandwidth of a copy (bytes read and written) and of a read, on 1 GiB."""
    source = torch.ones(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    taken = times({"copy": lambda: target.copy_(source), "read": lambda: torch.sum(source)})
    bytes_read = source.numel() * 4
    return {
        "copy_gbps": 2 * bytes_read / taken["copy"]["median"] / 1e6,
        "read_gbps": bytes_read / taken["read"]["median"] / 1e6,
    }


def supervision(organs: int, missing: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels [4, 512, 512], table, and what a peer gets ready-made: known and positive [4, K, 512, 512] float32."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, 512, 512, dtype=torch.uint8)
    labels[:, 128:384, 128:384] = torch.randint(1, organs + 1, (4, 1, 1), generator=generator)
    draw = torch.rand(4, organs, generator=generator)
    states = [[State.MISSING if value < missing else State.ANNOTATED for value in row] for row in draw.tolist()]
    table = build_tables(states, Policy.SMILE)
    words = table[torch.arange(4)[:, None, None], labels.long()]  # [4, H, W, 2, words]
    bits = (words[..., None] >> torch.arange(32)) & 1
    known, positive = bits.flatten(-2)[..., :organs].permute(3, 0, 4, 1, 2).float().contiguous()
    return labels.cuda(), table.cuda(), known.cuda(), positive.cuda()


def eager(logits: Tensor, known: Tensor, positive: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """What one writes without a kernel."""
    if size is not None:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    losses = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return (losses * known).sum(dtype=torch.float32) / known.sum()


def forward_backward(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Loss of a leaf whose gradient is made and dropped."""
    logits.grad = None
    value = loss(logits)
    value.backward()
    return value.detach()


def loss_row(organs: int, missing: float, dtype: torch.dtype, coarse: int | None) -> dict[str, Any]:
    """One of the losses, forward and backward, by every implementation, in eager torch and by torch.compile."""
    labels, table, known, positive = supervision(organs, missing)
    side = coarse or 512
    logits = torch.randn(4, organs, side, side, device="cuda").to(dtype).requires_grad_()
    op, name = (masked_bce_upsampled, "masked_bce_upsampled") if coarse else (masked_bce, "masked_bce")
    size = (512, 512) if coarse else None
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        chosen: functools.partial(op, labels=labels, table=table, implementation=chosen)
        for chosen, usable, _ in available(name, "cuda")
        if usable and chosen != "reference"
    }
    losses["eager"] = functools.partial(eager, known=known, positive=positive, size=size)
    losses["torch.compile"] = torch.compile(losses["eager"], dynamic=False)
    expected = forward_backward(losses["eager"], logits.detach().float().requires_grad_())
    for loss in losses.values():
        torch.testing.assert_close(forward_backward(loss, logits).float(), expected, rtol=2e-2, atol=0)
    taken = times({chosen: functools.partial(forward_backward, loss, logits) for chosen, loss in losses.items()})
    dense = 2 * logits.numel() * logits.element_size() + labels.numel()
    return {"milliseconds": taken, "dense_bytes": dense, "gbps": _gbps(dense, taken)}


def select_row(spread: float, positives: float = 0.05, length: int = 26_214_400, count: int = 3) -> dict[str, Any]:
    """Selection of a third of the candidates of three segments, against topk, sort and one read."""
    scores = 1 - spread * torch.rand(length * count, device="cuda")
    candidates = torch.rand(length * count, device="cuda") < positives
    segments = torch.arange(count + 1, device="cuda") * length
    gamma = torch.full((count,), 0.33, dtype=torch.float64, device="cuda")
    masked = torch.where(candidates, scores, -torch.inf).view(count, length)
    wanted = int(0.33 * positives * length)
    calls: dict[str, Callable[[], object]] = {
        chosen: functools.partial(select_top_fraction, scores, candidates, gamma, segments, implementation=chosen)
        for chosen, usable, _ in available("select_top_fraction", "cuda")
        if usable and chosen != "reference"
    }
    expected = select_top_fraction(scores, candidates, gamma, segments, implementation="reference")
    for call in calls.values():
        assert torch.equal(call(), expected)
    del expected
    calls["torch.topk"] = lambda: torch.topk(masked, wanted, dim=1, sorted=False)
    calls["torch.sort"] = lambda: torch.sort(masked, dim=1, descending=True)
    calls["one read"] = lambda: torch.sum(scores)
    taken = times(calls)
    taken["CUB segmented sort"] = cub_segmented_sort(count, length)
    return {"milliseconds": taken, "dense_bytes": 4 * scores.numel(), "gbps": _gbps(4 * scores.numel(), taken)}


@functools.cache
def cub_segmented_sort(segments: int, length: int) -> dict[str, float]:
    """Milliseconds of CUB's own sort of as many random keys, from a program of its own: median and minimum."""
    program = Path(tempfile.gettempdir()) / "cub_segmented_sort"
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    source = Path(__file__).parent / "cub_segmented_sort.cu"
    subprocess.run([nvcc, "-O3", "-std=c++17", "-arch=native", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([program, str(segments), str(length)], check=True, capture_output=True, text=True).stdout
    taken = [float(line) for line in printed.split()]
    return {"median": statistics.median(taken), "min": min(taken)}


def _gbps(size: int, taken: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: size / measured["median"] / 1e6 for name, measured in taken.items()}


FLOAT, HALF = torch.float32, torch.bfloat16
WORKLOADS: dict[str, Callable[[], dict[str, Any]]] = {
    "masked_bce K13 fp32 none missing": functools.partial(loss_row, 13, 0.0, FLOAT, None),
    "masked_bce K13 fp32 70% missing": functools.partial(loss_row, 13, 0.7, FLOAT, None),
    "masked_bce K13 bf16 none missing": functools.partial(loss_row, 13, 0.0, HALF, None),
    "masked_bce K3 fp32 half missing": functools.partial(loss_row, 3, 0.5, FLOAT, None),
    "masked_bce K64 bf16 half missing": functools.partial(loss_row, 64, 0.5, HALF, None),
    "masked_bce_upsampled K13 fp32 half missing": functools.partial(loss_row, 13, 0.5, FLOAT, 64),
    "masked_bce_upsampled K13 bf16 half missing": functools.partial(loss_row, 13, 0.5, HALF, 64),
    "select_top_fraction 3 x 26.2M": functools.partial(select_row, 0.5),
    "select_top_fraction 3 x 26.2M adversarial": functools.partial(select_row, 2.0**-12),
    "select_top_fraction 3 x 26.2M all candidates": functools.partial(select_row, 0.5, 1.0),
}


def table(record: dict[str, Any]) -> str:
    """The figures as text, each workload with the bandwidth it reaches relative to a copy."""
    copy = record.get("ceilings", {}).get("copy_gbps")
    lines = [f"{record['machine']['gpu']}, torch {record['machine']['torch']}, commit {record['machine']['commit']}"]
    for name, row in record.get("rows", {}).items():
        lines.append(name)
        for who, taken in row.get("milliseconds", {}).items():
            share = f"{100 * row['gbps'][who] / copy:5.0f}% of a copy" if copy else ""
            lines.append(f"    {who:20} {taken['median']:9.3f} ms {row['gbps'][who]:8.0f} GB/s {share}")
    for name, value in record.get("step", {}).items():
        lines.append(f"training step, {name}: {value}")
    return "\n".join(lines)
