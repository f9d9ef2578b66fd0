"""label_map_upsampled and pseudo_labels_upsampled in Triton: bit for bit what the reference gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from smile_fast.ops import label_map_upsampled, pseudo_labels_upsampled
from smile_fast.ops.triton_kernels.core import LARGEST_AXIS
from tests.ops.test_label_map_upsampled import INF, NAN, low, noise
from tests.ops.test_pseudo_labels_upsampled import some_labels

# NumPy, in which the interpreter computes, warns of inf * 0 and of overflows.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STRIDES = [1, 3, 8, 16]
SIZE = (29, 45)
SMALL = (13, 19)  # for what takes the interpreter long


def cases(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    logits = noise(shape, dtype=dtype)
    special = torch.where(noise(shape, 1) > 3, torch.tensor(NAN, dtype=dtype), logits)
    special = torch.where(noise(shape, 2) > 4, torch.tensor(INF, dtype=dtype), special)
    special = torch.where(noise(shape, 3) > 4, torch.tensor(-INF, dtype=dtype), special)
    close = (1 + logits * 2**-12).to(dtype)  # a narrow range of scores, many of them equal
    return [logits, special, logits.round(), close, torch.ones_like(logits), logits * 1e-42]


def assert_same_labels(logits: Tensor, size: tuple[int, int], stride: int, softmax: bool = False) -> None:
    found, wanted = (
        label_map_upsampled(logits, *size, stride, softmax, implementation=name) for name in ("triton", "reference")
    )
    assert torch.equal(found, wanted)


def assert_same_pseudo_labels(logits: Tensor, labels: Tensor, *arguments: Any) -> None:
    found, wanted = (
        pseudo_labels_upsampled(logits, labels, *arguments, implementation=name) for name in ("triton", "reference")
    )
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("stride", STRIDES)
def test_label_map_is_that_of_the_reference(dtype: torch.dtype, softmax: bool, stride: int) -> None:
    for logits in cases((2, 4, *low(SMALL, stride)), dtype):
        assert_same_labels(logits, SMALL, stride, softmax)


@pytest.mark.parametrize("stride", [8, 16])
def test_rows_of_whole_words(stride: int) -> None:
    for logits in cases((2, 3, *low((20, 36), stride)), torch.float32):
        assert_same_labels(logits, (20, 36), stride)


def test_many_channels_and_a_decision_that_rounding_would_change() -> None:
    assert_same_labels(noise((1, 126, 2, 3)), (16, 24), 8)
    assert_same_labels(noise((1, 127, 2, 3)), (16, 24), 8, softmax=True)
    logits = noise((1, 3, 3, 3))
    logits[:, 1] = logits[:, 0] + logits[:, 0].flip(-1) * 2.0**-23  # what float32 cannot tell apart
    logits[:, 2] = logits[:, 0].flip(-2)
    assert_same_labels(logits + 4, (24, 24), 8)
    assert_same_labels(logits * 1e38, (24, 24), 8)  # overflows in float32


@pytest.mark.parametrize(("images", "channels"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (8, 8), (8, 17), (17, 8)])
@pytest.mark.parametrize("stride", [1, 8])
def test_axes_of_one(images: int, channels: int, size: tuple[int, int], stride: int) -> None:
    logits, labels = noise((images, channels, *low(size, stride))), torch.zeros((images, *size), dtype=torch.uint8)
    assert_same_labels(logits, size, stride)
    for scope in ("volume", "slice"):
        assert_same_pseudo_labels(logits, labels, range(channels), 0.5, stride, scope)


@pytest.mark.parametrize(
    ("dtype", "scope", "stride"),
    [
        *((torch.float32, scope, stride) for scope in ("volume", "slice") for stride in (8, 16)),
        *((dtype, "volume", 8) for dtype in DTYPES[1:]),
        *((torch.float32, "slice", 1), (torch.float32, "volume", 3)),
    ],
    ids=str,
)
def test_pseudo_labels_are_those_of_the_reference(dtype: torch.dtype, scope: str, stride: int) -> None:
    size = SIZE if stride > 8 else SMALL
    labels = some_labels(2, size)
    rounds = [(0.33, [0, 1, 3]), (0.66, [0, 3]), (1.0, [2]), (0.66, [0, 1]), (0.33, [1, 2]), (0.0, [0])]
    for logits, (gamma, organs) in zip(cases((2, 4, *low(size, stride)), dtype), rounds, strict=True):
        assert_same_pseudo_labels(logits, labels, organs, gamma, stride, scope)


def test_organs_with_the_highest_codes() -> None:
    logits, labels = noise((1, 126, 2, 3)), torch.zeros((1, 16, 24), dtype=torch.uint8)
    logits[:, 125, 0] += 20
    organs = [0, 63, 64, 124, 125]
    found, wanted = (
        pseudo_labels_upsampled(logits, labels, organs, 0.9, 8, implementation=name) for name in ("triton", "reference")
    )
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert found[0].max() == 254


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    size = (8 * shape[2], 8 * shape[3])
    labels = torch.zeros((shape[0], *size), dtype=torch.uint8)
    overlay, counts = pseudo_labels_upsampled(torch.ones(shape), labels, [0, 1], 0.5, 8, implementation="triton")
    assert overlay.shape == labels.shape
    assert counts.tolist() == [[0, 0, 0]] * 2
    assert label_map_upsampled(torch.ones(shape), *size, 8, implementation="triton").shape == labels.shape


def test_no_organ() -> None:
    labels = torch.zeros((1, 8, 8), dtype=torch.uint8)
    overlay, counts = pseudo_labels_upsampled(torch.ones((1, 2, 1, 1)), labels, [], 1.0, 8, implementation="triton")
    assert not overlay.any()
    assert counts.shape == (0, 3)


def test_memory_layout_does_not_matter() -> None:
    logits, labels = noise((3, 4, *low(SIZE, 8))), some_labels(3, SIZE)
    strided, turned = logits.to(memory_format=torch.channels_last), labels.transpose(0, 2).contiguous().transpose(0, 2)
    wanted = pseudo_labels_upsampled(logits, labels, [1, 3], 0.5, 8, implementation="triton")
    found = pseudo_labels_upsampled(strided, turned, [1, 3], 0.5, 8, implementation="triton")
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    maps = [label_map_upsampled(given, *SIZE, 8, implementation="triton") for given in (logits, strided)]
    assert torch.equal(*maps)


def test_opcheck() -> None:
    logits, labels = noise((2, 3, 2, 3)), torch.zeros((2, 15, 24), dtype=torch.uint8)
    ops = torch.ops.smile_fast
    torch.library.opcheck(ops.pseudo_labels_upsampled.triton, (logits, labels, [0, 2], 0.5, 8, "volume"))
    torch.library.opcheck(ops.label_map_upsampled.triton, (logits, 15, 24, 8, True))


def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    logits, labels = noise((1, 2, 2, 3)), torch.zeros((1, 15, 24), dtype=torch.uint8)
    with pytest.raises(ValueError, match="'triton' of pseudo_labels_upsampled cannot be used: it computes in float32"):
        pseudo_labels_upsampled(logits.double(), labels, [0], 0.5, 8, implementation="triton")
    with pytest.raises(ValueError, match="'triton' of label_map_upsampled cannot be used: it computes in float32"):
        label_map_upsampled(logits.double(), 15, 24, 8, implementation="triton")
    too_long = LARGEST_AXIS + 1
    with pytest.raises(ValueError, match="axes and strides of up to 32000 pixels, got 32001"):
        label_map_upsampled(logits[:, :, :1, :1], 1, too_long, too_long, implementation="triton")
    with pytest.raises(ValueError, match=r"organs must be ascending numbers in 0\.\.1, got"):  # whoever calls
        torch.ops.smile_fast.pseudo_labels_upsampled.triton(logits, labels, [2], 0.5, 8, "volume")
