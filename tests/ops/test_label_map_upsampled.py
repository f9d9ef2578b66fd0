from fractions import Fraction

import pytest
import torch
from torch import Tensor

from smile_fast.models import ModelConfig, Segmenter
from smile_fast.ops import available, label_map_upsampled, reference
from tests.tolerances import IDENTICAL_LABELS, INTERPOLATED_FLOAT64, NEAR_TIE

IMPLEMENTATIONS = [name for name, usable, _ in available("label_map_upsampled", "cpu") if usable]
INF, NAN = torch.inf, torch.nan


def noise(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def low(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def blobs(images: int, channels: int, rows: int, columns: int) -> Tensor:
    """Mostly background, and smooth organs that meet: what a trained network gives."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.rand((images, channels, 3, 1, 1), generator=torch.Generator().manual_seed(5))
    square = (y - places[:, :, 0] * rows) ** 2 + (x - places[:, :, 1] * columns) ** 2
    return 6 - 2 * square.sqrt() / (0.5 + places[:, :, 2])


def exact_labels(logits: Tensor, size: tuple[int, int], stride: int, softmax: bool) -> Tensor:
    """Decide every pixel in rational numbers, from the definition alone."""
    images, channels, rows, columns = logits.shape
    labels = torch.zeros((images, *size), dtype=torch.uint8)

    def corners(pixel: int, count: int) -> list[tuple[int, Fraction]]:
        position = (pixel + Fraction(1, 2)) / stride - Fraction(1, 2)
        position = min(max(position, Fraction(0)), Fraction(count - 1))
        lower = int(position)
        return [(lower, 1 - (position - lower)), (min(lower + 1, count - 1), position - lower)]

    for image in range(images):
        for y in range(size[0]):
            for x in range(size[1]):
                best, label = (None, 0) if softmax else (Fraction(0), 0)
                for channel in range(channels):
                    value = sum(
                        v * h * Fraction(float(logits[image, channel, row, column]))
                        for row, v in corners(y, rows)
                        for column, h in corners(x, columns)
                    )
                    if best is None or value > best:
                        best, label = value, channel + (not softmax)
                labels[image, y, x] = label
    return labels


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("size", "stride"), [((13, 11), 4), ((9, 20), 8), ((6, 7), 3), ((3, 2), 1)])
def test_labels_are_those_of_exact_arithmetic(
    implementation: str, softmax: bool, size: tuple[int, int], stride: int
) -> None:
    logits = noise((1, 3, *low(size, stride))).mul(4).round().div(4)  # with ties
    found = label_map_upsampled(logits, *size, stride, softmax, implementation=implementation)
    assert torch.equal(found, exact_labels(logits, size, stride, softmax))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("make", [blobs, lambda *shape: noise(shape)], ids=["blobs", "noise"])
def test_labels_are_those_of_the_model(implementation, head, stride, make) -> None:
    """All of them, except where the model's float32 cannot tell two values apart."""
    organs, size = 5, (122, 77)
    model = Segmenter(
        ModelConfig(tuple("abcde"), "resnet18", output_stride=stride, head=head, width=8)  # its weights play no part
    )
    logits = make(2, organs + (head == "softmax"), *low(size, stride))
    found = label_map_upsampled(logits, *size, stride, head == "softmax", implementation=implementation)
    full = model.upsample(logits.double(), size)
    if head == "sigmoid":
        full = torch.cat([torch.zeros_like(full[:, :1]), full], dim=1)
    first, second = full.topk(2, dim=1).values.unbind(1)
    certain = first - second > NEAR_TIE
    assert certain.float().mean() > IDENTICAL_LABELS
    assert torch.equal(found[certain], model.label_map(logits, size)[certain])
    assert torch.equal(found, full.argmax(1).byte())  # in float64 there is no such pixel
    assert len(found.unique()) == organs + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 13, 65, 126])
@pytest.mark.parametrize("stride", [1, 3, 8, 16])
@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the native core is not built")
def test_native_is_the_reference(dtype: torch.dtype, channels: int, stride: int) -> None:
    size = (61, 45)
    logits = noise((2, channels, *low(size, stride)), seed=channels, dtype=dtype)
    smooth = blobs(2, channels, *low(size, stride)).to(dtype)
    special = torch.where(noise(logits.shape, 1) > 3, torch.tensor(NAN, dtype=dtype), logits)
    special = torch.where(noise(logits.shape, 2) > 4, torch.tensor(INF, dtype=dtype), special)
    special = torch.where(noise(logits.shape, 3) > 4, torch.tensor(-INF, dtype=dtype), special)
    for case in (logits, smooth, special, logits.round(), torch.zeros_like(logits), logits * 1e-30):
        for softmax in (False, True) if channels > 1 else (False,):
            found, wanted = (
                label_map_upsampled(case, *size, stride, softmax, implementation=name)
                for name in ("native", "reference")
            )
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_half_is_background_and_ties_go_to_the_lower_organ(implementation: str) -> None:
    def constant(*values: float) -> Tensor:
        return torch.tensor(values)[None, :, None, None].expand(1, len(values), 2, 3)

    def labels(*values: float, softmax: bool = False) -> list[int]:
        found = label_map_upsampled(constant(*values), 15, 24, 8, softmax, implementation=implementation)
        return found.unique().tolist()

    assert labels(0.0, 0.0) == [0]
    assert labels(-1.0, 1e-45) == [2]
    assert labels(2.0, 2.0, 1.0) == [1]
    assert labels(1.0, 2.0, 2.0) == [2]
    assert labels(2.0, 2.0, 1.0, softmax=True) == [0]
    assert labels(-INF, -3.0, -3.0, softmax=True) == [1]
    assert labels(-INF, -INF, softmax=True) == [0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_is_never_above_anything(implementation: str) -> None:
    logits = torch.full((1, 3, 1, 1), 1.0)
    logits[0, 0] = NAN
    assert label_map_upsampled(logits, 8, 8, 8, implementation=implementation).unique().tolist() == [2]
    assert label_map_upsampled(logits, 8, 8, 8, True, implementation=implementation).unique().tolist() == [1]
    nothing = label_map_upsampled(logits[:, :1], 8, 8, 8, implementation=implementation)
    assert nothing.unique().tolist() == [0]
    infinite = torch.tensor([[INF, -INF, 5.0]])[None, None]  # between the two of them, NaN
    found = label_map_upsampled(infinite, 8, 24, 8, implementation=implementation)[0, 0]
    assert found.tolist() == [1] * 4 + [0] * 16 + [1] * 4


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(implementation: str, shape: tuple[int, ...]) -> None:
    found = label_map_upsampled(torch.zeros(shape), 8 * shape[2], 8 * shape[3], 8, implementation=implementation)
    assert found.shape == (shape[0], 8 * shape[2], 8 * shape[3])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_memory_format_and_no_gradient(implementation: str) -> None:
    logits = noise((2, 5, 6, 7))
    wanted = label_map_upsampled(logits, 48, 50, 8, implementation=implementation)
    strided = logits.to(memory_format=torch.channels_last).requires_grad_()
    found = label_map_upsampled(strided, 48, 50, 8, implementation=implementation)
    assert torch.equal(found, wanted)
    assert not found.requires_grad


def test_float64_is_taken() -> None:
    logits = noise((1, 3, 4, 4))
    assert torch.equal(label_map_upsampled(logits.double(), 30, 32, 8), label_map_upsampled(logits, 30, 32, 8))


@pytest.mark.parametrize("size", [(64, 48), (61, 45)])
@pytest.mark.parametrize("stride", [8, 16])
def test_the_reference_interpolates_like_torch(size: tuple[int, int], stride: int) -> None:
    logits = noise((2, *low(size, stride)))
    scaled = reference.upsample_by_stride(logits, *size, stride) / (2 * stride) ** 2
    full = torch.nn.functional.interpolate(logits[None].double(), scale_factor=float(stride), mode="bilinear")
    torch.testing.assert_close(scaled, full[0, :, : size[0], : size[1]], **INTERPOLATED_FLOAT64)


def test_opcheck_and_compile() -> None:
    logits = noise((2, 3, 2, 3))
    op = torch.ops.smile_fast.label_map_upsampled
    for kernel in (op.default, *(getattr(op, name) for name in IMPLEMENTATIONS)):
        torch.library.opcheck(kernel, (logits, 15, 24, 8, False))
        torch.library.opcheck(kernel, (logits.clone().requires_grad_(), 15, 24, 8, True))
    compiled = torch.compile(lambda z: label_map_upsampled(z, 15, 24, 8), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits), label_map_upsampled(logits, 15, 24, 8))


LOGITS = noise((1, 2, 2, 3))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
        ({"logits": LOGITS.int()}, TypeError, "logits must have dtype .*, got torch.int32"),
        ({"logits": LOGITS[0]}, ValueError, r"logits must have shape \[N, M, h, w\], got \[2, 2, 3\]"),
        ({"height": 17}, ValueError, r"ceil\(H / stride\), .* = \[1, 2, 3, 3\], got \[1, 2, 2, 3\]"),
        ({"width": 8}, ValueError, r"ceil\(W / stride\)\] = \[1, 2, 2, 1\], got \[1, 2, 2, 3\]"),
        ({"height": -1}, ValueError, "height must not be negative, got -1"),
        ({"stride": 8.0}, TypeError, "stride must be an int, got float"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"softmax": 1}, TypeError, "softmax must be a bool, got int"),
        ({"logits": LOGITS[:, :0]}, ValueError, "logits must have 1 to 126 organs"),
        ({"logits": LOGITS[:, :1], "softmax": True}, ValueError, "logits must have 1 to 126 organs"),
        ({"logits": LOGITS[:, :1].expand(1, 127, 2, 3)}, ValueError, "logits must have 1 to 126 organs"),
        ({"implementation": "fast"}, ValueError, "implementation of label_map_upsampled must be .*, got 'fast'"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"logits": LOGITS, "height": 15, "width": 24, "stride": 8, "softmax": False} | change
    with pytest.raises(kind, match=message):
        label_map_upsampled(**arguments)  # type: ignore[arg-type]


@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the native core is not built")
def test_what_native_refuses() -> None:
    with pytest.raises(ValueError, match="it upsamples by at most 64, got 65"):
        label_map_upsampled(LOGITS, 130, 195, 65, implementation="native")
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        label_map_upsampled(LOGITS.double(), 15, 24, 8, implementation="native")
    assert label_map_upsampled(LOGITS, 130, 195, 65).shape == (1, 130, 195)
    with pytest.raises(ValueError, match="logits must have shape"):  # whoever calls
        torch.ops.smile_fast.label_map_upsampled(LOGITS, 17, 24, 8, False)
    with pytest.raises(ValueError, match="1 to 126 organs"):
        torch.ops.smile_fast.label_map_upsampled(torch.zeros(1, 250, 2, 3), 15, 24, 8, False)
    with pytest.raises(ValueError, match="it upsamples by at most 64, got 200"):
        torch.ops.smile_fast.label_map_upsampled.native(torch.zeros(1, 3, 4, 4), 800, 800, 200, False)
