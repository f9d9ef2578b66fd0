"""Volumes of organs: counted in a label map, written as CSV or JSON."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, write_json
from smile_runtime.volume.histograms import slice_histograms


def volumes_ml(
    labels: npt.NDArray[np.uint8],  # [D, H, W]
    organs: Sequence[str],
    voxel: float,
) -> dict[str, float]:
    """Organ -> millilitres.

    Args:
        labels: [D, H, W] uint8.
        organs: Names; label value k + 1 is organs[k].
        voxel: Cubic millimetres of one voxel.
    """
    counts = slice_histograms(labels).sum(axis=0)
    return {organ: float(counts[value]) * voxel / 1000 for value, organ in enumerate(organs, 1)}


def check_volumes(path: str | os.PathLike[str]) -> None:
    """Refuse a name whose suffix is not that of a known format.

    Raises:
        InputError: The name ends neither in .csv nor in .json.
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise InputError(f"{path}: not a name for volumes; give one that ends in .csv or .json")


def write_volumes(path: str | os.PathLike[str], volumes: Mapping[str, Mapping[str, float]]) -> None:
    """Write the volumes of some scans, atomically, in the format of the suffix.

    Args:
        path: Ends in ``.csv`` (a row for each scan and organ: scan, organ, ml) or ``.json`` (scan -> organ -> ml).
        volumes: Scan -> organ -> millilitres.

    Raises:
        InputError: ``path`` has another name or cannot be written.
    """
    check_volumes(path)
    if Path(path).suffix.lower() == ".json":
        write_json(path, {"unit": "ml", "volumes": {scan: dict(organs) for scan, organs in volumes.items()}})
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("scan", "organ", "ml"))
    for scan, organs in volumes.items():
        writer.writerows((scan, organ, f"{millilitres:.3f}") for organ, millilitres in organs.items())
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
