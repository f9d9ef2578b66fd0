"""Batched augmentation on the training device: mirror, affine, intensity."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.models.segmenter import AIR
from smile_fast.training.config import TrainConfig
from smile_runtime.label_map import VOID


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a batch, the same for an image's slices and its label map.

    Args:
        flip: probability of a left-right mirror image.
        rotate: largest rotation, degrees. scale: largest relative change of size.
        translate: largest shift, share of the patch.
        intensity: largest relative change of contrast around the window's middle, and of brightness in
            shares of the window. noise: largest standard deviation of added Gaussian noise, HU.
        window: lowest and highest HU that the network can tell apart.
    """

    flip: float
    rotate: float
    scale: float
    translate: float
    intensity: float
    noise: float
    window: tuple[float, float]

    @classmethod
    def of(cls, config: TrainConfig) -> "Augmentation":
        """The augmentation that a run's settings describe."""
        changes = {field.name: getattr(config, field.name) for field in fields(cls) if field.name != "window"}
        return cls(**changes, window=config.model.window)

    def __call__(
        self,
        hu: Tensor,  # [N, C, P, Q] int16
        labels: Tensor,  # [N, P, Q] uint8
        seed: int,
    ) -> tuple[Tensor, Tensor]:  # [N, C, P, Q] float32, [N, P, Q] uint8
        """Change a batch; the same seed changes it in the same way (per device type)."""
        generator = torch.Generator(device=hu.device).manual_seed(seed)
        grid = self._grid(hu.shape[0], hu.shape[-2:], generator)
        # What comes from outside the patch is air and void: both are shifted to 0, the padding value.
        image = F.grid_sample(hu.float() - AIR, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        label = F.grid_sample(
            labels[:, None].float() - VOID, grid, mode="nearest", padding_mode="zeros", align_corners=False
        )
        return self._intensity(image + AIR, generator), (label[:, 0] + VOID).to(torch.uint8)

    def _grid(self, images: int, size: torch.Size, generator: torch.Generator) -> Tensor:  # [N, P, Q, 2]
        draw = torch.rand((6, images), generator=generator, device=generator.device)
        angle = (draw[0] * 2 - 1) * math.radians(self.rotate)
        zoom = 1 + (draw[1] * 2 - 1) * self.scale
        # In normalised coordinates both axes go from -1 to 1: a rotation of pixels needs their ratio.
        aspect = size[0] / size[1]
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        mirror = torch.where(draw[2] < self.flip, -1.0, 1.0)
        shift_x, shift_y = ((draw[3:5] * 2 - 1) * 2 * self.translate).unbind()
        top = torch.stack([cosine * mirror, -sine * aspect, shift_x], dim=-1)
        bottom = torch.stack([sine * mirror / aspect, cosine, shift_y], dim=-1)
        return F.affine_grid(torch.stack([top, bottom], dim=1), [images, 1, *size], align_corners=False)

    def _intensity(self, hu: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self.window
        draw = torch.rand((3, hu.shape[0], 1, 1, 1), generator=generator, device=hu.device)
        contrast = 1 + (draw[0] * 2 - 1) * self.intensity
        brightness = (draw[1] * 2 - 1) * self.intensity * (high - low)
        middle = (low + high) / 2
        changed = (hu - middle) * contrast + middle + brightness
        if self.noise == 0:
            return changed
        normal = torch.randn(hu.shape, generator=generator, device=hu.device)
        return changed + normal * (draw[2] * self.noise)
