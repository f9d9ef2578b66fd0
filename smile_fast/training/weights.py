"""Starting weights from runs, or from converted ImageNet or COCO checkpoints (safetensors only)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.run import Run
from smile_fast.training.schedule import Position
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint gave and what it did not.

    Attributes:
        loaded: parameters that were taken over.
        missing: parameters that keep their random start.
        skipped: tensors of the file that do not fit, with the reason.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded, {len(self.missing)} left at their start"
        if self.skipped:
            shown = "; ".join(self.skipped[:5]) + ("; ..." if len(self.skipped) > 5 else "")
            text += f", {len(self.skipped)} of the file not used ({shown})"
        return text


def start_network(run: Run, view: TrainingView) -> Segmenter:
    """The network of a run before its first step: random weights by its seed, biases by how often organs are seen.

    Args:
        run: whose settings count.
        view: its training cases, human labels only.
    """
    torch.manual_seed(run.config.seed)
    model = Segmenter(run.config.model)
    model.set_prior(view.prior(missing_is_background=run.config.method == "baseline"))
    return model


def start_from(run: Run, path: Path) -> LoadReport:
    """Load start weights into the network of a new run, and write its first checkpoint: the training goes on from it.

    Args:
        run: a new run, which has no checkpoint yet.
        path: a run folder, a file in it, or a converted checkpoint.

    Raises:
        InputError: see `weights_file` and `load_weights`; or the folder cannot be written.
    """
    file = weights_file(path)
    model = start_network(run, run.view("train"))
    report = load_weights(model, file)
    tensors = {"model": dict(model.state_dict())}
    if run.config.ema:
        tensors["average"] = tensors["model"]
    run.record_weights(file)
    Checkpoint(tensors, vars(Position())).save(run.checkpoint_path)
    return report


def weights_file(path: Path) -> Path:
    """The file that a user means by a run folder: its final weights. A file is that file.

    Raises:
        InputError: if a folder is no run, or one that has not finished training.
    """
    if not path.is_dir():
        return path
    run = Run.open(path)
    if not run.model_path.exists():
        started = f", or name {run.checkpoint_path}" if run.checkpoint_path.exists() else ""
        raise InputError(f"{path}: the run has no final weights to start from; finish it{started}")
    return run.model_path


def load_weights(model: Segmenter, path: Path) -> LoadReport:
    """Copy every tensor that fits by name and shape.

    Of a run's model.safetensors or checkpoint.safetensors the last layer, which has a channel an organ, is taken only
    if config.json beside it names the same organs in the same order, and the same kind of head.

    Names are those of the common checkpoints: a bare ResNet (``layer1.0.conv1.weight``) or a whole DeepLab
    (``backbone.layer1.0.conv1.weight``, ``classifier.0.convs.0.0.weight``). An RGB first convolution is
    adapted to the number of slices: its filters are averaged over RGB and scaled so that a constant
    slice gives the same response.

    Raises:
        InputError: if the file is not safetensors, nothing in it fits, or a value is not finite.
    """
    tensors, foreign = _read(path, model)
    state = model.state_dict()
    loaded, skipped = [], []
    for name, tensor in tensors.items():
        if foreign and name.startswith(_last_layer(model)):
            skipped.append(f"{name}: {foreign}")
            continue
        target = name if name in state else f"backbone.{name}"
        if target not in state:
            skipped.append(f"{name}: no such parameter")
            continue
        fitting = _adapt_first_convolution(tensor, state[target]) if target == "backbone.conv1.weight" else tensor
        if fitting.shape != state[target].shape:
            skipped.append(f"{name}: {list(tensor.shape)} where {list(state[target].shape)} is wanted")
            continue
        if not torch.isfinite(fitting).all():
            raise InputError(f"{path}: holds NaN or infinite values in {name}; start from other weights")
        state[target] = fitting.to(state[target].dtype)
        loaded.append(target)
    if not loaded:
        raise InputError(
            f"{path}: holds no tensor that fits a {model.config.backbone} of width {model.config.width}; start from "
            "other weights, or train a network of their kind"
        )
    model.load_state_dict(state)
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    missing = sorted(set(state) - set(loaded) - counters)
    return LoadReport(tuple(loaded), tuple(missing), tuple(skipped))


def _read(path: Path, model: Segmenter) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and why its last layer cannot be taken, if it is a run's and cannot."""
    if not Checkpoint.is_one(path):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder; name a run, or a .safetensors file")
        try:
            return load_file(path), None
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as a safetensors file ({error}); convert it to one") from None
    tensors = Checkpoint.load(path).tensors.get("model", {})
    try:
        known = Run.open(path.parent).config.model
    except InputError:  # a copy somewhere else, or damaged
        return tensors, "there is no usable config.json beside the file to tell its organs"
    if (known.organs, known.head) == (model.config.organs, model.config.head):
        return tensors, None
    return tensors, f"its channels are a {known.head} of {', '.join(known.organs)}"


def _last_layer(model: Segmenter) -> str:
    """Prefix of the names of the layer that has a channel an organ."""
    return f"classifier.{len(model.classifier) - 1}."


def _adapt_first_convolution(
    weight: Tensor,  # [O, 3, 7, 7]
    wanted: Tensor,  # [O, C, 7, 7]
) -> Tensor:
    channels = wanted.shape[1]
    if weight.dim() != 4 or weight.shape[1] == channels or weight.shape[1] != 3:
        return weight
    mean = weight.mean(dim=1, keepdim=True)
    return torch.cat([mean] * channels, dim=1) * (3.0 / channels)
