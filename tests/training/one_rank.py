"""What every rank does for test_ranks_gradient.py: `python -m tests.training.one_rank STORE FOLDER METHOD ...`."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smile_fast.data.store import Store
from smile_fast.models import Segmenter
from smile_fast.training.batch_norm import SynchronisedBatchNorm2d
from smile_fast.training.batches import BatchSource
from smile_fast.training.config import TrainConfig
from smile_fast.training.launch import Launch
from smile_fast.training.objectives import loss_of_method
from smile_fast.training.process_group import ProcessGroup
from smile_fast.training.ranks import ALONE, Ranks
from smile_fast.training.step import Learner
from smile_fast.training.upload import Inputs
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import VOID

IMAGES = 9  # of a batch: no multiple of 2 or 4
METHODS: dict[str, dict[str, Any]] = {
    "smile": {},
    "naive": {"policy": "naive"},
    "channel-drop": {"policy": "channel-drop"},
    "baseline": {"method": "baseline"},
    "marginal": {"method": "marginal"},
    "frozen": {"batch_norm": "frozen"},
    "clipped": {"clip_norm": 0.01},
}


def config_of(store: Store, method: str) -> TrainConfig:
    tiny = {"backbone": "resnet18", "width": 8, "rates": [1], "crop_size": 32, "batch_size": IMAGES, "optimizer": "sgd"}
    config = TrainConfig.from_options({**tiny, **METHODS[method]})
    return config.of_cohort(store.organs, [store.cases[case].spacing for case in cases_of(store)])


def cases_of(store: Store) -> list[str]:
    return [case for case in store.cases if case.startswith("train")]


def gradient(
    store: Store, method: str, ranks: Ranks, world: int, *, exact: bool, known: bool = True, joined: bool = True
) -> dict[str, Tensor]:
    """Gradient, loss and buffers after a step on a batch of which rank 1 of `world` knows nothing.

    Args:
        exact: compute in float64.
        known: False for a batch of which no rank knows anything.
        joined: False for a loss that every rank divides by its own pairs.
    """
    torch.manual_seed(3)
    config = config_of(store, method)
    view = TrainingView(store, store.declarations(), cases_of(store), None, config.body)
    model = Segmenter(config.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # drops something else on every rank
        if isinstance(module, nn.BatchNorm2d):  # else frozen ones would do nothing
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    if exact:
        model.double()
        model.backbone.register_forward_pre_hook(lambda _, given: (given[0].double(),))
    learner = Learner(model, config, torch.device("cpu"), ranks=ranks)
    learner.model.train()
    batch = BatchSource.of(config, view, 0, ranks.share).batch(0)
    for image, number in enumerate(ranks.share.of(range(IMAGES))):
        if number % world == 1 or not known:
            batch.labels[image] = VOID
    inputs = Inputs.of(batch)
    changes = learner.prepare(5, 1e-3, 0, IMAGES, (inputs.hu.shape[2], inputs.hu.shape[3]))
    loss_of = loss_of_method(config, view, torch.device("cpu"), ranks if joined else ALONE)
    loss = learner.compute(loss_of, *inputs, changes)
    found = {f"gradient/{name}": parameter.grad for name, parameter in learner.model.named_parameters()}
    found |= {f"weight/{name}": tensor for name, tensor in learner.model.state_dict().items()}
    return {**found, "loss": loss.loss, "sums": loss.sums, "counts": loss.counts}


def normalised(norm: nn.BatchNorm2d, share: slice, kind: torch.dtype) -> dict[str, Tensor]:
    """Two passes through a BatchNorm: output and gradients for a share of the images, and the buffers."""
    generator = torch.Generator().manual_seed(0)
    norm.to(kind).train()
    x = (torch.randn(IMAGES, 5, 3, 4, generator=generator, dtype=torch.float64) * 3 + 40).to(kind)
    factors = torch.randn(IMAGES, 5, 3, 4, generator=generator, dtype=torch.float64).to(kind)
    for scale in (1.0, 2.0):
        norm.zero_grad()
        given = (x * scale)[share].clone().requires_grad_()
        y = norm(given)
        (y * factors[share]).sum().backward()
    grads = {"dx": given.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad}
    return {"y": y.detach(), **grads, **dict(norm.named_buffers())}


def plain_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 5))
        norm.bias.copy_(torch.linspace(0, 1, 5))
    return norm


def main(store_path: str, folder: str, *methods: str) -> None:
    store, launch = Store.open(Path(store_path)), Launch.of_environment()
    ranks = ProcessGroup(launch, "cpu", 60.0)
    found: dict[str, Any] = {}
    for method in methods:
        found[method] = gradient(store, method, ranks, ranks.world, exact=True)
    found["float32"] = gradient(store, "smile", ranks, ranks.world, exact=False)
    found["again"] = gradient(store, "smile", ranks, ranks.world, exact=False)
    found["nothing"] = gradient(store, methods[-1], ranks, ranks.world, exact=False, known=False)
    found["means"] = gradient(store, "smile", ranks, ranks.world, exact=True, joined=False)
    share = slice(ranks.rank, None, ranks.world)
    for kind in (torch.float32, torch.float64):
        norm = normalised(SynchronisedBatchNorm2d(plain_norm(), ranks), share, kind)
        for name in ("dweight", "dbias"):
            ranks.sum(norm[name])
        found[str(kind)] = norm
    torch.save(found, Path(folder) / f"{ranks.world}-{ranks.rank}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
