"""What every op promises on the device: the same bits, no synchronisation, capture, compile, memory, large sizes."""

import pytest
import torch
from torch import Tensor

from smile_fast.ops import masked_bce, masked_bce_upsampled, pseudo_labels_upsampled, select_top_fraction
from tests.gpu.calls import (
    DEVICE,
    PAIRS,
    REHEARSAL,
    REPEATS,
    call_of,
    implementations,
    no_host_synchronisation,
    on_device,
)
from tests.ops.problems import Problem, problem
from tests.tolerances import COMPILED_FLOAT32, LOSS_RELATIVE_LARGE, RETILED_GRADIENT

EXTRA_MEMORY = 0.01  # of one full-resolution logit tensor: PERFORMANCE.md
# So much that 32-bit offsets would overflow; a rehearsal has the same shapes, smaller.
SIDE, IMAGES = (64, 3) if REHEARSAL else (16_384, 9)
GIB = 1 << 30


@pytest.mark.parametrize(("op", "implementation"), PAIRS)
def test_same_bits_every_time(op: str, implementation: str) -> None:
    run = call_of(op, implementation)
    first = [result.clone() for result in run()]
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(REPEATS):
        for expected, found in zip(first, run(), strict=True):
            different += (expected != found).sum()
    assert different.item() == 0


@pytest.mark.parametrize(("op", "implementation"), PAIRS)
def test_no_host_synchronisation(op: str, implementation: str) -> None:
    run = call_of(op, implementation)
    expected = [result.clone() for result in run()]
    with no_host_synchronisation():  # raises on a GPU
        found = run()
    for ours, before in zip(found, expected, strict=True):
        assert torch.equal(ours, before)


@pytest.mark.skipif(REHEARSAL, reason="needs CUDA graphs")
@pytest.mark.parametrize(("op", "implementation"), PAIRS)
def test_graph_capture(op: str, implementation: str) -> None:
    run = call_of(op, implementation)
    expected = [result.clone() for result in run()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for _ in range(3):
        for result in found:
            result.zero_()
        graph.replay()
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("upsampled", [False, True])
def test_torch_compile(upsampled: bool) -> None:
    op = masked_bce_upsampled if upsampled else masked_bce
    given = on_device(problem(2, 13, (64, 64), torch.float32, low=(8, 8) if upsampled else ()))

    def loss(logits: Tensor) -> Tensor:
        return op(logits * 2, given.labels, given.table)

    torch.compiler.reset()
    leaf = given.logits.clone().requires_grad_()
    torch.compile(loss, fullgraph=True, backend="aot_eager" if REHEARSAL else "inductor")(leaf).backward()
    expected = given.logits.clone().requires_grad_()
    loss(expected).backward()
    assert leaf.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(leaf.grad, expected.grad, **COMPILED_FLOAT32)


@pytest.mark.skipif(REHEARSAL, reason="needs streams")
def test_another_stream_and_device() -> None:
    given = problem(1, 3, (64, 64), torch.float32)

    def gradient(moved: Problem) -> Tensor:
        leaf = moved.logits.clone().requires_grad_()
        masked_bce(leaf, moved.labels, moved.table).backward()
        assert leaf.grad is not None
        return leaf.grad

    expected = gradient(on_device(given)).cpu()
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        moved = Problem(*(tensor.to(device) for tensor in given))
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            found = gradient(moved)
        stream.synchronize()
        assert torch.equal(found.cpu(), expected)


@pytest.mark.skipif(REHEARSAL, reason="needs the allocator's figures")
@pytest.mark.parametrize("implementation", implementations("masked_bce_upsampled"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_of_masked_bce_upsampled(implementation: str, dtype: torch.dtype) -> None:
    given = on_device(problem(4, 13, (512, 512), dtype, low=(64, 64)))
    run = getattr(torch.ops.smile_fast.masked_bce_upsampled, implementation)
    run(given.logits, given.labels, given.table, True, True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = run(given.logits, given.labels, given.table, True, True)
    returned = sum(result.numel() * result.element_size() for result in results)
    extra = torch.cuda.max_memory_allocated() - before - returned
    assert extra <= EXTRA_MEMORY * 4 * 13 * 512 * 512 * dtype.itemsize


def needs(gib: int) -> None:
    if not REHEARSAL and torch.cuda.mem_get_info()[1] < gib * GIB:
        pytest.skip(f"needs a GPU of {gib} GiB")


@pytest.mark.parametrize("implementation", implementations("masked_bce"))
def test_losses_of_more_than_2_to_the_31_logits(implementation: str) -> None:
    needs(30)
    voxels, organs = SIDE * SIDE, IMAGES
    labels = torch.randint(0, 256, (1, voxels), dtype=torch.uint8, device=DEVICE)
    table = torch.randint(-(2**31), 2**31, (1, 256, 2, 1), device=DEVICE).int()
    logits = torch.randn(1, organs, voxels, device=DEVICE, dtype=torch.bfloat16)
    run = getattr(torch.ops.smile_fast.masked_bce, implementation)
    _, sums, counts, gradient = run(logits, labels, table, True, False)
    last = table >> (organs - 1)  # the last organ alone
    alone = run(logits[:, -1:].contiguous(), labels, last, True, False)
    assert torch.equal(gradient[:, -1:], alone[3])
    assert torch.equal(counts[:, -1:], alone[2])
    torch.testing.assert_close(sums[:, -1:], alone[1], rtol=LOSS_RELATIVE_LARGE, atol=0)


@pytest.mark.parametrize("implementation", implementations("masked_bce_upsampled"))
def test_upsampled_losses_of_more_than_2_to_the_31_voxels(implementation: str) -> None:
    needs(16)
    labels = torch.randint(0, 256, (IMAGES, SIDE, SIDE), dtype=torch.uint8, device=DEVICE)
    table = torch.randint(-(2**31), 2**31, (IMAGES, 256, 2, 1), device=DEVICE).int()
    logits = torch.randn(IMAGES, 1, SIDE // 8, SIDE // 8, device=DEVICE)
    run = getattr(torch.ops.smile_fast.masked_bce_upsampled, implementation)
    _, sums, counts, gradient = run(logits, labels, table, True, False)
    alone = run(logits[-1:].contiguous(), labels[-1:].contiguous(), table[-1:].contiguous(), True, False)
    torch.testing.assert_close(gradient[-1:], alone[3], **RETILED_GRADIENT)  # cut into other tiles, it may be
    assert torch.equal(counts[-1:], alone[2])
    torch.testing.assert_close(sums[-1:], alone[1], rtol=LOSS_RELATIVE_LARGE, atol=0)


@pytest.mark.parametrize("implementation", implementations("select_top_fraction"))
def test_selection_among_more_than_2_to_the_31_voxels(implementation: str) -> None:
    needs(60)
    length = IMAGES * SIDE * SIDE
    scores = torch.empty(length, dtype=torch.bfloat16, device=DEVICE).uniform_(0, 1)
    candidates = torch.empty(length, dtype=torch.uint8, device=DEVICE).random_(0, 20) == 0
    gamma = torch.tensor([0.33, 0.5], dtype=torch.float64, device=DEVICE)
    edge = length - SIDE * SIDE
    found = select_top_fraction(
        scores, candidates, gamma, torch.tensor([0, edge, length], device=DEVICE), implementation=implementation
    )
    alone = select_top_fraction(
        scores[edge:].contiguous(),
        candidates[edge:].contiguous(),
        gamma[1:],
        torch.tensor([0, length - edge], device=DEVICE),
        implementation=implementation,
    )
    assert torch.equal(found[edge:], alone)
    taken, count = found[:edge].sum().item(), candidates[:edge].sum().item()
    assert taken == -(-33 * count // 100)


@pytest.mark.parametrize("implementation", implementations("pseudo_labels_upsampled"))
def test_pseudo_labels_of_more_than_2_to_the_31_voxels(implementation: str) -> None:
    needs(100)
    logits = torch.randn(IMAGES, 1, SIDE // 8, SIDE // 8, device=DEVICE) - 1
    labels = torch.randint(0, 2, (IMAGES, SIDE, SIDE), dtype=torch.uint8, device=DEVICE)
    overlay, _ = pseudo_labels_upsampled(logits, labels, [0], 0.5, 8, "slice", implementation=implementation)
    last = pseudo_labels_upsampled(
        logits[-1:].contiguous(), labels[-1:].contiguous(), [0], 0.5, 8, "slice", implementation=implementation
    )
    assert torch.equal(overlay[-1:], last[0])
    assert overlay[-1].any()
