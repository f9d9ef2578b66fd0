from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smile_fast.ops import available, pseudo_labels_upsampled, reference, select_top_fraction
from smile_runtime.label_map import PSEUDO_BIT
from tests.ops.test_label_map_upsampled import INF, NAN, blobs, low, noise

IMPLEMENTATIONS = [name for name, usable, _ in available("pseudo_labels_upsampled", "cpu") if usable]
GAMMAS = (0.0, 0.07, 0.33, 0.66, 1.0)
SIZE = (61, 45)


def some_labels(depth: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """A third of the voxels carry some label."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 256, (depth, *size), generator=generator)
    return torch.where(torch.rand((depth, *size), generator=generator) < 0.3, values, 0).byte()


def composed(
    logits: Tensor, labels: Tensor, organs: list[int], gamma: float, stride: int, scope: str
) -> tuple[Tensor, Tensor]:
    """The round from full-resolution scores and `select_top_fraction` over all voxels, as one would write it."""
    size = labels.shape[1:]
    full = torch.nn.functional.interpolate(logits.double(), scale_factor=float(stride), mode="bilinear")
    scores = full[..., : size[0], : size[1]].float()  # [D, K, H, W]
    step = labels[0].numel() if scope == "slice" else labels.numel()
    segments = torch.arange(0, labels.numel() + 1, step)
    overlay, best = torch.zeros_like(labels), torch.full(labels.shape, -INF)
    counts = torch.zeros((len(organs), 3), dtype=torch.int64)
    for row, organ in zip(counts, organs, strict=True):
        score = scores[:, organ]
        candidates = (labels == 0) & (score > 0)
        selected = select_top_fraction(score.flatten(), candidates.flatten(), gamma, segments).view(labels.shape)
        wins = selected & (score > best)
        overlay[wins], best[wins] = PSEUDO_BIT | (organ + 1), score[wins]
        row[0], row[1] = candidates.sum(), selected.sum()
    for row, organ in zip(counts, organs, strict=True):
        row[2] = (overlay == PSEUDO_BIT | (organ + 1)).sum()
    return overlay, counts


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("stride", [8, 16])
def test_it_is_the_selection_on_full_resolution_scores(
    implementation: str, scope: str, gamma: float, stride: int
) -> None:
    labels = some_labels(4, SIZE)
    for logits in (noise((4, 3, *low(SIZE, stride))), blobs(4, 3, *low(SIZE, stride))):
        found = pseudo_labels_upsampled(logits, labels, [0, 2], gamma, stride, scope, implementation=implementation)
        wanted = composed(logits, labels, [0, 2], gamma, stride, scope)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        assert (found[1][:, 0] > 100).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scope", ["volume", "slice"])
@pytest.mark.parametrize("stride", [1, 3, 8, 16])
@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the native core is not built")
def test_native_is_the_reference(dtype: torch.dtype, scope: str, stride: int) -> None:
    labels, shape = some_labels(3, SIZE), (3, 6, *low(SIZE, stride))
    logits = noise(shape, dtype=dtype)
    special = torch.where(noise(shape, 1) > 3, torch.tensor(NAN, dtype=dtype), logits)
    special = torch.where(noise(shape, 2) > 4, torch.tensor(INF, dtype=dtype), special)
    special = torch.where(noise(shape, 3) > 4, torch.tensor(-INF, dtype=dtype), special)
    close = (1 + logits * 2**-12).to(dtype)  # a narrow range of scores, many of them equal
    for case in (logits, special, logits.round(), close, torch.ones_like(logits), logits * 1e-44):
        for gamma in GAMMAS:
            for organs in ([0, 1, 5], [3], list(range(6))):
                found, wanted = (
                    pseudo_labels_upsampled(case, labels, organs, gamma, stride, scope, implementation=name)
                    for name in ("native", "reference")
                )
                assert torch.equal(found[0], wanted[0])
                assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_queued_is_the_reference(dtype: torch.dtype, scope: str) -> None:
    logits, labels = noise((3, 4, *low(SIZE, 8)), dtype=dtype), some_labels(3, SIZE)
    found, wanted = (
        pseudo_labels_upsampled(logits, labels, [0, 1, 3], 0.33, 8, scope, implementation=name)
        for name in ("torch", "reference")
    )
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


class HostLearnsNothing(TorchDispatchMode):
    """Refuses the operations after which the host knows what a tensor holds, or that need memory of the host."""

    REFUSED = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "lift_fresh", "is_nonzero", "bincount")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        masks = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        if masks or any(name.startswith(refused) for refused in self.REFUSED):
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


def test_queued_tells_the_host_nothing() -> None:
    logits, labels = noise((2, 3, *low(SIZE, 8))), some_labels(2, SIZE)
    arguments = (logits, labels, [0, 2], 0.5, 8, "volume")
    with HostLearnsNothing():
        torch.ops.smile_fast.pseudo_labels_upsampled.torch(*arguments)
        reference.label_map_upsampled(logits, *SIZE, 8, False)
    with HostLearnsNothing(), pytest.raises(AssertionError, match="nonzero waits for the device"):
        reference.pseudo_labels_upsampled(*arguments)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_go_to_the_first_voxels_and_organs(implementation: str) -> None:
    logits, labels = torch.full((3, 2, 2, 3), 5.0), torch.zeros((3, 16, 24), dtype=torch.uint8)
    labels[0, 0, 1] = 7
    free = labels.numel() - 1
    overlay, counts = pseudo_labels_upsampled(logits, labels, [0, 1], 0.5, 8, implementation=implementation)
    selected = -(-free // 2)
    assert counts.tolist() == [[free, selected, selected], [free, selected, 0]]
    first = [0, *range(2, selected + 1)]  # voxel 1 has a label
    assert overlay.flatten().nonzero()[:, 0].tolist() == first
    assert overlay.unique().tolist() == [0, PSEUDO_BIT | 1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_higher_score_wins(implementation: str) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])[None, :, None, None]
    labels = torch.zeros((1, 8, 8), dtype=torch.uint8)
    overlay, counts = pseudo_labels_upsampled(logits, labels, [0, 2, 3], 1.0, 8, implementation=implementation)
    assert overlay.unique().tolist() == [PSEUDO_BIT | 3]
    assert counts.tolist() == [[64, 64, 0], [64, 64, 64], [0, 0, 0]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts_are_those_of_exact_arithmetic(implementation: str) -> None:
    logits, labels = torch.ones((1, 1, 2, 2)), torch.full((1, 16, 16), 9, dtype=torch.uint8)
    labels.view(-1)[:100] = 0
    _, counts = pseudo_labels_upsampled(logits, labels, [0], 0.07, 8, implementation=implementation)
    assert counts.tolist() == [[100, 7, 7]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(implementation: str, shape: tuple[int, ...]) -> None:
    labels = torch.zeros((shape[0], 8 * shape[2], 8 * shape[3]), dtype=torch.uint8)
    overlay, counts = pseudo_labels_upsampled(torch.ones(shape), labels, [0, 1], 0.5, 8, implementation=implementation)
    assert overlay.shape == labels.shape
    assert counts.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_organ_has_no_pseudo_labels(implementation: str) -> None:
    labels = torch.zeros((1, 8, 8), dtype=torch.uint8)
    overlay, counts = pseudo_labels_upsampled(
        torch.ones((1, 2, 1, 1)), labels, [], 1.0, 8, implementation=implementation
    )
    assert not overlay.any()
    assert counts.shape == (0, 3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_memory_format_and_no_gradient(implementation: str) -> None:
    logits, labels = noise((3, 4, 8, 6)), some_labels(3, SIZE)
    wanted = pseudo_labels_upsampled(logits, labels, [1, 3], 0.5, 8, implementation=implementation)
    strided = logits.to(memory_format=torch.channels_last).requires_grad_()
    turned = labels.transpose(0, 2).contiguous().transpose(0, 2)
    found = pseudo_labels_upsampled(strided, turned, [1, 3], 0.5, 8, implementation=implementation)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[0].is_contiguous()
    assert not any(result.requires_grad for result in found)


def test_float64_is_taken() -> None:
    logits, labels = noise((2, 2, 8, 6)), some_labels(2, SIZE)
    _, counts = pseudo_labels_upsampled(logits.double(), labels, [0, 1], 0.5, 8)
    assert counts[:, :2].tolist() == pseudo_labels_upsampled(logits, labels, [0, 1], 0.5, 8)[1][:, :2].tolist()


def test_opcheck_and_compile() -> None:
    logits, labels = noise((2, 3, 2, 3)), torch.zeros((2, 15, 24), dtype=torch.uint8)
    op = torch.ops.smile_fast.pseudo_labels_upsampled
    for kernel in (op.default, *(getattr(op, name) for name in IMPLEMENTATIONS)):
        torch.library.opcheck(kernel, (logits, labels, [0, 2], 0.5, 8, "volume"))
        torch.library.opcheck(kernel, (logits.clone().requires_grad_(), labels, [1], 0.5, 8, "slice"))
    compiled = torch.compile(
        lambda z: pseudo_labels_upsampled(z, labels, [0, 2], 0.5, 8), fullgraph=True, backend="aot_eager"
    )
    wanted = pseudo_labels_upsampled(logits, labels, [0, 2], 0.5, 8)
    assert all(torch.equal(a, b) for a, b in zip(compiled(logits), wanted, strict=True))


LOGITS, LABELS = noise((1, 2, 2, 3)), torch.zeros((1, 15, 24), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
        ({"logits": LOGITS.int()}, TypeError, "logits must have dtype .*, got torch.int32"),
        ({"logits": LOGITS[0]}, ValueError, r"logits must have shape \[D, K, h, w\], got \[2, 2, 3\]"),
        ({"logits": LOGITS[:, :0]}, ValueError, "logits must have 1 to 126 organs"),
        ({"logits": LOGITS[:, :1].expand(1, 127, 2, 3)}, ValueError, "logits must have 1 to 126 organs"),
        ({"labels": LABELS.int()}, TypeError, "labels must have dtype torch.uint8, got torch.int32"),
        ({"labels": LABELS[0]}, ValueError, r"labels must have shape \[D, H, W\], got \[15, 24\]"),
        ({"labels": LABELS[:0]}, ValueError, r"labels must have shape \[D, H, W\] = \[1, 15, 24\], got \[0, 15, 24\]"),
        ({"labels": LABELS[:, :8]}, ValueError, r"\[D, K, ceil\(H / stride\), .* = \[1, 2, 1, 3\], got \[1, 2, 2, 3\]"),
        ({"organs": [0.5]}, TypeError, r"organs must be a sequence of int, got \[0.5\]"),
        ({"organs": [True]}, TypeError, r"organs must be a sequence of int, got \[True\]"),
        ({"organs": [0, 2]}, ValueError, r"organs must be ascending numbers in 0..1, got \[0, 2\]"),
        ({"organs": [-1]}, ValueError, r"organs must be ascending numbers in 0..1, got \[-1\]"),
        ({"organs": [1, 0]}, ValueError, r"organs must be ascending numbers in 0..1, got \[1, 0\]"),
        ({"organs": [1, 1]}, ValueError, r"organs must be ascending numbers in 0..1, got \[1, 1\]"),
        ({"gamma": "0.5"}, TypeError, "gamma must be a float, got str"),
        ({"gamma": True}, TypeError, "gamma must be a float, got bool"),
        ({"gamma": 1.1}, ValueError, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"gamma": NAN}, ValueError, r"gamma must lie in \[0, 1\], got nan"),
        ({"stride": 8.0}, TypeError, "stride must be an int, got float"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"scope": True}, TypeError, "scope must be a str, got bool"),
        ({"scope": "case"}, ValueError, "scope must be one of volume, slice, got 'case'"),
        ({"implementation": "fast"}, ValueError, "implementation of pseudo_labels_upsampled must be .*, got 'fast'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"logits": LOGITS, "labels": LABELS, "organs": [0, 1], "gamma": 0.5, "stride": 8} | change
    with pytest.raises(kind, match=message):
        pseudo_labels_upsampled(**arguments)  # type: ignore[arg-type]


@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the native core is not built")
def test_what_native_refuses() -> None:
    labels = torch.zeros((1, 130, 195), dtype=torch.uint8)
    with pytest.raises(ValueError, match="it upsamples by at most 64, got 65"):
        pseudo_labels_upsampled(LOGITS, labels, [0], 0.5, 65, implementation="native")
    with pytest.raises(ValueError, match=r"organs must be ascending numbers in 0\.\.1, got"):  # whoever calls
        torch.ops.smile_fast.pseudo_labels_upsampled(LOGITS, LABELS, [2], 0.5, 8, "volume")
    wide = torch.zeros((1, 800, 800), dtype=torch.uint8)
    with pytest.raises(ValueError, match="it upsamples by at most 64, got 200"):
        torch.ops.smile_fast.pseudo_labels_upsampled.native(torch.zeros(1, 3, 4, 4), wide, [0], 0.5, 200, "volume")
    with pytest.raises(ValueError, match="1 to 126 organs"):
        torch.ops.smile_fast.pseudo_labels_upsampled(torch.zeros(1, 127, 100, 100), wide, [0], 0.5, 8, "volume")
