"""BatchNorms that a training puts in the place of plain ones, by one process."""

import copy

import pytest
import torch

from smile_fast.models import Segmenter
from smile_fast.models.config import ModelConfig
from smile_fast.training.batch_norm import FrozenBatchNorm2d, SynchronisedBatchNorm2d, set_batch_norm
from smile_fast.training.ranks import ALONE, Ranks
from tests.tolerances import LOGITS_OF_A_BATCH, REORDERED_CONVOLUTION


class Two(Ranks):
    """Two ranks that have the same images: every sum is twice one's own."""

    world = 2

    def sum(self, tensor):
        return tensor.mul_(2)


@pytest.fixture
def model():
    return Segmenter(ModelConfig(organs=("liver",), backbone="resnet18", width=8, rates=(1,)))


def test_one_process_keeps_the_plain_ones(model):
    before = list(map(type, model.modules()))
    set_batch_norm(model, "synchronised", ALONE)
    assert list(map(type, model.modules())) == before


@pytest.mark.parametrize(
    ("kind", "ranks"), [("synchronised", Two()), ("frozen", ALONE)], ids=["synchronised", "frozen"]
)
def test_names_and_tensors_stay(model, kind, ranks):
    before, parameters = model.state_dict(), list(model.parameters())
    plain = sum(type(module) is torch.nn.BatchNorm2d for module in model.modules())
    set_batch_norm(model, kind, ranks)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in before.items())
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    own = (FrozenBatchNorm2d, SynchronisedBatchNorm2d)
    assert sum(isinstance(module, own) for module in model.modules()) == plain > 0


def test_frozen_ones_stand_still_in_training(model):
    set_batch_norm(model, "frozen", ALONE)
    model.eval().train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(torch.randn(2, 1, 32, 32) * 100).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    assert model.backbone.bn1.weight.grad.abs().sum() > 0


def test_synchronised_ones_are_the_plain_ones_on_twice_the_images(model):
    """And in evaluation they are the plain ones to the bit."""
    plain, images = copy.deepcopy(model).train(), torch.randn(2, 1, 32, 32) * 100
    for network in (plain, model):
        network.classifier[0].project[-1].p = 0.0  # the dropout
    set_batch_norm(model, "synchronised", Two())
    torch.testing.assert_close(model.train()(images), plain(torch.cat([images, images]))[:2], **LOGITS_OF_A_BATCH)
    for (name, found), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected, **REORDERED_CONVOLUTION, msg=name)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("mean", [1.0, 10.0])
def test_in_bfloat16_its_gradient_is_as_good_as_that_of_a_plain_one(mean):
    """Against float64: its terms are of one size and cancel each other, so they must not be rounded one by one."""
    torch.manual_seed(0)
    x = (torch.randn(8, 16, 16, 16) + mean).bfloat16()
    factors = (torch.randn(x.shape) + 0.5 * (x.float() - mean) + 0.5).bfloat16()

    def gradient(norm, kind):
        given = x.to(kind).clone().requires_grad_()
        norm.train()(given).backward(factors.to(kind))
        return given.grad.double()

    exact = gradient(torch.nn.BatchNorm2d(16).double(), torch.float64)
    plain = gradient(torch.nn.BatchNorm2d(16), torch.bfloat16)
    found = gradient(SynchronisedBatchNorm2d(torch.nn.BatchNorm2d(16), Two()), torch.bfloat16)
    assert (found - exact).norm() <= 1.5 * (plain - exact).norm()
