import shutil

import pytest
import torch
from safetensors.torch import save_file

from smile_fast.models import ModelConfig, Segmenter
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.weights import load_weights, weights_file
from smile_runtime.errors import InputError
from tests.runs import make_run
from tests.tolerances import REORDERED_CONVOLUTION
from tests.trainings import assert_same_bits

ORGANS = ("liver", "pancreas")


def network(channels=1, **changes):
    return Segmenter(ModelConfig(ORGANS, "resnet18", width=8, rates=(1,), channels=channels, **changes))


def imagenet(seed=1):
    """What a converted ImageNet checkpoint holds: a bare ResNet on RGB, and its classifier."""
    torch.manual_seed(seed)
    tensors = dict(network(channels=3).backbone.state_dict())
    return {**tensors, "fc.weight": torch.randn(1000, 64), "fc.bias": torch.randn(1000)}


def start(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_bare_resnet_becomes_the_backbone(tmp_path):
    tensors = imagenet()
    save_file(tensors, tmp_path / "w.safetensors")
    model = network(channels=3)
    before = start(model)
    report = load_weights(model, tmp_path / "w.safetensors")
    after = model.state_dict()
    for name, tensor in tensors.items():
        if not name.startswith("fc"):
            assert torch.equal(after[f"backbone.{name}"], tensor)
    head = [name for name in before if name.startswith("classifier")]
    assert all(torch.equal(after[name], before[name]) for name in head)
    assert set(report.loaded) == {name for name in before if name.startswith("backbone")}
    assert set(report.missing) == {name for name in head if not name.endswith("num_batches_tracked")}
    assert set(report.skipped) == {"fc.weight: no such parameter", "fc.bias: no such parameter"}
    assert str(report).startswith(f"{len(report.loaded)} tensors loaded, {len(report.missing)} left at their start")
    assert "2 of the file not used (fc." in str(report)


@pytest.mark.parametrize("channels", [1, 5])
def test_rgb_filters_answer_to_a_constant_slice_as_before(tmp_path, channels):
    tensors = imagenet()
    save_file(tensors, tmp_path / "w.safetensors")
    model = network(channels=channels)
    report = load_weights(model, tmp_path / "w.safetensors")
    assert "backbone.conv1.weight" in report.loaded
    grey = torch.randn(1, 1, 20, 20)
    with torch.inference_mode():
        adapted = model.backbone.conv1(grey.expand(1, channels, 20, 20))
        original = torch.nn.functional.conv2d(grey.expand(1, 3, 20, 20), tensors["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(adapted, original, **REORDERED_CONVOLUTION)


def test_a_whole_deeplab_loads_where_it_fits(tmp_path):
    """COCO has other classes: everything but the last layer is taken over, the prior of the last one stays."""
    torch.manual_seed(1)
    coco = Segmenter(ModelConfig(tuple(f"class {k}" for k in range(21)), "resnet18", width=8, rates=(1,), channels=3))
    tensors = dict(coco.state_dict())
    save_file(tensors, tmp_path / "w.safetensors")
    model = network(channels=3)
    model.set_prior([0.1, 0.01])
    before = start(model)
    report = load_weights(model, tmp_path / "w.safetensors")
    assert set(report.missing) == {"classifier.4.weight", "classifier.4.bias"}
    assert "classifier.4.bias: [21] where [2] is wanted" in report.skipped
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in report.missing else tensors[name])


def test_half_precision_weights_become_float(tmp_path):
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in imagenet().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    model = network(channels=3)
    load_weights(model, tmp_path / "w.safetensors")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(model.backbone.layer1[0].conv1.weight, tensors["layer1.0.conv1.weight"].float())


def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(tmp_path):
    torch.manual_seed(1)
    save_file({"visual.proj": torch.ones(3), "conv1.weight": torch.ones(64, 3, 7, 7)}, tmp_path / "w.safetensors")
    model = network()
    before = start(model)
    with pytest.raises(InputError, match="holds no tensor that fits a resnet18 of width 8"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "pickle"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pickle":
        torch.save(imagenet(), path)
    elif kind != "missing":
        path.write_bytes(b"hello, world" * (kind == "text"))
    message = "there is no such file" if kind == "missing" else "cannot be read as a safetensors file"
    with pytest.raises(InputError, match=message):
        load_weights(network(), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    tensors = imagenet()
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinite values in layer1\.0\.conv1\.weight"):
        load_weights(network(), tmp_path / "w.safetensors")


@pytest.fixture
def trained(store, tmp_path):
    """A run with final weights, and with a checkpoint of other ones."""
    run = make_run(tmp_path / "trained", store, rates=[1])
    torch.manual_seed(5)
    Checkpoint({"model": dict(network().state_dict()), "optimizer": {"w": torch.ones(1)}}).save(run.checkpoint_path)
    return run


@pytest.mark.parametrize("file", ["", "model.safetensors", "checkpoint.safetensors"])
def test_a_run_gives_all_that_it_learned(trained, file):
    path = weights_file(trained.path / file)
    assert path == trained.path / (file or "model.safetensors")
    model = network()
    report = load_weights(model, path)
    learned = Checkpoint.load(path).tensors["model"]
    assert_same_bits({name: model.state_dict()[name] for name in learned}, learned)
    assert set(model.state_dict()) == set(learned)
    assert (report.missing, report.skipped) == ((), ())


@pytest.mark.parametrize(
    ("organs", "head", "why"),
    [
        (("pancreas", "liver"), "sigmoid", "its channels are a sigmoid of liver, pancreas"),
        (("liver",), "softmax", "its channels are a sigmoid of liver, pancreas"),
        (("liver", "pancreas", "spleen"), "sigmoid", "its channels are a sigmoid of liver, pancreas"),
    ],
)
def test_the_channels_of_other_organs_are_not_taken(trained, organs, head, why):
    """Also where they would fit: a channel of the liver is no start for the pancreas."""
    model = Segmenter(ModelConfig(organs, "resnet18", width=8, rates=(1,), channels=1, head=head))
    before = start(model)
    report = load_weights(model, trained.model_path)
    assert [line.split(": ")[1] for line in report.skipped] == [why, why]
    last = [line.split(": ")[0] for line in report.skipped]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in last)
    learned = Checkpoint.load(trained.model_path).tensors["model"]
    others = [name for name in before if name not in last]
    assert_same_bits({n: model.state_dict()[n] for n in others}, {n: learned[n] for n in others})


def test_a_copy_of_a_runs_weights_gives_all_but_the_last_layer(trained, tmp_path):
    copy = shutil.copy(trained.model_path, tmp_path / "copy.safetensors")
    report = load_weights(network(), copy)
    assert {line.split(": ")[0] for line in report.skipped} == set(report.missing)
    assert all("no usable config.json beside the file" in line for line in report.skipped)
    assert len(report.skipped) == 2


def test_a_run_that_was_not_trained_gives_nothing(store, tmp_path):
    run = make_run(tmp_path / "run", store, trained=False)
    with pytest.raises(InputError, match=r"has no final weights to start from; finish it$"):
        weights_file(run.path)
    with pytest.raises(InputError, match=": not a run folder"):
        weights_file(tmp_path)
