import json
import math

import pytest
import torch

from smile_fast.models import ModelConfig, Segmenter
from smile_runtime.errors import InputError
from tests.models.test_resnet import BATCH_NORM
from tests.tolerances import LOGIT_OF_SIGMOID

ORGANS = ("liver", "pancreas", "spleen")


def tiny(**changes):
    settings = {"backbone": "resnet18", "width": 8, "rates": (1,), **changes}
    return Segmenter(ModelConfig(ORGANS, **settings))


@pytest.fixture(autouse=True)
def _seed(one_thread):
    torch.manual_seed(0)


def head_names(branches):
    """Names of the head in the published DeepLab v3 checkpoints."""
    names = {"classifier.1.weight", "classifier.4.weight", "classifier.4.bias", "classifier.0.project.0.weight"}
    norms = ["classifier.2", "classifier.0.project.1"]
    for branch in range(branches):
        first = 1 if branch == branches - 1 else 0  # the last branch starts with the pooling layer
        names.add(f"classifier.0.convs.{branch}.{first}.weight")
        norms.append(f"classifier.0.convs.{branch}.{first + 1}")
    return names | {f"{norm}.{part}" for norm in norms for part in BATCH_NORM}


@pytest.mark.parametrize(("backbone", "parameters"), [("resnet50", 39_638_869), ("resnet101", 58_630_997)])
def test_the_default_network_is_the_published_one(backbone, parameters):
    """DeepLab v3 for 21 classes on RGB: 42,004,074 and 60,996,202 with the auxiliary head of 2,365,205."""
    with torch.device("meta"):
        model = Segmenter(ModelConfig(tuple(f"organ {k}" for k in range(21)), backbone, channels=3))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert {name for name in model.state_dict() if not name.startswith("backbone.")} == head_names(5)
    assert "backbone.layer1.0.conv1.weight" in model.state_dict()


@pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_published_rates(output_stride, rates):
    with torch.device("meta"):
        head = Segmenter(ModelConfig(ORGANS, "resnet18", output_stride)).classifier
    branches = [head[0].convs[number][0] for number in (1, 2, 3)]
    assert tuple(branch.dilation[0] for branch in branches) == rates
    assert all(branch.dilation == branch.padding for branch in branches)


@pytest.mark.parametrize(("head", "outputs"), [("sigmoid", 3), ("softmax", 4)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 50)], ids=str)
def test_outputs(head, outputs, channels, size):
    model = tiny(head=head, channels=channels).eval()
    hu = torch.randint(-1024, 1000, (2, channels, *size), dtype=torch.int16)
    with torch.inference_mode():
        logits = model(hu)
        labels, probabilities = model.label_map(logits, size), model.probabilities(logits, size)
    assert logits.shape == (2, outputs, -(-size[0] // 8), -(-size[1] // 8))
    assert logits.dtype == torch.float32
    assert (labels.shape, labels.dtype) == ((2, *size), torch.uint8)
    assert probabilities.shape == (2, 3, *size)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


def test_what_lies_outside_the_window_looks_like_its_edge():
    model = tiny(window=(-100.0, 200.0)).eval()
    hu = torch.randint(-1024, 1500, (1, 1, 32, 32), dtype=torch.int16)
    with torch.inference_mode():
        seen = model(hu)
        assert torch.equal(model(hu.clamp(-100, 200)), seen)
        assert not torch.equal(model(hu.clamp(-99, 200)), seen)
        assert torch.equal(model(hu.float()), seen)


def test_sigmoid_label_map_is_the_most_probable_organ_above_one_half():
    for logits, organ in (((-1.0, -2.0, -0.1), 0), ((2.0, 1.0, 3.0), 3), ((0.5, 0.7, 0.6), 2), ((-3.0, 0.1, 0.0), 2)):
        constant = torch.tensor(logits).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        assert tiny().label_map(constant, (9, 16)).unique().tolist() == [organ]


def test_softmax_label_map_is_the_best_class():
    for logits, organ in (((1.0, 0.9, 0.8, 0.7), 0), ((-5.0, -4.0, -6.0, -7.0), 1), ((0.0, 0.0, 0.5, 0.4), 2)):
        constant = torch.tensor(logits).view(1, 4, 1, 1).expand(1, 4, 2, 2)
        assert tiny(head="softmax").label_map(constant, (9, 16)).unique().tolist() == [organ]


def test_logits_are_interpolated_between_pixel_centres():
    """Two logits a row, 4 and -4, stand for 16 pixels: 4 up to the first centre (3.5), then 1 less with every pixel."""
    logits = torch.tensor([4.0, -4.0]).expand(1, 3, 1, 2)
    row = tiny().probabilities(logits, (8, 16))[0, 0, 5].logit()
    expected = torch.tensor([4.0] * 4 + [3.5 - step for step in range(8)] + [-4.0] * 4)
    torch.testing.assert_close(row, expected, **LOGIT_OF_SIGMOID)
    # Logits are interpolated, not probabilities: softmax comes last.
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 0] = torch.tensor([4.0, -4.0])
    middle = tiny(head="softmax").probabilities(logits, (8, 16))[0, :, 5, 4]
    torch.testing.assert_close(middle, torch.full((3,), 1 / (math.exp(3.5) + 3)))


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_slice_of_any_size_stands_on_the_same_grid(output_stride):
    """A pixel of the logits covers `output_stride` pixels of any size: what lies beyond is cut off, not squeezed."""
    model = tiny(output_stride=output_stride)
    logits = torch.randn(1, 3, 4, 5)
    whole = model.probabilities(logits, (4 * output_stride, 5 * output_stride))
    size = (3 * output_stride + 1, 5 * output_stride - 3)
    torch.testing.assert_close(model.probabilities(logits, size), whole[..., : size[0], : size[1]])
    assert torch.equal(
        model.label_map(logits, size),
        model.label_map(logits, (4 * output_stride, 5 * output_stride))[:, : size[0], : size[1]],
    )


def test_padding_to_the_stride_is_air():
    model = tiny().eval()
    hu = torch.randint(-100, 200, (1, 1, 33, 50), dtype=torch.int16)
    padded = torch.full((1, 1, 40, 56), -1024, dtype=torch.int16)
    padded[..., :33, :50] = hu
    with torch.inference_mode():
        assert torch.equal(model(hu), model(padded))


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_a_prior_becomes_the_first_probability(head):
    model = tiny(head=head).eval()
    prior = [0.2, 0.003, 0.05]
    torch.nn.init.zeros_(model.classifier[-1].weight)  # what the features say comes on top
    model.set_prior(prior)
    hu = torch.randint(-1024, 1000, (1, 1, 32, 32), dtype=torch.int16)
    with torch.inference_mode():
        probabilities = model.probabilities(model(hu), (32, 32))
    for organ, share in enumerate(prior):
        torch.testing.assert_close(probabilities[0, organ], torch.full((32, 32), share))


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_an_extreme_prior_stays_finite(head):
    model = tiny(head=head)
    model.set_prior([0.0, 1.0, 0.9])
    assert torch.isfinite(model.classifier[-1].bias).all()


def test_every_organ_has_a_head_of_its_own():
    """The gradient of one organ's logits reaches no other organ's classifier."""
    model = tiny()
    model(torch.zeros(2, 1, 32, 32, dtype=torch.int16))[:, 1].sum().backward()
    gradient = model.classifier[-1].weight.grad.flatten(1).abs().sum(dim=1)
    assert gradient[1] > 0
    assert gradient[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"organs": tuple(f"organ {k}" for k in range(127))},
        {"backbone": "resnet19"},
        {"output_stride": 4},
        {"channels": 2},
        {"channels": -1},
        {"window": (240.0, -160.0)},
        {"window": (float("nan"), 240.0)},
        {"head": "tanh"},
        {"width": 4},
        {"width": 20},
        {"rates": (6, 0)},
    ],
    ids=str,
)
def test_an_unusable_configuration_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')}: .* cannot be used; give .*[^.]$"):
        ModelConfig(**{"organs": ORGANS, **wrong})


def test_a_network_needs_organs():
    assert ModelConfig().organs == ()  # of settings that no store has completed yet
    with pytest.raises(ValueError, match="organs is empty"):
        Segmenter(ModelConfig())


def test_configuration_survives_json():
    config = ModelConfig(ORGANS, "resnet34", 16, 32, (1, 2), 5, (-50.0, 60.0), "softmax")
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert Segmenter(ModelConfig(ORGANS, "resnet18", width=8)).config.outputs == 3
