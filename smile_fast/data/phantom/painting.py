"""From tissues to Hounsfield units: contrast phase, texture, partial volume, point spread, correlated noise."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from smile_fast.data.phantom.fields import Box, Field, Grid, cover, smooth_noise
from smile_fast.data.phantom.scanners import Scanner

ORGANS = (
    "liver",
    "pancreas",
    "stomach",
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "aorta",
    "inferior_vena_cava",
    "duodenum",
    "small_bowel",
    "colon",
    "esophagus",
)

# tissue: (HU without contrast, gain of a full portal phase, gain of a full arterial phase,
#          standard deviation between patients, texture within the organ). HU.
_TISSUES: dict[str, tuple[float, float, float, float, float]] = {
    "subcutaneous": (-104, 0, 0, 5, 6),
    "skin": (20, 4, 4, 8, 5),
    "visceral_fat": (-98, 2, 2, 6, 9),
    "muscle": (58, 32, 8, 14, 9),
    "cortical_bone": (420, 0, 0, 70, 40),
    "spongy_bone": (170, 15, 15, 35, 30),
    "disc": (80, 5, 5, 10, 8),
    "cord": (28, 4, 4, 5, 4),
    "table": (350, 0, 0, 200, 10),
    "strand": (40, 60, 40, 10, 10),
    "heart": (50, 50, 40, 8, 6),
    "blood": (42, 90, 120, 12, 4),
    "lung": (-830, 0, 0, 30, 25),
    "liver": (58, 40, 8, 22, 8),
    "hepatic_vessel": (42, 88, 15, 8, 3),
    "spleen": (54, 44, 30, 14, 6),
    "kidney": (36, 90, 100, 12, 6),
    "medulla": (32, 90, 30, 12, 6),
    "pancreas": (42, 46, 40, 10, 12),
    "aorta": (44, 90, 190, 12, 3),
    "inferior_vena_cava": (42, 88, 40, 12, 6),
    "bile": (8, 0, 0, 7, 3),
    "stomach_wall": (44, 40, 25, 9, 10),
    "stomach_content": (32, 0, 0, 24, 14),
    "bowel_wall": (44, 40, 35, 9, 10),
    "bowel_content": (38, 12, 8, 26, 20),
    "colon_content": (34, 0, 0, 30, 30),
    "gas": (-900, 0, 0, 30, 8),
}


class Canvas:
    """One case in the making: anatomy adds its tissues from the lowest to the last, and a scan ends it.

    Attributes:
        grid: the voxels.
        hu: [D, H, W] float32, as yet without blur and noise.
        labels: [D, H, W] uint8.
    """

    def __init__(
        self, rng: np.random.Generator, grid: Grid, organs: Sequence[str], scanner: Scanner | None = None
    ) -> None:
        """Draw the patient's contrast phase and the HU of every tissue.

        Args:
            rng: the case's generator.
            grid: the voxels.
            organs: the labelled organs, value 1 first; the others are painted without a label.
            scanner: of the case's source; None draws noise, blur and contrast for every case.
        """
        self.grid = grid
        self.scanner = scanner
        self.hu = np.full(grid.shape, -1000, np.float32)
        self.labels = np.zeros(grid.shape, np.uint8)
        self._values = {organ: value for value, organ in enumerate(organs, 1)}
        portal, arterial = rng.beta(1.2, 0.9), rng.beta(0.6, 2.0)
        if scanner is not None:  # a tenth of the usual differences between patients remains
            portal, arterial = 0.9 * scanner.portal + 0.1 * portal, 0.9 * scanner.arterial + 0.1 * arterial
        self._means = {
            tissue: base + late * portal + early * arterial + rng.normal(0, spread)
            for tissue, (base, late, early, spread, _) in _TISSUES.items()
        }
        # Two textures, so that neighbours do not share one.
        textures = [0.7 * smooth_noise(rng, grid, 45.0) + 0.7 * smooth_noise(rng, grid, 14.0) for _ in range(2)]
        self._textures = {tissue: textures[i % 2] for i, tissue in enumerate(_TISSUES)}

    def add(self, tissue: str, box: Box, mask: Field, organ: str = "") -> None:
        """Paint a tissue over what is already there.

        Args:
            tissue: key of the HU table.
            box: block of the grid.
            mask: share of each voxel that the tissue takes, [box] float32 in 0..1.
            organ: what its voxels are labelled with; "" for nothing.
        """
        hu, labels = self.hu[box], self.labels[box]
        value = np.float32(_TISSUES[tissue][4]) * self._textures[tissue][box] + np.float32(self._means[tissue])
        hu += mask * (value - hu)
        labels[mask > 0.5] = self._values.get(organ, 0)

    def fill(self, tissue: str, box: Box, wall: Field, thickness: float, organ: str, level: float) -> None:
        """Paint the content of a hollow organ: fluid or food, and air above its level.

        Args:
            tissue: prefix of the content's tissue.
            box: block of ``wall``.
            wall: distance to the outside of the organ, [box] mm.
            thickness: of the wall, mm.
            organ: label of the content.
            level: share of the lumen's depth, from the front, that holds air; none when negative.
        """
        lumen = wall + np.float32(thickness)
        edge = self.grid.spacing[2]
        self.add(f"{tissue}_content", box, cover(lumen, edge), organ)
        rows = np.nonzero((lumen < 0).any(axis=(0, 2)))[0]
        if level <= 0 or not len(rows):
            return
        y = self.grid.axes[1][box[1]]
        surface = y[rows[0]] + level * 0.6 * (y[rows[-1]] - y[rows[0]])
        air = np.maximum(lumen, y[None, :, None] - np.float32(surface))
        self.add("gas", box, cover(air, edge), organ)

    def scan(self, rng: np.random.Generator) -> NDArray[np.int16]:
        """Apply a scanner's point spread and noise.

        Returns:
            [D, H, W] int16 HU.

        Numerics: float32; the noise is white noise under a Gaussian, rescaled to 9..15 HU, or to the source's.
        """
        scanner = self.scanner
        spread = rng.uniform(0.5, 0.7) if scanner is None else scanner.blur * rng.uniform(0.95, 1.05)
        blur = (0.35, spread, spread)
        hu = ndimage.gaussian_filter(self.hu, blur, mode="nearest")
        noise = ndimage.gaussian_filter(rng.standard_normal(self.grid.shape, dtype=np.float32), (0.3, 0.55, 0.55))
        level = rng.uniform(9, 15) if scanner is None else scanner.noise * rng.uniform(0.9, 1.1)
        hu += np.float32(level) / noise.std() * noise
        if scanner is not None:
            hu += np.float32(scanner.offset)
        image: NDArray[np.int16] = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
        return image
