"""What people write around a network: nibabel, a loop over batches of slices or MONAI's sliding window, nibabel."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.comparison import Conditions
from bench.whole_volume.workloads import CHANNELS_LAST, COMPILED, EAGER, MONAI, Workload
from smile_fast.models import ModelConfig, Segmenter
from smile_runtime.volume.preprocessing import slice_context

Volume = NDArray[np.int16]  # [D, H, W]
Inferer = Callable[[Volume], NDArray[np.uint8]]
SLICES = {"cpu": 1, "cuda": 16}  # of 512 x 512 pixels at a time, as ours takes


@torch.no_grad()
def network(workload: Workload) -> Segmenter:
    """A random network that calls about half of the pixels something."""
    torch.manual_seed(0)
    organs = tuple(f"organ {number}" for number in range(workload.organs))
    model = Segmenter(ModelConfig(organs, workload.backbone, 16, width=workload.width)).eval()
    noise = torch.randint(-160, 240, (1, 1, 128, 128), dtype=torch.int16)
    model.classifier[-1].bias -= model(noise).transpose(0, 1).flatten(1).median(dim=1).values
    return model


def run_script(infer: Inferer, scan: Path, out: Path) -> None:
    """Read with nibabel, infer, write with nibabel."""
    image: Any = nib.load(scan)
    slices = np.ascontiguousarray(np.asarray(image.dataobj, dtype=np.int16).transpose(2, 1, 0))
    labels = infer(slices)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), image.affine), out)


@torch.inference_mode()
def loop(
    model: Segmenter,
    slices: Volume,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    half: bool = False,
) -> NDArray[np.uint8]:
    """A loop over batches of slices, on the model's device.

    Args:
        model: the network. slices: [D, H, W] HU.
        forward: runs the network; the model itself if None.
        layout: of the images. half: under autocast to float16.
    """
    forward = model if forward is None else forward
    device = next(model.parameters()).device
    labels, batch = np.empty(slices.shape, np.uint8), batch_of(slices, device.type)
    for first in range(0, len(slices), batch):
        context = slice_context(slices, range(len(slices))[first : first + batch], model.config.channels)
        hu = torch.from_numpy(context).to(device).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.float16, enabled=half):
            logits = forward(hu)
        labels[first : first + batch] = model.label_map(logits.float(), slices.shape[1:]).cpu().numpy()
    return labels


def batch_of(slices: Volume, device: str) -> int:
    """Slices at a time."""
    return max(1, SLICES[device] * 512 * 512 // max(1, slices[0].size))


def monai_inferer(model: Segmenter) -> Inferer | None:
    """MONAI's sliding window over whole slices; None where MONAI is not installed: it is no dependency of ours."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return None

    @torch.inference_mode()
    def infer(slices: Volume) -> NDArray[np.uint8]:
        size, batch = slices.shape[1:], batch_of(slices, "cpu")
        hu = torch.from_numpy(slices[:, None]).float()
        full = sliding_window_inference(hu, size, batch, lambda part: model.upsample(model(part), size), overlap=0.0)
        best, organ = full.max(dim=1)
        return torch.where(best > 0, organ + 1, 0).to(torch.uint8).numpy()

    return infer


def inferers(workload: Workload, model: Segmenter, conditions: Conditions) -> dict[str, Inferer]:
    """What people write by hand, by name: on a GPU in the workload's precision, and by torch.compile."""
    if not workload.by_hand:
        return {}
    if conditions.gpu:
        ours = partial(loop, model, half=workload.precision == "fp16")
        return {EAGER: ours, COMPILED: partial(ours, forward=conditions.compiled(model))}
    last = network(workload).to(memory_format=torch.channels_last)
    found: dict[str, Inferer] = {
        EAGER: partial(loop, model),
        CHANNELS_LAST: partial(loop, last, layout=torch.channels_last),
    }
    if (inferer := monai_inferer(last)) is not None:
        found[MONAI] = inferer
    return found
