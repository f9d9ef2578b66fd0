import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smile_fast.ops import available, masked_bce, masked_bce_stats
from smile_fast.supervision import Policy, State, build_tables
from tests.ops.problems import IMPLEMENTATIONS, Problem, exact, gradient, plain_torch, problem, taken
from tests.tolerances import GRADIENT_ULPS, LOSS_RELATIVE, assert_no_worse_than_torch, gradient_ulps, twice_rounded

A, M, H = State.ANNOTATED, State.MISSING, State.HIDDEN
SIZES = [(7,), (9, 11), (33, 40), (3, 5, 6)]


@pytest.fixture(params=IMPLEMENTATIONS["masked_bce"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sum_loss(given: Problem, implementation: str) -> Callable[[Tensor], Tensor]:
    return lambda logits: masked_bce(logits, given.labels, given.table, reduction="sum", implementation=implementation)


def test_native_is_there_where_it_must_be() -> None:
    usable = dict((name, reason) for name, ok, reason in available("masked_bce", "cpu") if not ok)
    required = os.environ.get("SMILE_FAST_REQUIRE_NATIVE") == "1"
    assert "native" not in usable or not required, usable["native"]


@pytest.mark.parametrize(("implementation", "dtype"), taken("masked_bce"), ids=str)
@pytest.mark.parametrize("organs", [1, 3, 32, 33, 65, 128])
def test_sums_counts_and_gradients(implementation: str, organs: int, dtype: torch.dtype) -> None:
    for size in SIZES if organs <= 3 else SIZES[1:2]:
        given = problem(2, organs, size, dtype, seed=organs)
        leaf = given.logits.clone().requires_grad_()
        loss, sums, counts = masked_bce_stats(
            leaf, given.labels, given.table, reduction="sum", implementation=implementation
        )
        (grad,) = torch.autograd.grad(loss, leaf)
        exact_sums, exact_gradient = exact(given)
        assert loss == sums.sum().to(loss.dtype)
        torch.testing.assert_close(sums, exact_sums, rtol=LOSS_RELATIVE, atol=0)
        assert torch.equal(counts, given.known.flatten(2).sum(2))
        assert grad.dtype == dtype
        assert gradient_ulps(grad, exact_gradient) <= GRADIENT_ULPS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(implementation: str, dtype: torch.dtype) -> None:
    given = problem(3, 5, (64, 65), dtype)
    exact_sum = exact(given)[0].sum().item()
    plain = plain_torch(given.logits, given).sum().item()
    ours = sum_loss(given, implementation)(given.logits).item()
    assert_no_worse_than_torch(ours, plain, exact_sum)


def test_reductions_agree(implementation: str) -> None:
    given = problem(2, 3, (9, 10), torch.float32)
    arguments = (given.logits, given.labels, given.table)
    by_channel = masked_bce(*arguments, reduction="none", implementation=implementation)
    assert by_channel.shape == (2, 3)
    assert by_channel.dtype == torch.float32
    total = masked_bce(*arguments, reduction="sum", implementation=implementation)
    mean = masked_bce(*arguments, implementation=implementation)
    torch.testing.assert_close(total, by_channel.sum())
    torch.testing.assert_close(mean, by_channel.sum() / given.known.sum())
    assert mean.dtype == torch.float32
    assert mean.shape == ()
    double = masked_bce(given.logits.double(), given.labels, given.table)
    assert double.dtype == torch.float64


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_poison_where_nothing_is_known_never_leaks(implementation: str, dtype: torch.dtype, poison: float) -> None:
    given = problem(2, 5, (30, 31), dtype)
    poisoned = torch.where(given.known, given.logits, poison)
    clean_loss, clean_grad = gradient(sum_loss(given, implementation), given.logits)
    loss, grad = gradient(sum_loss(given, implementation), poisoned)
    assert torch.equal(loss, clean_loss)
    assert torch.equal(grad, clean_grad)


def test_poison_where_it_is_known_is_not_swallowed(implementation: str) -> None:
    given = problem(1, 2, (8, 8), torch.float32)
    known = given.known[0, 0].nonzero()[0].tolist()
    logits = given.logits.clone()
    logits[0, 0, known[0], known[1]] = torch.nan
    _, sums, _ = masked_bce_stats(logits, given.labels, given.table, implementation=implementation)
    assert torch.equal(sums.isnan(), torch.tensor([[True, False]]))


@pytest.mark.parametrize(
    ("logit", "positive", "loss", "slope"), [(torch.inf, 1, 0.0, 0.0), (torch.inf, 0, torch.inf, 1.0)]
)
def test_infinite_logits(implementation: str, logit: float, positive: int, loss: float, slope: float) -> None:
    table = build_tables([[A]], Policy.SMILE)
    labels = torch.full((1, 4), positive, dtype=torch.uint8)
    value, grad = gradient(
        lambda z: masked_bce(z, labels, table, implementation=implementation), torch.full((1, 1, 4), logit)
    )
    assert value.item() == loss
    assert torch.equal(grad, torch.full((1, 1, 4), slope / 4))


def test_nothing_known_is_exactly_zero(implementation: str) -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    table = build_tables([[M, H]] * 2, Policy.SMILE)
    logits = torch.full((2, 2, 8, 8), torch.nan)
    loss, grad = gradient(lambda z: masked_bce(z, labels, table, implementation=implementation), logits)
    assert loss.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 2)])
def test_gradcheck(size: tuple[int, ...]) -> None:
    given = problem(2, 3, size, torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: masked_bce(z, given.labels, given.table, reduction=r),
            given.logits.requires_grad_(),
        )


def test_gradient_that_arrives_scales_every_channel(implementation: str) -> None:
    given = problem(2, 3, (6, 7), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    by_channel = masked_bce(leaf, given.labels, given.table, reduction="none", implementation=implementation)
    arriving = torch.tensor([[1.0, -2.5, 0.0], [3.0, 0.5, 7.0]])
    (ones,) = torch.autograd.grad(by_channel.sum(), leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad(by_channel, leaf, arriving, retain_graph=True)
    (again,) = torch.autograd.grad(by_channel, leaf, arriving)
    assert torch.equal(scaled, ones * arriving[:, :, None, None])
    assert torch.equal(again, scaled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_layout_does_not_matter(implementation: str, dtype: torch.dtype) -> None:
    given = problem(2, 3, (8, 10), dtype)
    expected = gradient(sum_loss(given, implementation), given.logits)
    strided = given._replace(
        labels=given.labels.transpose(1, 2).contiguous().transpose(1, 2),
        table=given.table.repeat_interleave(2, dim=1)[:, ::2],
    )
    layouts = [
        given.logits.to(memory_format=torch.channels_last),
        given.logits.repeat_interleave(2, dim=3)[..., ::2],
        given.logits.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for logits in layouts:
        assert not logits.is_contiguous()
        found = gradient(sum_loss(strided, implementation), logits)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (0, 3, 0, 0)])
def test_empty(implementation: str, shape: tuple[int, ...]) -> None:
    given = problem(shape[0], shape[1], shape[2:], torch.float32)
    loss, grad = gradient(sum_loss(given, implementation), given.logits)
    assert loss.item() == 0.0
    assert grad.shape == shape
    mean = masked_bce(given.logits, given.labels, given.table, implementation=implementation)
    assert mean.item() == 0.0


def test_same_inputs_same_bits(implementation: str) -> None:
    given = problem(3, 5, (150, 151), torch.float32)
    results = []
    # Plain torch rounds differently at the end of a thread's share; the native core must not.
    for threads in (1, 2, 3, 8) if implementation == "native" else (1, 1):
        torch.set_num_threads(threads)
        results.append(gradient(sum_loss(given, implementation), given.logits))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_no_gradient_is_made_where_none_is_needed(implementation: str) -> None:
    given = problem(1, 2, (5, 5), torch.float32)
    expected = sum_loss(given, implementation)(given.logits)
    with torch.no_grad():
        loss = sum_loss(given, implementation)(given.logits.clone().requires_grad_())
    assert not loss.requires_grad
    assert torch.equal(loss, expected)
    kernel = torch.ops.smile_fast.masked_bce
    *_, grad = kernel(given.logits, given.labels, given.table, False, False)
    assert grad.shape == (0,)
    loss, sums, *_ = kernel(given.logits.clone().requires_grad_(), given.labels, given.table, False, True)
    for differentiated in (loss, sums.sum()):
        with pytest.raises(RuntimeError, match="with_grad=False"):
            differentiated.backward()


@pytest.mark.parametrize(("implementation", "dtype"), taken("masked_bce"), ids=str)
def test_gradient_of_the_mean_is_that_of_the_sum_over_the_known_pairs(implementation: str, dtype: torch.dtype) -> None:
    given = problem(2, 3, (9, 10), dtype)
    _, grad = gradient(lambda z: masked_bce(z, given.labels, given.table, implementation=implementation), given.logits)
    exact_gradient = exact(given)[1] / given.known.sum()
    # One rounding more than the gradient of the sum: that of the product with 1 / N.
    assert gradient_ulps(grad, exact_gradient) <= GRADIENT_ULPS[dtype] + 1
    _, doubled = gradient(
        lambda z: 2 * masked_bce(z, given.labels, given.table, implementation=implementation), given.logits
    )
    torch.testing.assert_close(doubled, 2 * grad, **twice_rounded(dtype))


def test_a_mean_over_many_voxels_does_not_underflow_in_float16(implementation: str) -> None:
    """1 / N is no normal number of float16 here; with a loss scale, as training has one, nothing may be lost."""
    given = problem(1, 3, (300, 301), torch.float16)
    scale = 2.0**16
    _, grad = gradient(
        lambda z: scale * masked_bce(z, given.labels, given.table, implementation=implementation), given.logits
    )
    assert 1 / given.known.sum() < torch.finfo(torch.float16).tiny
    assert gradient_ulps(grad, exact(given)[1] * scale / given.known.sum()) <= GRADIENT_ULPS[torch.float16] + 1


def test_gradient_of_a_kept_graph_is_not_given_away(implementation: str) -> None:
    given = problem(2, 3, (6, 7), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    loss = masked_bce(leaf, given.labels, given.table, implementation=implementation)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(second, expected)


def test_results_outlive_the_call_and_do_not_share_memory() -> None:
    """Large gradients come from a pool: each must have its own block for as long as it lives."""
    given = problem(1, 3, (400, 401), torch.float32)
    kernel = torch.ops.smile_fast.masked_bce
    first = kernel(given.logits, given.labels, given.table, True, False)[3]
    expected = first.clone()
    second = kernel(given.logits * 2, given.labels, given.table, True, False)[3]
    assert torch.equal(first, expected)
    assert first.data_ptr() != second.data_ptr()


def test_second_derivative_is_refused_not_wrong(implementation: str) -> None:
    given = problem(1, 2, (5, 5), torch.float32)
    leaf = given.logits.requires_grad_()
    loss = sum_loss(given, implementation)(leaf)
    for differentiated in (loss, loss**2):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(differentiated, leaf, create_graph=True, retain_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_stats_are_what_the_loss_was_reduced_from(implementation: str, reduction: str) -> None:
    given = problem(2, 3, (5, 6), torch.float64)
    arguments = (given.logits.requires_grad_(), given.labels, given.table)
    loss, sums, counts = masked_bce_stats(*arguments, reduction=reduction)
    expected = {"mean": sums.sum() / counts.sum(), "sum": sums.sum(), "none": sums}[reduction]
    assert torch.equal(loss, expected)
    assert loss.requires_grad
    assert not sums.requires_grad
    assert not counts.requires_grad
    arguments = (given.logits.float().detach().requires_grad_(), given.labels, given.table)
    single = masked_bce(*arguments, reduction=reduction, implementation=implementation)
    assert torch.equal(single, masked_bce_stats(*arguments, reduction=reduction, implementation=implementation).loss)


@pytest.mark.parametrize("mean", [False, True])
def test_op_differentiates_its_loss_and_its_sums(implementation: str, mean: bool) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    leaf = given.logits.clone().requires_grad_()
    kernel = getattr(torch.ops.smile_fast.masked_bce, implementation)
    loss, sums, *_ = kernel(leaf, given.labels, given.table, True, mean)
    (found,) = torch.autograd.grad(2 * loss + 3 * sums[1, 2], leaf)
    expected = 2 * exact(given)[1] / (given.known.sum() if mean else 1)
    expected[1, 2] += 3 * exact(given)[1][1, 2]
    torch.testing.assert_close(found.double(), expected, **twice_rounded(torch.float32))


def test_opcheck(implementation: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    for overload in ("default", implementation):
        kernel = getattr(torch.ops.smile_fast.masked_bce, overload)
        torch.library.opcheck(kernel, (given.logits, given.labels, given.table, False, False))
        leaf = given.logits.clone().requires_grad_()
        for mean in (False, True):
            torch.library.opcheck(kernel, (leaf, given.labels, given.table, True, mean))
        in_place = getattr(torch.ops.smile_fast.masked_bce_in_place, overload)
        torch.library.opcheck(in_place, (given.logits.clone(), given.labels, given.table, True))


def test_compiles_into_one_graph(implementation: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    compiled = torch.compile(sum_loss(given, implementation), fullgraph=True, backend="aot_eager")
    found = gradient(compiled, given.logits)
    expected = gradient(sum_loss(given, implementation), given.logits)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_choice_by_name_never_falls_back() -> None:
    given = problem(1, 2, (5, 5), torch.float64)
    reasons = {name: reason for name, _, reason in available("masked_bce", "cpu")}
    message = reasons["native"] or "takes float32, bfloat16, float16 input, got torch.float64"
    with pytest.raises(ValueError, match="'native' of masked_bce cannot be used") as error:
        masked_bce(given.logits, given.labels, given.table, implementation="native")
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", ["labels", "table"])
def test_op_called_directly_reads_no_foreign_memory(implementation: str, wrong: str) -> None:
    given = problem(2, 3, (5, 6), torch.float32)
    arguments = {"labels": given.labels, "table": given.table} | {wrong: getattr(given, wrong)[:1]}
    ops = torch.ops.smile_fast
    for packet, flags in (
        (ops.masked_bce, {"with_grad": True, "mean": False}),
        (ops.masked_bce_in_place, {"mean": False}),
    ):
        for kernel in (packet, packet.default, getattr(packet, implementation)):
            with pytest.raises(ValueError, match=f"{wrong} must have shape"):
                kernel(given.logits, **arguments, **flags)


GOOD = problem(2, 3, (4, 5), torch.float32)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": GOOD.logits.numpy()}, TypeError, "logits must be a tensor, got ndarray"),
        ({"logits": GOOD.logits.int()}, TypeError, "logits must have dtype .*float32.*, got torch.int32"),
        ({"logits": GOOD.logits[0, 0]}, ValueError, r"logits must have shape \[B, K, \*S\] .*, got \[4, 5\]"),
        ({"logits": GOOD.logits[:, :0]}, ValueError, r"K >= 1, got \[2, 0, 4, 5\]"),
        ({"labels": None}, TypeError, "labels must be a tensor, got NoneType"),
        ({"labels": GOOD.labels.long()}, TypeError, "labels must have dtype torch.uint8, got torch.int64"),
        ({"labels": GOOD.labels[:1]}, ValueError, r"labels must have shape \[B, \*S\] = \[2, 4, 5\], got \[1, 4, 5\]"),
        ({"labels": GOOD.labels.to("meta")}, ValueError, "labels must be on cpu .*, got meta"),
        ({"table": GOOD.table.long()}, TypeError, "table must have dtype torch.int32, got torch.int64"),
        ({"table": GOOD.table[:, :9]}, ValueError, r"table must have shape .* = \[2, 256, 2, 1\], got \[2, 9, 2, 1\]"),
        ({"table": GOOD.table.to("meta")}, ValueError, "table must be on cpu .*, got meta"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, none, got 'avg'"),
        ({"implementation": "gpu"}, ValueError, "implementation of masked_bce must be None or one of .*, got 'gpu'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"logits": GOOD.logits, "labels": GOOD.labels, "table": GOOD.table} | change
    with pytest.raises(kind, match=message):
        masked_bce(**arguments)  # type: ignore[arg-type]
