import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import available, masked_bce, masked_bce_upsampled, masked_bce_upsampled_stats
from smile_fast.supervision import Policy, State, build_tables
from tests.ops.problems import IMPLEMENTATIONS, Problem, exact, gradient, plain_torch, problem, taken
from tests.tolerances import (
    LOSS_RELATIVE,
    LOSS_RELATIVE_LARGE,
    assert_no_worse_than_torch,
    upsampled_gradient_error,
)

A, M = State.ANNOTATED, State.MISSING
# Integer and odd ratios, no change, a size that shrinks, one low-resolution row, and volumes.
SIZES = [
    ((4, 5), (32, 40)),
    ((5, 7), (17, 23)),
    ((6, 6), (6, 6)),
    ((9, 8), (4, 11)),
    ((1, 3), (8, 9)),
    ((1, 1), (3, 2)),
    ((20, 3), (301, 24)),
    ((2, 20), (16, 160)),
    ((2, 3, 4), (5, 6, 9)),
    ((4, 3, 5), (2, 7, 4)),
    ((16, 3, 2), (128, 12, 9)),
]


@pytest.fixture(params=IMPLEMENTATIONS["masked_bce_upsampled"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sum_loss(given: Problem, implementation: str | None = None) -> Callable[[Tensor], Tensor]:
    return lambda logits: masked_bce_upsampled(
        logits, given.labels, given.table, reduction="sum", implementation=implementation
    )


def upsample(logits: Tensor, given: Problem) -> Tensor:
    mode = "bilinear" if logits.ndim == 4 else "trilinear"
    return F.interpolate(logits, size=tuple(given.labels.shape[1:]), mode=mode, align_corners=False)


def exact_upsampled(given: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, gradient and the sum of its terms' absolute values in float64; autograd transposes the interpolation."""
    leaf = given.logits.double().requires_grad_()
    high = upsample(leaf, given)
    sums, slopes = exact(given._replace(logits=high.detach()))
    gradients = [torch.autograd.grad(high, leaf, arriving, retain_graph=True)[0] for arriving in (slopes, slopes.abs())]
    return sums, gradients[0], gradients[1]


def test_native_is_there_where_it_must_be() -> None:
    usable = dict((name, reason) for name, ok, reason in available("masked_bce_upsampled", "cpu") if not ok)
    required = os.environ.get("SMILE_FAST_REQUIRE_NATIVE") == "1"
    assert "native" not in usable or not required, usable["native"]


def check_against_float64(given: Problem, implementation: str) -> None:
    leaf = given.logits.clone().requires_grad_()
    loss, sums, counts = masked_bce_upsampled_stats(
        leaf, given.labels, given.table, reduction="sum", implementation=implementation
    )
    (grad,) = torch.autograd.grad(loss, leaf)
    exact_sums, exact_gradient, magnitude = exact_upsampled(given)
    torch.testing.assert_close(sums, exact_sums, rtol=LOSS_RELATIVE, atol=0)
    assert torch.equal(counts, given.known.flatten(2).sum(2))
    assert grad.dtype == given.logits.dtype
    assert upsampled_gradient_error(grad, exact_gradient, magnitude, given.logits.abs().max().item()) <= 1


@pytest.mark.parametrize(("implementation", "dtype"), taken("masked_bce_upsampled"), ids=str)
@pytest.mark.parametrize(("low", "size"), SIZES, ids=str)
def test_sums_counts_and_gradients(
    implementation: str, low: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype
) -> None:
    check_against_float64(problem(2, 3, size, dtype, low=low), implementation)


@pytest.mark.parametrize("organs", [1, 32, 33, 65, 128])
def test_many_organs(implementation: str, organs: int) -> None:
    check_against_float64(problem(1, organs, (9, 10), torch.float32, low=(4, 4)), implementation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(implementation: str, dtype: torch.dtype) -> None:
    given = problem(2, 5, (64, 65), dtype, low=(8, 9))
    exact_sum = exact_upsampled(given)[0].sum().item()
    plain = plain_torch(upsample(given.logits, given), given).sum().item()
    assert_no_worse_than_torch(sum_loss(given, implementation)(given.logits).item(), plain, exact_sum)


def test_loss_of_real_sizes(implementation: str) -> None:
    given = problem(1, 2, (512, 512), torch.float32, low=(64, 64))
    _, sums, _ = masked_bce_upsampled_stats(given.logits, given.labels, given.table, implementation=implementation)
    torch.testing.assert_close(sums, exact_upsampled(given)[0], rtol=LOSS_RELATIVE_LARGE, atol=0)


def test_same_size_equals_masked_bce(implementation: str) -> None:
    given = problem(2, 3, (6, 7), torch.float32)
    ours = gradient(sum_loss(given, implementation), given.logits)
    theirs = gradient(
        lambda z: masked_bce(z, given.labels, given.table, reduction="sum", implementation="reference"), given.logits
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("low", "size"), [((2, 3), (5, 4)), ((2, 2, 2), (3, 5, 3))])
def test_gradcheck(low: tuple[int, ...], size: tuple[int, ...]) -> None:
    given = problem(2, 2, size, torch.float64, low=low)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: masked_bce_upsampled(z, given.labels, given.table, reduction=r),
            given.logits.requires_grad_(),
        )


def test_all_annotated_smile_is_plain_multi_label_training_bit_for_bit(implementation: str) -> None:
    labels = torch.randint(0, 4, (2, 24, 25), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    smile, naive = (build_tables([[A, A, A]] * 2, policy) for policy in (Policy.SMILE, Policy.NAIVE))
    ours = gradient(lambda z: masked_bce_upsampled(z, labels, smile, implementation=implementation), logits)
    plain = gradient(lambda z: masked_bce_upsampled(z, labels, naive, implementation=implementation), logits)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])

    target = torch.stack([labels == organ + 1 for organ in range(3)], dim=1).float()

    def multi_label(z: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(F.interpolate(z, size=(24, 25), mode="bilinear"), target)

    torch.testing.assert_close(ours, gradient(multi_label, logits))


def test_adding_a_missing_organ_changes_nothing_for_the_others(implementation: str) -> None:
    labels = torch.randint(0, 3, (1, 24, 25), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    two, three = (build_tables([states], Policy.SMILE) for states in ([A, A], [A, A, M]))

    def by_channel(logits: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        losses = masked_bce_upsampled(leaf, labels, table, reduction="none", implementation=implementation)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]

    before, after = by_channel(logits[:, :2], two), by_channel(logits, three)
    assert torch.equal(after[0][:, :2], before[0])
    assert torch.equal(after[1][:, :2], before[1])
    assert (after[1][:, 2] > 0).any()  # drawn voxels are its negatives


def test_missing_organ_gets_no_gradient_from_background(implementation: str) -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[:, 8:12, 8:12] = 1
    table = build_tables([[A, M]], Policy.SMILE)
    _, grad = gradient(
        lambda z: masked_bce_upsampled(z, labels, table, implementation=implementation), torch.ones(1, 2, 6, 6)
    )
    reached = grad[0, 1] != 0
    assert reached[2, 2]  # voxels 8..11 lie in low pixel 2, and read 1 to 3
    reached[1:4, 1:4] = False
    assert not reached.any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_poison_reaches_only_known_voxels_that_read_it(implementation: str, poison: float) -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[:, 8:12, 8:12] = 1
    table = build_tables([[A, M]], Policy.SMILE)
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    poisoned = logits.clone()
    poisoned[0, 1, 5, :] = poison  # organ 1 is known on the square alone, far from here
    clean = gradient(lambda z: masked_bce_upsampled(z, labels, table, implementation=implementation), logits)
    found = gradient(lambda z: masked_bce_upsampled(z, labels, table, implementation=implementation), poisoned)
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1], clean[1])

    poisoned[0, 0, 5, 5] = torch.nan  # organ 0 is known here
    by_channel = masked_bce_upsampled(poisoned, labels, table, reduction="none", implementation=implementation)
    assert torch.equal(by_channel.isnan(), torch.tensor([[True, False]]))
    _, grad = gradient(lambda z: masked_bce_upsampled(z, labels, table, implementation=implementation), poisoned)
    assert torch.equal(grad[0, 1], clean[1][0, 1])
    assert torch.equal(grad[0, 0, :4, :4], clean[1][0, 0, :4, :4])
    assert grad[0, 0, 5, 5].isnan()


def test_nothing_known_is_exactly_zero(implementation: str) -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    table = build_tables([[M, M]] * 2, Policy.SMILE)
    loss, grad = gradient(
        lambda z: masked_bce_upsampled(z, labels, table, implementation=implementation),
        torch.full((2, 2, 3, 3), torch.nan),
    )
    assert loss.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_gradient_that_arrives_scales_every_channel(implementation: str) -> None:
    given = problem(2, 2, (6, 7), torch.float32, low=(3, 3))
    leaf = given.logits.clone().requires_grad_()
    by_channel = masked_bce_upsampled(leaf, given.labels, given.table, reduction="none", implementation=implementation)
    arriving = torch.tensor([[1.0, -2.5], [0.0, 7.0]])
    (ones,) = torch.autograd.grad(by_channel.sum(), leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad(by_channel, leaf, arriving)
    assert torch.equal(scaled, ones * arriving[:, :, None, None])


def test_memory_layout_does_not_matter(implementation: str) -> None:
    given = problem(2, 3, (8, 10), torch.float32, low=(4, 5))
    expected = gradient(sum_loss(given, implementation), given.logits)
    strided = given._replace(labels=given.labels.transpose(1, 2).contiguous().transpose(1, 2))
    for logits in (
        given.logits.to(memory_format=torch.channels_last),
        given.logits.repeat_interleave(2, dim=3)[..., ::2],
    ):
        assert not logits.is_contiguous()
        found = gradient(sum_loss(strided, implementation), logits)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("low", "size", "batch"), [((2, 2), (4, 4), 0), ((2, 2), (0, 4), 1), ((0, 0), (0, 0), 1)])
def test_empty(implementation: str, low: tuple[int, ...], size: tuple[int, ...], batch: int) -> None:
    given = problem(batch, 2, size, torch.float32)
    logits = torch.ones(batch, 2, *low)
    loss, grad = gradient(sum_loss(given, implementation), logits)
    assert loss.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(logits))


def test_same_inputs_same_bits(implementation: str) -> None:
    given = problem(2, 3, (301, 160), torch.float32, low=(40, 20))
    results = []
    # Plain torch rounds differently at the end of a thread's share; the native core must not.
    for threads in (1, 2, 3, 8) if implementation == "native" else (1, 1):
        torch.set_num_threads(threads)
        results.append(gradient(sum_loss(given, implementation), given.logits))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_no_gradient_is_made_where_none_is_needed(implementation: str) -> None:
    given = problem(1, 2, (9, 10), torch.float32, low=(4, 5))
    kernel = getattr(torch.ops.smile_fast.masked_bce_upsampled, implementation)
    *found, grad = kernel(given.logits, given.labels, given.table, False, True)
    *expected, _ = kernel(given.logits, given.labels, given.table, True, True)
    assert grad.shape == (0,)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_choice_by_name_never_falls_back() -> None:
    given = problem(1, 2, (5, 5), torch.float64)
    reasons = {name: reason for name, _, reason in available("masked_bce_upsampled", "cpu")}
    message = reasons["native"] or "takes float32, bfloat16, float16 input, got torch.float64"
    with pytest.raises(ValueError, match="'native' of masked_bce_upsampled cannot be used") as error:
        masked_bce_upsampled(given.logits, given.labels, given.table, implementation="native")
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", ["labels", "table"])
def test_op_called_directly_reads_no_foreign_memory(implementation: str, wrong: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    arguments = {"labels": given.labels, "table": given.table} | {wrong: getattr(given, wrong)[:1]}
    packet = torch.ops.smile_fast.masked_bce_upsampled
    for kernel in (packet, packet.default, getattr(packet, implementation)):
        with pytest.raises(ValueError, match=f"{wrong} must have shape"):
            kernel(given.logits, **arguments, with_grad=True, mean=False)


# By how many bytes a call's largest resident set exceeds what was resident before and its results. A call on small
# inputs has paid for code and threads; freed memory goes back to the system, so that taking it again shows.
PEAK_MEMORY = """
import ctypes
import sys
import torch
from smile_fast.ops import OPS
from smile_fast.supervision import Policy, State, build_tables

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

def growth(batch, size):
    logits = torch.ones(batch, 13, size // 8, size // 8)
    labels = torch.ones(batch, size, size, dtype=torch.uint8)
    table = build_tables([[State.ANNOTATED] * 13] * batch, Policy.SMILE)
    kernel = getattr(torch.ops.smile_fast.masked_bce_upsampled, sys.argv[1])
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak starts anew
    before = resident("VmRSS")
    *_, grad = kernel(logits, labels, table, True, True)
    return resident("VmHWM") - before - grad.nbytes

torch.set_num_threads(2)
growth(1, 64)
print(growth(4, 512))
"""


def test_extra_memory_is_a_hundredth_of_one_full_resolution_tensor(implementation: str) -> None:
    command = [sys.executable, "-c", PEAK_MEMORY, implementation]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    full = 4 * 13 * 512 * 512 * 4
    if implementation == "native":
        assert growth <= full / 100
    else:
        assert growth > full / 100  # the measurement sees an implementation that does make full-resolution tensors


def test_opcheck(implementation: str) -> None:
    given = problem(2, 3, (8, 9), torch.float32, low=(4, 4))
    for overload in ("default", implementation):
        kernel = getattr(torch.ops.smile_fast.masked_bce_upsampled, overload)
        torch.library.opcheck(kernel, (given.logits, given.labels, given.table, False, False))
        for mean in (False, True):
            leaf = given.logits.clone().requires_grad_()
            torch.library.opcheck(kernel, (leaf, given.labels, given.table, True, mean))


def test_compiles_into_one_graph(implementation: str) -> None:
    given = problem(2, 3, (8, 9), torch.float32, low=(4, 4))
    compiled = torch.compile(sum_loss(given, implementation), fullgraph=True, backend="aot_eager")
    found = gradient(compiled, given.logits)
    expected = gradient(sum_loss(given, implementation), given.logits)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


GOOD = problem(2, 3, (8, 9), torch.float32, low=(4, 5))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
        ({"logits": GOOD.logits[0]}, ValueError, r"logits must have shape \[B, K, h, w\] or .*, got \[3, 4, 5\]"),
        ({"logits": GOOD.logits[:, :, :0]}, ValueError, r"no empty spatial axis, got \[2, 3, 0, 5\]"),
        ({"labels": GOOD.labels.int()}, TypeError, "labels must have dtype torch.uint8, got torch.int32"),
        ({"labels": GOOD.labels[0]}, ValueError, r"labels must have shape .* B = 2 and 2 spatial axes, got \[8, 9\]"),
        ({"labels": GOOD.labels[:1]}, ValueError, r"labels must have shape .* B = 2 .*, got \[1, 8, 9\]"),
        ({"table": GOOD.table[:1]}, ValueError, r"table must have shape .* = \[2, 256, 2, 1\], got \[1, 256, 2, 1\]"),
        ({"table": 3}, TypeError, "table must be a tensor, got int"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of mean, sum, none, got 'batchmean'"),
        ({"implementation": "native!"}, ValueError, "must be None or one of .*, got 'native!'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"logits": GOOD.logits, "labels": GOOD.labels, "table": GOOD.table} | change
    with pytest.raises(kind, match=message):
        masked_bce_upsampled(**arguments)  # type: ignore[arg-type]
