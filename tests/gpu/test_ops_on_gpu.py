"""The results of every implementation on the device against float64 and the reference on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smile_fast.ops import (
    label_map_upsampled,
    masked_bce,
    masked_bce_upsampled,
    pseudo_labels_upsampled,
    reference,
    select_top_fraction,
)
from smile_fast.training.curriculum.rooms import background_beyond_rooms
from smile_fast.training.pseudo_labels import PseudoLabeller
from smile_runtime.label_map import PSEUDO_BACKGROUND
from tests.gpu.calls import DEVICE, implementations, no_host_synchronisation, on_device
from tests.ops.problems import Problem, exact, problem
from tests.ops.test_masked_bce_upsampled import exact_upsampled
from tests.tolerances import (
    GRADIENT_ULPS,
    LOSS_RELATIVE,
    LOSS_RELATIVE_LARGE,
    SCALED_FLOAT32,
    gradient_ulps,
    upsampled_gradient_error,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGE = 1000  # known voxels, from which the goal holds


def run_loss(
    op: Callable[..., Tensor], given: Problem, implementation: str | None, reduction: str = "sum"
) -> tuple[Tensor, Tensor]:
    leaf = given.logits.clone().requires_grad_()
    with no_host_synchronisation():
        loss = op(leaf, given.labels, given.table, reduction=reduction, implementation=implementation)
        loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def assert_sum(loss: Tensor, sums: Tensor, known: Tensor) -> None:
    """The sum of all, which is returned in float32: one more rounding."""
    allowed = (LOSS_RELATIVE_LARGE if known.sum() >= LARGE else LOSS_RELATIVE) + 2.0**-24
    assert abs(loss.item() - sums.sum().item()) <= allowed * sums.sum().item()


@pytest.mark.parametrize("implementation", implementations("masked_bce"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("organs", [1, 3, 13, 64, 65, 128])
@pytest.mark.parametrize("size", [(7,), (33, 31), (64, 64), (5, 17, 23)], ids=str)
def test_masked_bce(implementation: str, dtype: torch.dtype, organs: int, size: tuple[int, ...]) -> None:
    given = problem(2, organs, size, dtype)
    sums, gradient = exact(given)
    loss, found = run_loss(masked_bce, on_device(given), implementation)
    assert_sum(loss, sums, given.known)
    assert gradient_ulps(found.cpu(), gradient) <= GRADIENT_ULPS[dtype]


@pytest.mark.parametrize("implementation", implementations("masked_bce"))
def test_sums_of_a_real_size(implementation: str) -> None:
    given = problem(1, 3, (512, 512), torch.float32)
    run = getattr(torch.ops.smile_fast.masked_bce, implementation)
    _, sums, _, gradient = run(*on_device(given)[:3], True, False)
    exact_sums, exact_gradient = exact(given)
    torch.testing.assert_close(sums.cpu(), exact_sums, rtol=LOSS_RELATIVE_LARGE, atol=0)
    assert gradient_ulps(gradient.cpu(), exact_gradient) <= GRADIENT_ULPS[torch.float32]


@pytest.mark.parametrize("implementation", implementations("masked_bce_upsampled"))
def test_upsampled_sums_of_a_real_size(implementation: str) -> None:
    given = problem(1, 3, (512, 512), torch.float32, low=(64, 64))
    run = getattr(torch.ops.smile_fast.masked_bce_upsampled, implementation)
    _, sums, _, _ = run(*on_device(given)[:3], True, True)
    torch.testing.assert_close(sums.cpu(), exact_upsampled(given)[0], rtol=LOSS_RELATIVE_LARGE, atol=0)


@pytest.mark.parametrize("implementation", implementations("masked_bce"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unknown_logits_leave_no_trace(implementation: str, dtype: torch.dtype) -> None:
    given = problem(2, 13, (40, 40), dtype)
    clean = run_loss(masked_bce, on_device(given), implementation, "mean")
    poisoned = given._replace(logits=torch.where(given.known, given.logits, torch.nan))
    found = run_loss(masked_bce, on_device(poisoned), implementation, "mean")
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1], clean[1])


@pytest.mark.parametrize("implementation", implementations("masked_bce"))
def test_mean_over_the_logits(implementation: str) -> None:
    given = on_device(problem(2, 13, (64, 60), torch.float32))
    expected = run_loss(masked_bce, given, implementation, "mean")
    leaf = given.logits.clone().requires_grad_()
    with no_host_synchronisation():
        loss = masked_bce(leaf * 1, given.labels, given.table, overwrite_logits=True, implementation=implementation)
        (loss * 2).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(loss.detach(), expected[0], **SCALED_FLOAT32)
    torch.testing.assert_close(leaf.grad, 2 * expected[1], **SCALED_FLOAT32)


@pytest.mark.parametrize("implementation", implementations("masked_bce_upsampled"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("low", "size"),
    [((8, 9), (64, 72)), ((5, 7), (23, 30)), ((20, 19), (7, 9)), ((6, 6), (6, 6)), ((3, 4, 5), (9, 15, 20))],
    ids=str,
)
def test_masked_bce_upsampled(
    implementation: str, dtype: torch.dtype, low: tuple[int, ...], size: tuple[int, ...]
) -> None:
    given = problem(2, 5, size, dtype, low=low)
    sums, gradient, magnitude = exact_upsampled(given)
    loss, found = run_loss(masked_bce_upsampled, on_device(given), implementation)
    assert_sum(loss, sums, given.known)
    assert upsampled_gradient_error(found.cpu(), gradient, magnitude, given.logits.abs().max().item()) <= 1


@pytest.mark.parametrize("implementation", implementations("select_top_fraction"))
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
    given = [tensor.to(DEVICE) for tensor in (scores.to(dtype), candidates, gamma, segments)]
    with no_host_synchronisation():
        found = select_top_fraction(*given, implementation=implementation)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("implementation", implementations("select_top_fraction"))
def test_wrong_offsets_neither_hang_nor_leave_the_arrays(implementation: str) -> None:
    if DEVICE == "cpu":
        pytest.skip("there they are refused")
    scores, candidates = torch.rand(70_000, device=DEVICE), torch.ones(70_000, device=DEVICE).bool()
    gamma = torch.tensor([0.5, 0.1, 1.0], dtype=torch.float64, device=DEVICE)
    for offsets in ([-9, 10, 90_000, 5], [50_000, 20, 60_000, 30], [70_000, 0, 70_000, 0]):
        segments = torch.tensor(offsets, device=DEVICE)
        assert select_top_fraction(scores, candidates, gamma, segments, implementation=implementation).shape == (
            70_000,
        )
    torch.cuda.synchronize()


def special_logits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator) * 3
    draw = torch.rand(shape, generator=generator)
    for low, value in ((0.97, torch.nan), (0.94, torch.inf), (0.91, -torch.inf), (0.88, 1e-42)):
        logits = torch.where((draw > low) & (draw < low + 0.03), value, logits)
    return logits.to(dtype)


@pytest.mark.parametrize("implementation", implementations("label_map_upsampled"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_label_map_upsampled(implementation: str, dtype: torch.dtype, stride: int) -> None:
    logits = special_logits((3, 5, -(-100 // stride), -(-90 // stride)), dtype)
    for softmax in (False, True):
        expected = label_map_upsampled(logits, 100, 90, stride, softmax, implementation="reference")
        given = logits.to(DEVICE)
        with no_host_synchronisation():
            found = label_map_upsampled(given, 100, 90, stride, softmax, implementation=implementation)
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("implementation", implementations("pseudo_labels_upsampled"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_pseudo_labels_upsampled(implementation: str, dtype: torch.dtype, scope: str, stride: int) -> None:
    logits = special_logits((5, 6, -(-100 // stride), -(-90 // stride)), dtype)
    labels = torch.randint(0, 2, (5, 100, 90), generator=torch.Generator().manual_seed(0)).byte()
    arguments = ([0, 2, 3, 5], 0.33, stride, scope)
    expected = pseudo_labels_upsampled(logits, labels, *arguments, implementation="reference")
    given = (logits.to(DEVICE), labels.to(DEVICE))
    with no_host_synchronisation():
        found = pseudo_labels_upsampled(*given, *arguments, implementation=implementation)
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])


def test_captured_relabelling() -> None:
    labeller = PseudoLabeller()
    for depth in (4, 4, 7, 4, 7, 7, 4):
        logits = torch.randn(depth, 3, 9, 8, generator=torch.Generator().manual_seed(depth)) * 3
        labels = torch.randint(0, 2, (depth, 70, 61), generator=torch.Generator().manual_seed(depth)).byte()
        found = labeller(logits.to(DEVICE), labels, [0, 2], 0.5, 8, "volume")
        expected = pseudo_labels_upsampled(logits, labels, [0, 2], 0.5, 8)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    if DEVICE == "cuda":
        assert labeller.captured == 2


def test_captured_relabelling_with_rooms() -> None:
    """Nothing of the background is read on the host, and every case has rooms of its own."""
    logits = (torch.randn(9, 3, 40, 38, generator=torch.Generator().manual_seed(0)) * 3).to(DEVICE)
    labels = (torch.rand(9, 313, 300, generator=torch.Generator().manual_seed(1)) < 0.2).byte()
    labeller, on_device = PseudoLabeller(), labels.to(DEVICE)
    for rooms in ([20_000, None], [300_000, 10], [20_000, None]):
        expected = pseudo_labels_upsampled(logits, on_device, [0, 2], 0.5, 8)[0]
        arguments = (expected, logits, on_device, [0, 2], rooms, 8)
        background_beyond_rooms(*arguments)  # loads the kernels; a second time changes nothing
        with no_host_synchronisation():
            background_beyond_rooms(*arguments)
        assert torch.equal(labeller(logits, labels, [0, 2], 0.5, 8, "volume", rooms)[0], expected.cpu())
        assert (expected == PSEUDO_BACKGROUND).any()
