"""Runs every CUDA kernel on 60 ragged shapes: what compute-sanitizer looks at. `python -m bench.gpu_shapes`."""

import random

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = 60


def main() -> None:
    """Run them all; the results are checked by tests/gpu."""
    draw = random.Random(0)
    ops = torch.ops.smile_fast
    for number in range(SHAPES):
        dtype, organs = DTYPES[number % 3], draw.choice((1, 3, 13, 33, 65))
        axes = draw.choice((2, 3))
        size = [draw.randint(1, 70 if axes == 2 else 14) for _ in range(axes)]
        coarse = [draw.randint(1, max(1, length // 2)) for length in size]
        batch, words = draw.randint(1, 3), -(-organs // 32)
        labels = torch.randint(0, 256, (batch, *size), dtype=torch.uint8).cuda()
        table = torch.randint(-(2**31), 2**31, (batch, 256, 2, words), dtype=torch.int64).int().cuda()
        logits, low = (torch.randn(batch, organs, *shape).to(dtype).cuda() for shape in (size, coarse))
        ops.masked_bce.cuda(logits, labels, table, True, True)
        ops.masked_bce_in_place.cuda(logits, labels, table, False)
        ops.masked_bce_upsampled.cuda(low, labels, table, True)
        length = draw.randint(1, 60_000)
        bounds = sorted(draw.randint(0, length) for _ in range(draw.randint(2, 6)))
        scores = torch.rand(length).mul(draw.choice((3, 1000))).round().to(dtype).cuda()
        candidates = (torch.rand(length) < draw.random()).cuda()
        gamma = torch.rand(len(bounds) - 1, dtype=torch.float64).cuda()
        ops.select_top_fraction.cuda(scores, candidates, gamma, torch.tensor(bounds).cuda())
    torch.cuda.synchronize()
    print(f"{SHAPES} shapes")


if __name__ == "__main__":
    import smile_fast.ops  # noqa: F401  (registers the ops)

    main()
