"""What becomes of one scan: while it is read and segmented, and when its label map is written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smile_runtime.io.nifti import Volume
from smile_runtime.predict.preview import Picture
from smile_runtime.volume.hounsfield import range_warning
from smile_runtime.volume.padding import Padding
from smile_runtime.volume.preprocessing import BodyBox, SliceGeometry


@dataclass(frozen=True)
class Prediction:
    """What was written for one scan.

    Attributes:
        path: The label map.
        shape: (X, Y, Z) of the scan and of the label map.
        volumes_ml: Organ -> volume, millilitres; 0.0 for an organ that was not found.
        seconds: Wall time of reading, inference and writing together.
        range_hu: The scan's lowest and highest value.
        times: The three, by name.
        box: Which part of the volume was computed.
        skipped_slices: Slices that were not, because they show no body.
        doubts: What has to be known of the scan's header, and of pixels unlike those of the training.
        padding: Which padding was read as air: its value and its voxels.
    """

    path: Path
    shape: tuple[int, int, int]
    volumes_ml: dict[str, float]
    seconds: float
    range_hu: tuple[int, int]
    times: dict[str, float] = field(default_factory=dict)
    box: dict[str, Any] = field(default_factory=dict)
    skipped_slices: int = 0
    doubts: tuple[str, ...] = ()
    padding: dict[str, int] | None = None

    @property
    def warning(self) -> str | None:
        """What its reader has to know: its doubts, that no body was found, that the voxels are hardly HU."""
        found = list(self.doubts)
        if self.box.get("slices") == 0:
            found.append("no body was found, so nothing was computed; if the scan shows one, use --no-crop")
        if (doubt := range_warning(self.range_hu)) is not None:
            found.append(doubt)
        return "; ".join(found) or None


@dataclass
class Scan:
    """A scan that was read, and what becomes of it.

    Attributes:
        volume: As its file has it; without its voxels once its labels are known.
        geometry: How its slices lie in the file.
        box: Which part of it is computed.
        sha256: Of the file, hexadecimal.
        range_hu: Its lowest and highest value.
        doubts: What has to be known of its header, and of pixels unlike those of the training.
        labels: [D, H, W] uint8 in slices order, once they are known.
        picture: The preview, if one is wanted.
        padding: What was found outside of the reconstruction circle and set to air.
        times: Step -> seconds.
    """

    volume: Volume
    geometry: SliceGeometry
    box: BodyBox
    sha256: str
    range_hu: tuple[int, int]
    doubts: tuple[str, ...]
    labels: npt.NDArray[np.uint8] | None = None
    picture: Picture | None = None
    padding: Padding | None = None
    times: dict[str, float] = field(default_factory=dict)
