"""Batched augmentation on the training device: mirror, affine, intensity."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.models.segmenter import AIR
from smile_fast.training.config import TrainConfig
from smile_runtime.label_map import VOID
from smile_runtime.sharding import WHOLE, Shard


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

    def draw(self, images: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:  # [N, 9] float32
        """The changes of a batch: a 2 x 3 matrix, contrast, brightness and noise of every image, on the host.

        Args:
            images: N.
            size: P and Q, pixels.
            generator: of the CPU.
        """
        return torch.cat([self._matrices(images, size, generator), self._intensities(images, generator)], dim=1)

    def __call__(
        self,
        hu: Tensor,  # [N, C, P, Q] int16
        labels: Tensor,  # [N, P, Q] uint8
        changes: Tensor,  # [N, 9]
        generator: torch.Generator | None,
        batch_size: int | None = None,
        share: Shard = WHOLE,
    ) -> tuple[Tensor, Tensor]:  # [N, C, P, Q] float32, [N, P, Q] uint8
        """Change a batch, or a share of one, on its device.

        Args:
            hu: the images.
            labels: their label maps.
            changes: what `draw` has drawn, on the same device.
            generator: of the device, for the noise; None for the device's own.
            batch_size: images of the whole batch, N if None. The noise of all of them is drawn, so that an image has
                the same one whoever else is in its share.
            share: which images of the batch these are.
        """
        images, _, *size = hu.shape
        matrices = changes[:, :6].contiguous().view(images, 2, 3)
        grid = F.affine_grid(matrices, [images, 1, *size], align_corners=False)
        # What comes from outside the patch is air and void: both are shifted to 0, the padding value.
        image = F.grid_sample(hu.float() - AIR, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        label = F.grid_sample(
            labels[:, None].float() - VOID, grid, mode="nearest", padding_mode="zeros", align_corners=False
        )
        contrast, brightness, deviation = changes[:, 6:].view(images, 3, 1, 1, 1).unbind(dim=1)
        middle = sum(self.window) / 2
        changed = (image + AIR - middle) * contrast + middle + brightness
        if self.noise > 0:
            whole = (batch_size or images, *hu.shape[1:])
            noise = torch.randn(whole, generator=generator, device=hu.device)[share.number - 1 :: share.count]
            changed = changed + noise * deviation
        return changed, (label[:, 0] + VOID).to(torch.uint8)

    def _matrices(self, images: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:  # [N, 6]
        draw = torch.rand((6, images), generator=generator)
        angle = (draw[0] * 2 - 1) * math.radians(self.rotate)
        zoom = 1 + (draw[1] * 2 - 1) * self.scale
        # In normalised coordinates both axes go from -1 to 1: a rotation of pixels needs their ratio.
        aspect = size[0] / size[1]
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        mirror = torch.where(draw[2] < self.flip, -1.0, 1.0)
        shift_x, shift_y = ((draw[3:5] * 2 - 1) * 2 * self.translate).unbind()
        top = [cosine * mirror, -sine * aspect, shift_x]
        bottom = [sine * mirror / aspect, cosine, shift_y]
        return torch.stack([*top, *bottom], dim=1)

    def _intensities(self, images: int, generator: torch.Generator) -> Tensor:  # [N, 3]
        low, high = self.window
        draw = torch.rand((3, images), generator=generator)
        contrast = 1 + (draw[0] * 2 - 1) * self.intensity
        brightness = (draw[1] * 2 - 1) * self.intensity * (high - low)
        return torch.stack([contrast, brightness, draw[2] * self.noise], dim=1)
