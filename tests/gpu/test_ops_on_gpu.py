"""Every CUDA kernel on the device: against float64, repeated, without host synchronisation, captured, compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from smile_fast.ops import available, masked_bce, masked_bce_upsampled, reference, select_top_fraction
from tests.ops.problems import Problem, exact, problem
from tests.tolerances import GRADIENT_ULPS, LOSS_RELATIVE, UPSAMPLED_GRADIENT_RELATIVE, gradient_ulps

IMPLEMENTATIONS = [name for name, usable, _ in available("masked_bce", "cuda") if usable and name != "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 1000


@contextmanager
def no_host_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(given: Problem) -> Problem:
    return Problem(*(tensor.cuda() for tensor in given))


def run_loss(
    op: Callable[..., Tensor], given: Problem, implementation: str | None, reduction: str = "sum"
) -> tuple[Tensor, Tensor]:
    leaf = given.logits.clone().requires_grad_()
    with no_host_synchronisation():
        loss = op(leaf, given.labels, given.table, reduction=reduction, implementation=implementation)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("organs", [1, 3, 13, 64, 65, 128])
@pytest.mark.parametrize("size", [(7,), (33, 31), (64, 64), (5, 17, 23)], ids=str)
def test_masked_bce(implementation: str, dtype: torch.dtype, organs: int, size: tuple[int, ...]) -> None:
    given = problem(2, organs, size, dtype)
    sums, gradient = exact(given)
    loss, found = run_loss(masked_bce, on_gpu(given), implementation)
    assert abs(loss.item() - sums.sum().item()) <= LOSS_RELATIVE * sums.sum().item()
    assert gradient_ulps(found.cpu(), gradient) <= GRADIENT_ULPS[dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unknown_logits_leave_no_trace(implementation: str, dtype: torch.dtype) -> None:
    given = problem(2, 13, (40, 40), dtype)
    clean = run_loss(masked_bce, on_gpu(given), implementation, "mean")
    poisoned = given._replace(logits=torch.where(given.known, given.logits, torch.nan))
    found = run_loss(masked_bce, on_gpu(poisoned), implementation, "mean")
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1], clean[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mean_over_the_logits(implementation: str) -> None:
    given = on_gpu(problem(2, 13, (64, 60), torch.float32))
    expected = run_loss(masked_bce, given, implementation, "mean")
    leaf = given.logits.clone().requires_grad_()
    loss = masked_bce(leaf * 1, given.labels, given.table, overwrite_logits=True, implementation=implementation)
    (loss * 2).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(leaf.grad, 2 * expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("coarse", "size"),
    [((8, 9), (64, 72)), ((5, 7), (23, 30)), ((20, 19), (7, 9)), ((6, 6), (6, 6)), ((3, 4, 5), (9, 15, 20))],
    ids=str,
)
def test_masked_bce_upsampled(
    implementation: str, dtype: torch.dtype, coarse: tuple[int, ...], size: tuple[int, ...]
) -> None:
    given = problem(2, 5, size, dtype, coarse=coarse)
    double = given.logits.double()
    sums, _, gradient = reference.masked_bce_upsampled(double, given.labels, given.table, True)
    loss, found = run_loss(masked_bce_upsampled, on_gpu(given), implementation)
    assert abs(loss.item() - sums.sum().item()) <= LOSS_RELATIVE * sums.sum().item()
    error = (found.cpu().double() - gradient).abs().max() / gradient.abs().max()
    assert error <= UPSAMPLED_GRADIENT_RELATIVE[dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("levels", [0, 1, 5])
def test_select_top_fraction(implementation: str, dtype: torch.dtype, levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.rand(300_001, generator=generator)
    if levels:
        scores = (scores * levels).floor() / levels
    scores[::1009] = torch.nan
    candidates = torch.rand(300_001, generator=generator) < 0.3
    segments = torch.tensor([0, 0, 5, 16384, 100_000, 299_990])
    gamma = torch.tensor([0.5, 0.33, 1.0, 0.07, 0.66], dtype=torch.float64)
    expected = reference.select_top_fraction(scores.to(dtype), candidates, gamma, segments)
    given = [tensor.cuda() for tensor in (scores.to(dtype), candidates, gamma, segments)]
    with no_host_synchronisation():
        found = select_top_fraction(*given, implementation=implementation)
    assert torch.equal(found.cpu(), expected)


def three_ops(implementation: str | None) -> Callable[[], list[Tensor]]:
    """One call of each op with everything that it returns, on fixed inputs."""
    dense, coarse = (
        on_gpu(problem(2, 13, (65, 63), torch.bfloat16)),
        on_gpu(problem(2, 13, (64, 63), torch.bfloat16, coarse=(9, 8))),
    )
    scores, candidates = torch.rand(100_000, device="cuda").mul(64).floor(), torch.rand(100_000, device="cuda") < 0.5
    gamma = torch.tensor([0.3, 0.66], dtype=torch.float64, device="cuda")
    segments = torch.tensor([0, 40_000, 100_000], device="cuda")
    ops = torch.ops.smile_fast
    suffix = implementation or "default"

    def run() -> list[Tensor]:
        return [
            *getattr(ops.masked_bce, suffix)(dense.logits, dense.labels, dense.table, True, True),
            *getattr(ops.masked_bce_upsampled, suffix)(coarse.logits, coarse.labels, coarse.table, True),
            getattr(ops.select_top_fraction, suffix)(scores, candidates, gamma, segments),
        ]

    return run


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_same_bits_every_time(implementation: str) -> None:
    run = three_ops(implementation)
    first = run()
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(REPEATS):
        for expected, found in zip(first, run(), strict=True):
            different += (expected != found).sum()
    assert different.item() == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_graph_capture(implementation: str) -> None:
    run = three_ops(implementation)
    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for _ in range(3):
        graph.replay()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_torch_compile() -> None:
    given = on_gpu(problem(2, 13, (64, 64), torch.float32))

    def loss(logits: Tensor) -> Tensor:
        return masked_bce(logits * 2, given.labels, given.table)

    leaf = given.logits.clone().requires_grad_()
    torch.compile(loss, fullgraph=True)(leaf).backward()
    expected = given.logits.clone().requires_grad_()
    loss(expected).backward()
    assert leaf.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-6, atol=0)


def test_another_stream_and_device() -> None:
    given = problem(1, 3, (64, 64), torch.float32)
    expected = run_loss(masked_bce, on_gpu(given), None)
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        moved = Problem(*(tensor.to(device) for tensor in given))
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            found = run_loss(masked_bce, moved, None)
        stream.synchronize()
        assert torch.equal(found[1].cpu(), expected[1].cpu())
