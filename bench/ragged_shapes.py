"""Runs every op on 60 ragged shapes by one implementation: what compute-sanitizer looks at.

`python -m bench.ragged_shapes IMPLEMENTATION`, a name that `smile_fast.ops.available` gives: cuda, triton. The ops that
have no kernel of that name are left out.
"""

import random
import sys

import torch

from smile_fast.ops import OPS, available

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = 60


def kernels(implementation: str, device: str) -> dict[str, torch._ops.OpOverload]:
    """The ops that have this implementation on the device."""
    return {
        op: getattr(getattr(torch.ops.smile_fast, op), implementation)
        for op in OPS
        if any(name == implementation and usable for name, usable, _ in available(op, device))
    }


def main(implementation: str, device: str = "cuda", shapes: int = SHAPES) -> int:
    """Run them all; the results are checked by tests/gpu. Returns the number of calls."""
    run = kernels(implementation, device)
    if not run:
        reasons = [reason for op in OPS for name, _, reason in available(op, device) if name == implementation]
        raise SystemExit(f"{implementation} is not usable on {device}: {'; '.join(reasons[:1]) or 'no op has it'}")
    # Nothing is tuned, which would take thousands of launches; and memory stays as it is, or initcheck sees nothing.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    draw, calls = random.Random(0), 0
    for number in range(shapes):
        for op, arguments in problem(draw, DTYPES[number % 3], device):
            if op in run:
                run[op](*arguments)
                calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    torch.use_deterministic_algorithms(False)
    print(f"{shapes} shapes, {calls} calls of {', '.join(run)}")
    return calls


def problem(draw: random.Random, dtype: torch.dtype, device: str) -> list[tuple[str, tuple[object, ...]]]:
    """Arguments of one call of each op, made on the host: only our kernels write where they are looked at."""
    organs, axes = draw.choice((1, 3, 13, 33, 65)), draw.choice((2, 3))
    size = [draw.randint(1, 70 if axes == 2 else 14) for _ in range(axes)]
    low_size = [draw.randint(1, max(1, length // 2)) for length in size]
    batch, words = draw.randint(1, 3), -(-organs // 32)
    labels = torch.randint(0, 256, (batch, *size), dtype=torch.uint8).to(device)
    table = torch.randint(-(2**31), 2**31, (batch, 256, 2, words), dtype=torch.int64).int().to(device)
    logits, low = (torch.randn(batch, organs, *shape).to(dtype).to(device) for shape in (size, low_size))
    length = draw.randint(1, 60_000)
    bounds = sorted(draw.randint(0, length) for _ in range(draw.randint(2, 6)))
    scores = torch.rand(length).mul(draw.choice((3, 1000))).round().to(dtype).to(device)
    candidates = (torch.rand(length) < draw.random()).to(device)
    gamma = torch.rand(len(bounds) - 1, dtype=torch.float64).to(device)
    stride, height, width = draw.choice((1, 3, 8)), draw.randint(1, 70), draw.randint(1, 70)
    grid = torch.randn(batch, 4, -(-height // stride), -(-width // stride)).to(dtype).to(device)
    volume = torch.randint(0, 2, (batch, height, width), dtype=torch.uint8).to(device)
    return [
        ("masked_bce", (logits, labels, table, True, True)),
        ("masked_bce_in_place", (logits, labels, table, False)),
        ("masked_bce_upsampled", (low, labels, table, True, True)),
        ("scale_gradient", (logits.clone(), torch.rand(batch, organs, dtype=torch.float64).round().to(device))),
        ("select_top_fraction", (scores, candidates, gamma, torch.tensor(bounds).to(device))),
        ("pseudo_labels_upsampled", (grid, volume, [0, 2, 3], draw.random(), stride, draw.choice(("volume", "slice")))),
        ("label_map_upsampled", (grid, height, width, stride, draw.random() < 0.5)),
    ]


if __name__ == "__main__":
    main(sys.argv[1])
