"""Synthetic problems: label maps of organs as blobs, who annotated what, and logits of a network that half knows."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from smile_fast.supervision import Policy, State, build_tables
from smile_runtime.label_map import VOID

COVERED = 0.12  # share of an abdominal slice that a dozen organs cover
CONFIDENCE, NOISE = 4.0, 2.0  # a logit is normal around plus or minus CONFIDENCE


class Scene(NamedTuple):
    """What the losses get beside the logits."""

    truth: Tensor  # [B, *S] uint8, every organ
    labels: Tensor  # [B, *S] uint8, without the missing organs
    table: Tensor  # [B, 256, 2, words] int32
    missing: int  # (image, organ) pairs

    def to(self, device: str) -> "Scene":
        """The same on a device."""
        return Scene(self.truth.to(device), self.labels.to(device), self.table.to(device), self.missing)


def scene(batch: int, organs: int, size: tuple[int, ...], missing: float, content: str = "blobs") -> Scene:
    """Make label maps of which an exact share of the (image, organ) pairs is missing.

    Args:
        batch: B. organs: K. size: *S.
        missing: share of the pairs that are not drawn; their voxels are 0 in the label map.
        content: "blobs"; "noise", every voxel a random organ or none; "void", nothing supervised; "huge", the first
            organ everywhere.
    """
    random = np.random.default_rng(organs)
    pairs = np.zeros(batch * organs, dtype=bool)
    pairs[random.permutation(batch * organs)[: round(missing * batch * organs)]] = True
    hidden = pairs.reshape(batch, organs)
    if content == "blobs":
        truth = np.stack([blobs(size, organs, random) for _ in range(batch)])
    elif content == "noise":
        truth = random.integers(0, organs + 1, (batch, *size), dtype=np.uint8)
    elif content == "huge":
        truth = np.full((batch, *size), 1, dtype=np.uint8)
        hidden[:, 0] = False
    elif content == "void":
        truth = np.full((batch, *size), VOID, dtype=np.uint8)
    else:
        raise ValueError(f"content must be blobs, noise, huge or void, got {content!r}")
    labels = truth.copy()
    for image, organ in np.argwhere(hidden):
        labels[image][truth[image] == organ + 1] = 0
    states = [[State.MISSING if value else State.ANNOTATED for value in row] for row in hidden]
    table = build_tables(states, Policy.SMILE)
    return Scene(torch.from_numpy(truth), torch.from_numpy(labels), table, int(hidden.sum()))


def blobs(size: tuple[int, ...], organs: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one ellipsoid an organ, about COVERED of the volume in all; later ones lie over earlier ones."""
    dimensions = len(size)
    ball = math.pi if dimensions == 2 else 4 / 3 * math.pi
    radius = (COVERED / (organs * ball)) ** (1 / dimensions)  # of a cube of size 1
    labels = np.zeros(size, dtype=np.uint8)
    for organ in range(organs):
        centre = random.uniform(0.15, 0.85, dimensions)
        axes = radius * random.uniform(0.6, 1.4, dimensions)
        labels[ellipsoid(size, centre, axes) < 1] = organ + 1
    return labels


def ellipsoid(size: tuple[int, ...], centre: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Distance from a centre in units of the half-axes, squared: below 1 inside; coordinates are in 0..1."""
    distance = np.zeros(size, dtype=np.float32)
    for axis, length in enumerate(size):
        offset = ((np.arange(length) + 0.5) / length - centre[axis]) / axes[axis]
        shape = [1] * len(size)
        shape[axis] = length
        distance = distance + (offset**2).astype(np.float32).reshape(shape)
    return distance


def logits_of(truth: Tensor, organs: int, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Logits [B, K, *size] of a network that is right about most of the truth, whatever the truth's size."""
    generator = torch.Generator().manual_seed(organs)
    small = F.interpolate(truth[:, None].float(), size=size, mode="nearest")[:, 0]  # [B, *size]
    logits = torch.randn((len(truth), organs, *size), generator=generator) * NOISE
    for organ in range(organs):
        logits[:, organ] += torch.where(small == organ + 1, CONFIDENCE, -CONFIDENCE)
    return logits.to(dtype)


def smooth_logits(batch: int, organs: int, size: tuple[int, ...]) -> Tensor:
    """Logits [B, K, *size] of a sure network: positive inside of one blob an organ, far below zero elsewhere."""
    random = np.random.default_rng(organs)
    radius = math.sqrt(COVERED / (organs * math.pi))

    def channel() -> NDArray[np.float32]:
        centre, axes = random.uniform(0.15, 0.85, 2), radius * random.uniform(0.6, 1.4, 2)
        return np.clip(6 * (1 - ellipsoid(size, centre, axes)), -10, 10)

    channels = [channel() + random.normal(0, 0.1, size).astype(np.float32) for _ in range(batch * organs)]
    return torch.from_numpy(np.stack(channels).astype(np.float32)).view(batch, organs, *size)


def masks(of: Scene, organs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The peers' ready-made masks, in their own dtype: known and positive, [B, K, *S] each."""
    shape = (len(of.labels), organs, *of.labels.shape[1:])
    known, positive = (torch.empty(shape, dtype=dtype, device=of.labels.device) for _ in range(2))
    for image, labels in enumerate(of.labels):
        for organ in range(organs):
            bits = (of.table[image, :, :, organ // 32] >> organ % 32) & 1  # [256, 2] of every label value
            known[image, organ], positive[image, organ] = bits.to(dtype)[labels.long()].unbind(-1)
    return known, positive
