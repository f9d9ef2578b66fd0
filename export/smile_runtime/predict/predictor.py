"""From a CT scan on disk to a label map on disk."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smile_runtime import __version__
from smile_runtime.errors import InputError
from smile_runtime.io.buffers import zeros
from smile_runtime.io.files import check_results, check_writable, parse_json, sha256
from smile_runtime.io.nifti import check_suffix, read_image, read_note, refuse_replacing_scan, write_labels
from smile_runtime.model.exported import Model, ModelCard
from smile_runtime.predict.batches import label_slices
from smile_runtime.predict.prediction import Prediction, Scan
from smile_runtime.predict.preview import fingerprint, picture_path, preview, remove_other, write_png
from smile_runtime.progress import Progress
from smile_runtime.volume.components import chosen_values, keep_largest_components
from smile_runtime.volume.hounsfield import range_hu
from smile_runtime.volume.organ_volumes import volumes_ml
from smile_runtime.volume.padding import padding_to_air
from smile_runtime.volume.preprocessing import (
    BodyBox,
    BodyRule,
    body_box,
    from_slices,
    slice_geometry,
    slices_view,
    whole_box,
)


class Predictor:
    """Segments volumes with one model, loaded once.

    Attributes:
        model: The loaded model.
        body: By which rule the air is left out; None leaves nothing out.
        threads: CPU threads that were asked for; None for the default.
        provider: Where it computes.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        threads: int | None = None,
        provider: str = "cpu",
        *,
        batch: int | None = None,
        crop: bool = True,
        largest_component: str | None = None,
    ) -> None:
        """Load a model.

        Args:
            model_path: An ``.onnx`` file exported by smile-fast.
            threads: CPU threads; `smile_runtime.threads.default_threads` if None.
            provider: ``cpu``, ``cuda`` or ``tensorrt``.
            batch: Slices per inference; if None, as many as one slice of 512 x 512 has pixels (16 such slices on a
                GPU) and as 4 GiB hold with this model's organs, at least 1. Halved while memory is short.
            crop: Whether to leave out the air, where the model's card says how.
            largest_component: Organs of which only the largest connected component is kept: ``all``, or names with
                commas between them; needs scipy.

        Raises:
            InputError: The model or the provider cannot be used, a number is below 1, or an organ is unknown.
        """
        if batch is not None and batch < 1:
            raise InputError(f"batch {batch}: too few slices; give at least 1")
        self.model = Model(model_path, threads=threads, provider=provider)
        self.body: BodyRule | None = self.card.body if crop else None
        self.threads, self.provider = threads, provider
        self._batch = batch
        self._cleaned = chosen_values(largest_component, self.card.organs)

    @property
    def card(self) -> ModelCard:
        """What the model says about itself."""
        return self.model.card

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides which labels a scan gets; kept in every label map and in the report."""
        return {
            "smile_runtime": __version__,
            "model_sha256": self.model.sha256,
            "provider": self.provider,
            "body": None if self.body is None else vars(self.body),
            "largest_component": [self.card.organs[value - 1] for value in self._cleaned],
        }

    def predict(
        self,
        slices: npt.NDArray[np.int16],  # [D, H, W]
        *,
        box: BodyBox | None = None,
        pixel_spacing: tuple[float, float] | None = None,
        show_progress: bool = False,
        advance: Callable[[float], None] | None = None,
        out: npt.NDArray[np.uint8] | None = None,  # [D, H, W]
    ) -> npt.NDArray[np.uint8]:
        """Segment a volume that is already in slices order.

        Args:
            slices: [D, H, W] int16 HU, as `smile_runtime.volume.preprocessing.to_slices` gives it; any strides.
            box: What to compute of it, as `smile_runtime.volume.preprocessing.body_box` gives it; everything if None.
            pixel_spacing: (y, x) of the slices, mm; None if their pixels are the model's.
            show_progress: Whether to show how far it is on standard error.
            advance: Called with the share that is done, 0 to 1.
            out: Where the labels go, all 0; a new array if None.

        Returns:
            [D, H, W] uint8: 0 or organ number; 0 outside of the box.

        Raises:
            InputError: The model fails on these slices.
            ValueError: ``slices`` is not [D, H, W] int16.
        """
        if slices.ndim != 3 or slices.dtype != np.int16:
            raise ValueError(f"slices is {slices.dtype} {slices.shape}, int16 [D, H, W] is wanted")
        box = whole_box(slices.shape) if box is None else box
        labels = zeros(slices.shape, np.uint8) if out is None else out  # what is not written takes no memory
        bar = Progress(len(box.slices), "predict") if show_progress else None
        try:
            for done in label_slices(self.model, slices, box, labels, self._batch, self.provider, pixel_spacing):
                if bar is not None:
                    bar.advance(done)
                if advance is not None:
                    advance(done / len(box.slices))
        finally:
            if bar is not None:
                bar.close()
        return labels

    def predict_file(
        self,
        scan: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        preview_png: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> Prediction:
        """Segment a scan; the label map lies on exactly the scan's own grid.

        Args:
            scan: A CT scan, ``.nii`` or ``.nii.gz``, in any orientation.
            out: The label map to write, uint8, with the scan's shape, qform, sform and units.
            preview_png: Where to write a picture, if wanted.
            show_progress: Whether to show how far it is on standard error.

        Returns:
            What was written.

        Raises:
            InputError: The scan cannot be used, the model fails on it, or an output cannot be written or would
                overwrite an input. No output is left half-written.
        """
        check_outputs([scan, self.model.path], out, preview_png)
        loaded = self.load(scan)
        self.segment(loaded, picture=preview_png is not None, show_progress=show_progress)
        return self.save(loaded, out, preview_png=preview_png)

    def load(self, scan: str | os.PathLike[str]) -> Scan:
        """Read a scan and find the body in it: 2 bytes a voxel.

        Raises:
            InputError: The scan cannot be used, or its voxels cannot be Hounsfield units.
        """
        start = time.monotonic()
        volume = read_image(scan)
        geometry = slice_geometry(volume.affine, volume.data.shape)
        slices = slices_view(volume.data, geometry)
        padding = padding_to_air(slices)
        values = range_hu(volume, padding)
        box = body_box(slices, geometry.spacing, self.body)
        unlike = self.card.pixels.warnings(geometry.spacing, self.card.channels) if self.card.pixels else []
        doubts = (*volume.warnings, *unlike)
        times = {"read": time.monotonic() - start}
        return Scan(volume, geometry, box, sha256(scan), values, doubts, padding=padding, times=times)

    def segment(
        self,
        scan: Scan,
        *,
        picture: bool = False,
        show_progress: bool = False,
        advance: Callable[[float], None] | None = None,
    ) -> None:
        """Compute a scan's labels, 1 byte a voxel, and let go of its voxels.

        Args:
            scan: What `load` returned; changed.
            picture: Whether a preview is wanted.
            show_progress: See `predict`.
            advance: See `predict`.

        Raises:
            InputError: The model fails on the scan, or it does not fit into memory.
        """
        start = time.monotonic()
        slices = slices_view(scan.volume.data, scan.geometry)
        try:
            # As the file will have them, so that nothing is turned when they are written.
            labels = slices_view(zeros(scan.geometry.shape, np.uint8, order="F"), scan.geometry)
            self.predict(
                slices,
                box=scan.box,
                pixel_spacing=scan.geometry.spacing[1:],
                show_progress=show_progress,
                advance=advance,
                out=labels,
            )
            keep_largest_components(labels, self._cleaned)
        except MemoryError as error:
            raise InputError(f"{scan.volume.path}: does not fit into this machine's memory; free some") from error
        if picture:
            scan.picture = preview(slices, labels, scan.geometry.spacing, self.card.window)
        scan.labels = labels
        scan.volume = replace(scan.volume, data=np.empty((0, 0, 0), np.int16))
        scan.times["inference"] = time.monotonic() - start

    def save(
        self,
        scan: Scan,
        out: str | os.PathLike[str],
        *,
        preview_png: str | os.PathLike[str] | None = None,
    ) -> Prediction:
        """Write what `segment` found.

        A picture never lies beside other labels than it shows: that of other labels goes first, the new one comes last.

        Raises:
            InputError: A file cannot be written.
        """
        start = time.monotonic()
        assert scan.labels is not None
        volume, organs, box = scan.volume, self.card.organs, scan.box
        millilitres = volumes_ml(scan.labels, organs, float(abs(np.linalg.det(volume.affine[:3, :3]))))
        made_from = {"sha256": scan.sha256, "shape": list(scan.geometry.shape)}
        facts = {"scan": made_from, "volumes_ml": millilitres, "box": box.to_json(), "range_hu": list(scan.range_hu)}
        facts |= {"warnings": list(scan.doubts), "padding": scan.padding and scan.padding.to_json()}
        note = json.dumps({"organs": organs, "settings": self.settings, **facts}, ensure_ascii=False)
        labels, shown = from_slices(scan.labels, scan.geometry), fingerprint(note)
        if preview_png is not None:
            check_writable(preview_png)  # while the labels are still as they were
            remove_other(preview_png, shown, only_ours=False)
        remove_other(picture_path(out), shown, only_ours=True)
        write_labels(out, labels, volume.affine, organs=organs, header=volume.header, note=note)
        if preview_png is not None and scan.picture is not None:
            write_png(preview_png, scan.picture, shown)
        scan.times["write"] = time.monotonic() - start
        return self._prediction(Path(out), scan.geometry.shape, facts, scan.times)

    def finished(self, scan: str | os.PathLike[str], out: str | os.PathLike[str]) -> Prediction | None:
        """What was written for a scan earlier, if it is what would be written now.

        A label map appears under its name when it is complete, or not at all; it counts as finished if it was made from
        these very bytes, with this model and these settings, and has the shape that it had. Times of files say nothing:
        a scan that replaces another one may be older than its labels.
        """
        found = read_note(out)
        if found is None:
            return None
        try:
            facts = parse_json(found[1])
            if facts["settings"] != self.settings or facts["scan"]["shape"] != list(found[0]):
                return None
            checked = {"box": _checked_box(facts["box"]), "range_hu": _checked_range(facts["range_hu"])}
            prediction = self._prediction(Path(out), found[0], facts | checked, {})
            if not all(map(math.isfinite, prediction.volumes_ml.values())):
                return None
            return prediction if facts["scan"]["sha256"] == sha256(scan) else None
        except (InputError, ValueError, KeyError, TypeError, OverflowError):  # somebody else's note
            return None

    def _prediction(
        self, path: Path, shape: tuple[int, int, int], facts: dict[str, Any], times: dict[str, float]
    ) -> Prediction:
        return Prediction(
            path=path,
            shape=shape,
            volumes_ml={organ: float(facts["volumes_ml"][organ]) for organ in self.card.organs},
            seconds=sum(times.values()),
            times=dict(times),
            box=facts["box"],
            skipped_slices=int(facts["box"]["of"]) - int(facts["box"]["slices"]),
            range_hu=(facts["range_hu"][0], facts["range_hu"][1]),
            doubts=tuple(map(str, facts["warnings"])),
            padding=facts["padding"] and {name: int(facts["padding"][name]) for name in ("hu", "voxels")},
        )


def _checked_box(box: dict[str, Any]) -> dict[str, Any]:
    """The whole numbers of a note's box, as `BodyBox.to_json` wrote them."""
    sides = {name: [int(end) for end in box[name]] for name in ("rows", "columns")}
    return {"slices": int(box["slices"]), "of": int(box["of"]), **sides}


def _checked_range(range_hu: list[Any]) -> tuple[int, int]:
    """The two whole numbers of a note's range."""
    low, high = range_hu
    return int(low), int(high)


def check_outputs(
    inputs: list[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *more: str | os.PathLike[str] | None,
) -> None:
    """Refuse, before minutes are spent, outputs that cannot be written or would replace an input, a scan or each other.

    Raises:
        InputError: There is one; ``out`` is not named like a NIfTI file.
    """
    check_suffix(out)
    check_results((out, *more), inputs)
    refuse_replacing_scan(out)
