import pytest
import torch

from smile_fast.models.resnet import VARIANTS, ResNet
from tests.tolerances import RESTRUCTURED_FEATURES

# Parameters of the published networks without their last layer (fc), and blocks of their four stages.
PUBLISHED = {
    "resnet18": (11_176_512, (2, 2, 2, 2), 2),
    "resnet34": (21_284_672, (3, 4, 6, 3), 2),
    "resnet50": (23_508_032, (3, 4, 6, 3), 3),
    "resnet101": (42_500_160, (3, 4, 23, 3), 3),
}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names(name):
    """Names in the ImageNet checkpoints, without fc."""
    _, depths, convolutions = PUBLISHED[name]
    names = {"conv1.weight", *(f"bn1.{part}" for part in BATCH_NORM)}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names.add(f"{prefix}.conv{number}.weight")
                names |= {f"{prefix}.bn{number}.{part}" for part in BATCH_NORM}
            # A basic block of the first stage changes neither size nor channels; a bottleneck has four times as many.
            if block == 0 and (stage > 1 or convolutions == 3):
                names.add(f"{prefix}.downsample.0.weight")
                names |= {f"{prefix}.downsample.1.{part}" for part in BATCH_NORM}
    return names


def meta(name, channels=3, output_stride=8, width=64):
    with torch.device("meta"):
        return ResNet(name, channels, output_stride, width)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_checkpoints(name):
    model = meta(name)
    assert set(model.state_dict()) == published_names(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name][0]
    assert model.conv1.weight.shape == (64, 3, 7, 7)


def test_published_names_are_spelled_as_the_world_knows_them():
    """A few names written out: the list above is made by rules that could share a mistake with the network."""
    names = set(meta("resnet50").state_dict())
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_var",
        "layer3.5.bn3.bias",
        "layer4.2.conv2.weight",
    ):
        assert name in names
    assert "layer1.0.downsample.0.weight" not in meta("resnet18").state_dict()
    assert meta("resnet50").layer2[0].conv2.weight.shape == (128, 128, 3, 3)
    assert meta("resnet50").layer2[0].downsample[0].weight.shape == (512, 256, 1, 1)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 64), (97, 130)], ids=str)
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", VARIANTS)
def test_shapes(name, output_stride, size):
    model = meta(name, channels=1, output_stride=output_stride, width=8)
    features = model(torch.empty(2, 1, *size, device="meta"))
    expected = [-(-extent // output_stride) for extent in size]
    assert list(features.shape) == [2, model.out_channels, *expected]
    assert model.out_channels == 64 * (4 if PUBLISHED[name][2] == 3 else 1)


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [
        # stage -> stride of its first block; dilation of its first and of its other blocks
        (8, (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4))),
        (16, (1, 2, 2, 1), ((1, 1), (1, 1), (1, 1), (1, 2))),
    ],
)
@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_stride_is_traded_for_dilation(name, output_stride, strides, dilations):
    model = meta(name, output_stride=output_stride)
    for stage in range(4):
        for index, block in enumerate(getattr(model, f"layer{stage + 1}")):
            wanted = dilations[stage][min(index, 1)]
            stride = strides[stage] if index == 0 else 1
            spatial = [block.conv1, block.conv2] if name == "resnet34" else [block.conv2]
            for convolution in spatial:
                assert convolution.dilation == convolution.padding == (wanted, wanted)
            assert spatial[0].stride == (stride, stride)
            if name == "resnet50":  # the 3x3 carries the stride, as in the published checkpoints
                assert block.conv1.stride == (1, 1)
            if block.downsample is not None:
                assert block.downsample[0].stride == (stride, stride)


@pytest.mark.usefixtures("one_thread")
def test_dilation_keeps_what_the_published_weights_compute():
    """The features at stride 8 hold those at stride 16 as every other pixel, away from the border."""
    torch.manual_seed(0)
    dense, sparse = ResNet("resnet50", 1, 8, 8).eval(), ResNet("resnet50", 1, 16, 8).eval()
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(1, 1, 448, 448)
    with torch.inference_mode():
        low_stride, high_stride = dense(x)[..., ::2, ::2], sparse(x)
    inner = slice(12, -12)  # what the padding reaches: 12 blocks of 3x3, some of them dilated
    torch.testing.assert_close(low_stride[..., inner, inner], high_stride[..., inner, inner], **RESTRUCTURED_FEATURES)
