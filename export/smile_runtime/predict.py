"""From a CT scan on disk to a label map on disk."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smile_runtime.errors import InputError
from smile_runtime.files import check_writable, refuse_overwrite, write_json
from smile_runtime.model import Model, ModelCard
from smile_runtime.nifti import check_suffix, read_image, write_labels
from smile_runtime.preprocessing import from_slices, slice_context, to_slices
from smile_runtime.progress import progress

_BATCH_PIXELS = 512 * 512  # an inference over less than this does not keep the cores busy


@dataclass(frozen=True)
class Prediction:
    """What was written for one scan.

    Attributes:
        path: The label map.
        shape: (X, Y, Z) of the scan and of the label map.
        volumes_ml: Organ -> volume, millilitres; 0.0 for an organ that was not found.
        seconds: Wall time from reading to writing.
    """

    path: Path
    shape: tuple[int, int, int]
    volumes_ml: dict[str, float]
    seconds: float


class Predictor:
    """Segments volumes with one model, loaded once.

    Attributes:
        model: The loaded model.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        threads: int | None = None,
        provider: str = "cpu",
        *,
        batch: int | None = None,
    ) -> None:
        """Load a model.

        Args:
            model_path: An ``.onnx`` file exported by smile-fast.
            threads: CPU threads; all cores if None.
            provider: ``cpu`` or ``cuda``.
            batch: Slices per inference; if None, as many as one slice of 512 x 512 has pixels, at least 1.

        Raises:
            InputError: The model or the provider cannot be used, or a number is below 1.
        """
        if batch is not None and batch < 1:
            raise InputError(f"a batch of {batch} slices was asked for: at least 1 is wanted")
        self.model = Model(model_path, threads=threads, provider=provider)
        self._batch = batch

    @property
    def card(self) -> ModelCard:
        """What the model says about itself."""
        return self.model.card

    def predict(
        self,
        slices: npt.NDArray[np.int16],  # [D, H, W]
        *,
        show_progress: bool = False,
    ) -> npt.NDArray[np.uint8]:
        """Segment a volume that is already in slices order.

        Args:
            slices: [D, H, W] int16 HU, as `smile_runtime.preprocessing.to_slices` gives it.
            show_progress: Whether to show how far it is on standard error.

        Returns:
            [D, H, W] uint8: 0 or organ number.

        Raises:
            InputError: The model fails on these slices.
            ValueError: ``slices`` is not [D, H, W] int16.
        """
        if slices.ndim != 3 or slices.dtype != np.int16:
            raise ValueError(f"slices is {slices.dtype} {slices.shape}, int16 [D, H, W] is wanted")
        depth, height, width = slices.shape
        batch = self._batch or max(1, _BATCH_PIXELS // max(1, height * width))
        labels = np.zeros(slices.shape, np.uint8)
        starts = range(0, depth, batch)
        for start in progress(starts, total=len(starts), label="predict") if show_progress else starts:
            index = range(start, min(start + batch, depth))
            labels[index.start : index.stop] = self.model.labels(
                slice_context(slices, index, self.card.channels)  # [N, C, H, W]
            )
        return labels

    def predict_file(
        self,
        scan: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        organs_json: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> Prediction:
        """Segment a scan; the label map lies on exactly the scan's own grid.

        Args:
            scan: A CT scan, ``.nii`` or ``.nii.gz``, in any orientation.
            out: The label map to write, uint8, with the scan's shape, qform, sform and units.
            organs_json: Where to write what the label values mean, if wanted.
            show_progress: Whether to show how far it is on standard error.

        Returns:
            What was written.

        Raises:
            InputError: The scan cannot be used, the model fails on it, or an output cannot be written or would
                overwrite an input. No output is left half-written.
        """
        start = time.monotonic()
        self._check_outputs(scan, out, organs_json)
        volume = read_image(scan)
        slices, geometry = to_slices(volume.data, volume.affine)
        labels = self.predict(slices, show_progress=show_progress)
        write_labels(out, from_slices(labels, geometry), volume.affine, organs=self.card.organs, header=volume.header)
        if organs_json is not None:
            names = {"background": 0} | {organ: value for value, organ in enumerate(self.card.organs, 1)}
            write_json(organs_json, {"labels": names})
        millilitres = self._volumes(labels, float(abs(np.linalg.det(volume.affine[:3, :3]))))
        return Prediction(Path(out), geometry.shape, millilitres, time.monotonic() - start)

    def _check_outputs(
        self,
        scan: str | os.PathLike[str],
        out: str | os.PathLike[str],
        organs_json: str | os.PathLike[str] | None,
    ) -> None:
        check_suffix(out)
        refuse_overwrite(out, [scan, self.model.path])
        check_writable(out)
        if organs_json is not None:
            refuse_overwrite(organs_json, [scan, self.model.path, out])
            check_writable(organs_json)

    def _volumes(self, labels: npt.NDArray[np.uint8], voxel: float) -> dict[str, float]:
        """Organ -> millilitres, for voxels of ``voxel`` cubic millimetres."""
        counts = np.zeros(256, np.int64)
        for plane in labels:  # not all at once: bincount makes int64 of what it counts
            counts += np.bincount(plane.ravel(), minlength=256)
        return {organ: float(counts[value]) * voxel / 1000 for value, organ in enumerate(self.card.organs, 1)}
