"""Small networks that are worth exporting: they know what they see, so that few voxels hang in the balance."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from smile_fast.data.store import Store
from smile_fast.models import ModelConfig, Segmenter
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.run import Run
from smile_runtime.volume.preprocessing import slice_context
from tests.runs import ORGANS, SHAPE, ct, make_run, truth

Array = NDArray[np.generic]


def random_hu(shape: tuple[int, int, int], channels: int, seed: int = 0) -> NDArray[np.int16]:
    batch, height, width = shape
    return np.random.default_rng(seed).integers(-1024, 1500, (batch, channels, height, width)).astype(np.int16)


def torch_answer(model: Segmenter, hu: NDArray[np.int16]) -> tuple[Array, Array]:
    """Labels and probabilities, as the training side computes them."""
    size = (hu.shape[2], hu.shape[3])
    with torch.inference_mode():
        logits = model(torch.from_numpy(hu))
        return model.label_map(logits, size).numpy(), model.probabilities(logits, size).numpy()


@torch.no_grad()
def shake_batchnorms(model: Segmenter) -> None:
    """Give the BatchNorms statistics that a training could have left: without them folding changes nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.1, 0.1),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)


@torch.no_grad()
def fit_classifier(model: Segmenter, hu: NDArray[np.int16], labels: NDArray[np.uint8]) -> None:
    """Fit the last layer to labels [N, H, W] by ridge regression: a training of some milliseconds."""
    seen: list[torch.Tensor] = []
    hook = model.classifier[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    logits = model(torch.from_numpy(hu))
    hook.remove()
    features = F.pad(seen[0], (0, 0, 0, 0, 0, 1), value=1.0).transpose(0, 1).flatten(1).double()  # [F + 1, n h w]
    channels = [torch.from_numpy(labels == value).double() for value in range(1, len(model.config.organs) + 1)]
    if model.config.head == "softmax":
        channels.insert(0, torch.from_numpy(labels == 0).double())
    shares = F.adaptive_avg_pool2d(torch.stack(channels, dim=1), (logits.shape[2], logits.shape[3]))
    targets = (12 * shares - 6).transpose(0, 1).flatten(1)  # [M, n h w], logits of -6 to 6
    gram = features @ features.T
    weights = torch.linalg.solve(gram + 1e-7 * gram.trace() / len(gram) * torch.eye(len(gram)), features @ targets.T).T
    last = model.classifier[-1]
    last.weight.copy_(weights[:, :-1, None, None])
    last.bias.copy_(weights[:, -1])


def tiny_network(head: str, **changes: object) -> Segmenter:
    """A DeepLab head on one convolution: the exporter's time grows with the layers."""
    torch.manual_seed(1)
    model = Segmenter(ModelConfig(ORGANS, "resnet18", 8, head=head, width=8, rates=(2,), **changes))
    outputs = model.backbone.out_channels
    model.backbone = torch.nn.Sequential(torch.nn.Conv2d(1, outputs, 9, stride=8, padding=4), torch.nn.ReLU())
    shake_batchnorms(model)
    model.eval()
    fit_classifier(model, ct()[:, None], truth())
    return model


def make_decisive_run(path: Path, store: Store, **settings: object) -> Run:
    """Make a run whose network finds the organs of `tests.runs.ct`, its BatchNorms far from the identity."""
    run = make_run(path, store, **settings)
    model = run.load_model()
    shake_batchnorms(model)
    hu = slice_context(ct(), range(SHAPE[0]), model.config.channels)
    fit_classifier(model, hu, truth())
    Checkpoint({"model": dict(model.state_dict())}).save(run.model_path)
    return run
