"""A whole volume, HU on disk to labels on disk, against the bare session and against what people write by hand.

Weights are random: how long a convolution takes does not depend on them.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.interleaved import Contest, Contestant
from smile_fast.export.graph import fold_batchnorm, to_onnx, without_probabilities
from smile_fast.export.run import serialize
from smile_fast.models import ModelConfig, Segmenter
from smile_runtime.model import ModelCard
from smile_runtime.predict import Predictor

OURS, SESSION = "smile-predict", "bare session"
EAGER, CHANNELS_LAST, MONAI = "torch eager", "torch eager, channels_last", "MONAI sliding window"
DIFFERING = 1e-3  # share of voxels: random weights leave many near ties, which kernels of two libraries may break
_ROOT = Path(__file__).parents[1]
Volume = NDArray[np.int16]


@dataclass(frozen=True)
class Workload:
    """Slices of one volume through one network, in 2D.

    Attributes:
        backbone: at output stride 16. source: "thorax", a real CT, or "phantom".
        slices: how many, from the middle. organs: K.
    """

    backbone: str
    source: str = "thorax"
    slices: int = 16
    organs: int = 3


WORKLOADS = {
    "thorax-resnet50": Workload("resnet50", slices=2),
    "thorax-resnet18": Workload("resnet18", slices=6),
    "phantom-resnet18": Workload("resnet18", "phantom"),
    "thorax-whole-resnet50": Workload("resnet50", slices=150),
    "thorax-whole-resnet18": Workload("resnet18", slices=150),
}
SHORT = tuple(name for name in WORKLOADS if "whole" not in name)
SMOKE_WORKLOAD = Workload("resnet18", "phantom", 2)


def data_folder() -> Path:
    """The folder of real CT data: $SMILE_FAST_DATA, or ../shared/data seen from the repository."""
    return Path(os.environ.get("SMILE_FAST_DATA", _ROOT.parent / "shared" / "data"))


def write_scan(workload: Workload, path: Path) -> None:
    """Write the workload's slices as a scan of its own; skips the benchmark if the real CT is not there."""
    if workload.source == "phantom":
        image = nib.Nifti1Image(phantom(workload.slices), np.diag([-1.5, -1.5, 3.0, 1.0]))
    else:
        file = data_folder() / "ct_thorax_512" / "ct.nii.gz"
        if not file.is_file():
            pytest.skip(f"no real CT at {file} (set SMILE_FAST_DATA)")
        whole: Any = nib.load(file)
        first = (whole.shape[2] - workload.slices) // 2
        image = whole.slicer[:, :, first : first + workload.slices]
    nib.save(image, path)


def phantom(slices: int, size: int = 256) -> Volume:  # [X, Y, Z]
    """An ellipse of noisy soft tissue in air that fills a third of the plane."""
    rows, columns = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = (rows / 0.6) ** 2 + (columns / 0.75) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 12, (size, size, slices))
    return (np.where(body, 40, -1000)[..., None] + noise).round().astype(np.int16)


@torch.no_grad()
def network(workload: Workload) -> Segmenter:
    """A random network that calls about half of the pixels something."""
    torch.manual_seed(0)
    organs = tuple(f"organ {number}" for number in range(workload.organs))
    model = Segmenter(ModelConfig(organs, workload.backbone, 16)).eval()
    noise = torch.randint(-160, 240, (1, 1, 128, 128), dtype=torch.int16)
    model.classifier[-1].bias -= model(noise).transpose(0, 1).flatten(1).median(dim=1).values
    return model


def write_model(model: Segmenter, path: Path) -> None:
    """Export a network without a run: nothing is certified but by the benchmark's own check."""
    config = model.config
    card = ModelCard(config.organs, config.channels, config.window, config.head)
    path.write_bytes(serialize(without_probabilities(to_onnx(fold_batchnorm(model))), card))


class RecordedSession:
    """Stands in for a predictor's session and keeps what it is given: the work that no pipeline can avoid."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.feeds: list[tuple[list[str], dict[str, NDArray[np.int16]]]] = []

    def run(self, outputs: list[str], feed: dict[str, NDArray[np.int16]]) -> Any:
        """Run and remember."""
        self.feeds.append((outputs, {name: array.copy() for name, array in feed.items()}))
        return self.session.run(outputs, feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def again(self) -> None:
        """Run what was remembered."""
        for outputs, feed in self.feeds:
            self.session.run(outputs, feed)


def record(predictor: Predictor, scan: Path, out: Path) -> RecordedSession:
    """The session of a predictor with everything that one scan makes it compute."""
    recorded = RecordedSession(predictor.model._session)
    predictor.model._session = recorded
    predictor.predict_file(scan, out)
    predictor.model._session = recorded.session
    assert recorded.feeds, "the predictor did not use its session"
    return recorded


def by_hand(
    infer: Callable[[NDArray[np.int16]], NDArray[np.uint8]],  # [D, H, W] to [D, H, W]
    scan: Path,
    out: Path,
) -> None:
    """What a person writes around a network: read with nibabel, infer, write with nibabel."""
    image: Any = nib.load(scan)
    slices = np.ascontiguousarray(np.asarray(image.dataobj, dtype=np.int16).transpose(2, 1, 0))
    labels = infer(slices)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), image.affine), out)


@torch.inference_mode()
def eager(model: Segmenter, layout: torch.memory_format, batch: int, slices: Volume) -> NDArray[np.uint8]:
    """A loop over batches of slices."""
    labels = np.empty(slices.shape, np.uint8)
    for first in range(0, len(slices), batch):
        hu = torch.from_numpy(slices[first : first + batch, None]).contiguous(memory_format=layout)
        labels[first : first + batch] = model.label_map(model(hu), slices.shape[1:]).numpy()
    return labels


def monai_inferer(model: Segmenter, batch: int) -> Callable[[Volume], NDArray[np.uint8]] | None:
    """MONAI's sliding window over whole slices; None where MONAI is not installed: it is no dependency of ours."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return None

    @torch.inference_mode()
    def infer(slices: Volume) -> NDArray[np.uint8]:
        size = slices.shape[1:]
        hu = torch.from_numpy(slices[:, None]).float()
        full = sliding_window_inference(hu, size, batch, lambda part: model.upsample(model(part), size), overlap=0.0)
        best, organ = full.max(dim=1)
        return torch.where(best > 0, organ + 1, 0).to(torch.uint8).numpy()

    return infer


def contest(workload: Workload, folder: Path) -> Contest:
    """Bring ours and the peers together; all use as many threads as torch."""
    scan, file, out = folder / "scan.nii.gz", folder / "model.onnx", folder / "labels.nii.gz"
    write_scan(workload, scan)
    model = network(workload)
    write_model(model, file)
    predictor = Predictor(file, threads=torch.get_num_threads())
    session = record(predictor, scan, out)
    size = np.asarray(nib.load(scan).dataobj).shape
    batch = max(1, 512 * 512 // (size[0] * size[1]))
    last = network(workload).to(memory_format=torch.channels_last)
    peers = {
        EAGER: partial(eager, model, torch.contiguous_format, batch),
        CHANNELS_LAST: partial(eager, last, torch.channels_last, batch),
    }
    if (inferer := monai_inferer(last, batch)) is not None:
        peers[MONAI] = inferer
    written = {name: folder / f"peer{number}.nii.gz" for number, name in enumerate(peers)}
    ours = Contestant(OURS, lambda: predictor.predict_file(scan, out))
    contestants = [Contestant(name, partial(by_hand, infer, scan, written[name])) for name, infer in peers.items()]

    def check() -> dict[str, float]:
        ours.run()
        found = np.asarray(nib.load(out).dataobj)
        differing = {}
        for peer in contestants:
            peer.run()
            other = np.asarray(nib.load(written[peer.name]).dataobj)
            differing[peer.name] = float((other != found).mean())
            assert differing[peer.name] <= DIFFERING, f"{peer.name}: {differing[peer.name]:.2%} of the voxels differ"
        return {"share of differing voxels": max(differing.values())}

    pixels = sum(feed["hu"].shape[0] * feed["hu"].shape[2] * feed["hu"].shape[3] for _, feed in session.feeds)
    facts = {
        "voxels": int(np.prod(size)),
        "computed pixels": pixels,
        "pixels / computed pixels": float(np.prod(size) / pixels),
        "MONAI": "measured" if inferer is not None else "not installed",
        "labels": list(_shares(out, workload.organs)),
    }
    return Contest([ours], [Contestant(SESSION, session.again), *contestants], check, facts)


def _shares(path: Path, organs: int) -> Iterator[float]:
    labels = np.asarray(nib.load(path).dataobj)
    return (round(float((labels == value).mean()), 3) for value in range(organs + 1))
