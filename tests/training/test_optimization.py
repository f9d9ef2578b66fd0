import copy

import pytest
import torch
from torch import nn

from smile_fast.training.config import TrainConfig
from smile_fast.training.optimization import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
    update_average,
)
from smile_fast.training.schedule import average_weight
from tests.tolerances import FLOAT32_AVERAGE
from tests.trainings import assert_same_bits


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def step(model, optimizer, seed):
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_only_weights_decay(name, kind):
    model = network()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.01, lr=0.5))
    assert isinstance(optimizer, kind)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"0.weight": 0.01, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.01, "3.bias": 0}
    assert {parameter: decay[id(p)] for parameter, p in model.named_parameters()} == expected
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    if name == "sgd":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_restored_optimizer_takes_the_same_steps(name):
    config = TrainConfig(optimizer=name, lr=0.01)
    model = network()
    optimizer = build_optimizer(model, config)
    assert optimizer_tensors(optimizer) == {}
    for seed in range(3):
        step(model, optimizer, seed)
    saved = {key: tensor.clone() for key, tensor in optimizer_tensors(optimizer).items()}
    assert len(saved) == {"adamw": 3, "sgd": 1}[name] * 6  # step and two moments, or momentum, of six parameters
    copy = network()
    copy.load_state_dict(model.state_dict())
    restored, fresh = build_optimizer(copy, config), network()
    fresh.load_state_dict(model.state_dict())
    forgetful = build_optimizer(fresh, config)
    restore_optimizer(restored, saved)
    assert_same_bits(optimizer_tensors(restored), saved)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(copy, restored, seed)
        step(fresh, forgetful, seed)
    assert_same_bits(copy.state_dict(), model.state_dict())
    assert not torch.equal(fresh[0].weight, model[0].weight)  # the moments do matter


def test_restored_moments_keep_their_learning_rate():
    """What the loop sets before each step is not part of the state."""
    model = network()
    optimizer = build_optimizer(model, TrainConfig(lr=0.01))
    step(model, optimizer, 0)
    other = build_optimizer(network(), TrainConfig(lr=0.5))
    restore_optimizer(other, optimizer_tensors(optimizer))
    assert {group["lr"] for group in other.param_groups} == {0.5}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_rate_on_the_device_is_read_by_the_step_that_follows(name):
    """The same as an optimizer that was built with each rate, bit for bit; and its state fits one without tensors."""
    config = TrainConfig(optimizer=name, lr=0.01)
    model, plain = network(), network()
    optimizer = build_optimizer(model, config, on_device=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    tensors: dict[str, torch.Tensor] = {}
    for seed, rate in enumerate((0.01, 0.5, 0.002)):
        set_learning_rate(optimizer, rate)
        step(model, optimizer, seed)
        other = build_optimizer(plain, TrainConfig(optimizer=name, lr=rate), on_device=True)
        restore_optimizer(other, tensors)
        step(plain, other, seed)
        tensors = {key: tensor.clone() for key, tensor in optimizer_tensors(other).items()}
    assert_same_bits(model.state_dict(), plain.state_dict())
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    on_host = build_optimizer(plain, config)
    restore_optimizer(on_host, tensors)
    assert_same_bits(optimizer_tensors(on_host), tensors)
    set_learning_rate(on_host, 0.25)
    assert {group["lr"] for group in on_host.param_groups} == {0.25}
    step(plain, on_host, 3)


@pytest.mark.parametrize("on_device", [False, True])
def test_the_average_forgets_its_start_and_then_decays(on_device):
    """Decay (1 + t) / (10 + t) until it reaches the given one."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = copy.deepcopy(model)
    expected = 1.0
    for t, value in enumerate([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0]):
        nn.init.constant_(model.weight, value)
        weight = average_weight(0.5, t)
        update_average(average, model, torch.tensor(weight) if on_device else weight)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
        assert average.weight.item() == pytest.approx(expected, **FLOAT32_AVERAGE)
    assert model.weight.item() == 29.0
    assert (1 + 9) / (10 + 9) > 0.5  # the last update used the given decay


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.0001])
def test_the_average_is_that_of_a_loop_over_all_tensors_bit_for_bit(decay):
    """One lerp a tensor with the weight in double precision: so runs have been averaged on the CPU all along."""
    model = network()
    average = copy.deepcopy(model)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, TrainConfig(lr=0.1))
    for t in range(12):
        step(model, optimizer, t)
        update_average(average, model, average_weight(decay, t))
        weight = 1 - min(decay, (1 + t) / (10 + t))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = torch.lerp(expected[name], tensor, weight)
            else:
                expected[name] = tensor.clone()
    assert_same_bits(average.state_dict(), expected)


@pytest.mark.parametrize("weight", [0.1, torch.tensor(0.1)], ids=["host", "device"])
def test_the_average_takes_in_the_statistics_of_batch_norm(weight):
    model = network()
    average = copy.deepcopy(model)
    model.train()
    model(torch.randn(4, 1, 8, 8) + 5)
    update_average(average, model, weight)
    torch.testing.assert_close(average[1].running_mean, 0.1 * model[1].running_mean)
    assert average[1].num_batches_tracked == 1  # a count is copied, not averaged
