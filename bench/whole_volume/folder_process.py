"""`smile-predict` without its network, in a process of its own: of this checkout's runtime, or of another one's.

python bench/whole_volume/folder_process.py MODEL SCANS OUT THREADS     # prints seconds as JSON
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from smile_runtime.io import gzip as runtime_gzip
from smile_runtime.predict import predictor as predictor_module
from smile_runtime.predict.folder import list_jobs, output_folder, predict_folder
from smile_runtime.predict.predictor import Predictor
from smile_runtime.predict.run_report import RunReport

try:
    from smile_runtime.predict import batches as context_module
except ImportError:  # of a checkout from before it
    context_module = predictor_module  # type: ignore[misc]

# Stage -> where its function is looked up, and its name; "read" holds "inflate", "predict" the three after it.
STAGES = {
    "read": (predictor_module, "read_image"),
    "padding": (predictor_module, "padding_to_air"),
    "range of HU": (predictor_module, "range_hu"),
    "body box": (predictor_module, "body_box"),
    "SHA-256": (predictor_module, "sha256"),
    "predict": (Predictor, "predict"),
    "context slices": (context_module, "slice_context"),
    "volumes": (predictor_module, "volumes_ml"),
    "pack and write": (predictor_module, "write_labels"),
}


@cache
def anatomy(height: int, width: int) -> NDArray[np.uint8]:
    """Three organs in the middle of a slice: ellipses, as plausible and as smooth as a network's."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    labels = np.zeros((height, width), np.uint8)
    for value, (row, column, size) in enumerate(((-0.2, -0.3, 0.5), (0.1, 0.2, 0.2), (-0.1, 0.45, 0.3)), 1):
        labels[((y - row) / 0.8) ** 2 + (x - column) ** 2 < size**2] = value
    return labels


def stub(hu: NDArray[np.int16], pixel_spacing: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """What stands in for a model: the same label map for every slice, in no time."""
    batch, _, height, width = hu.shape
    return np.broadcast_to(anatomy(height, width), (batch, height, width))


def timed(seconds: dict[str, float], stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose CPU time is added up: a busy machine makes it hardly longer."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.thread_time() - start

    return call


def inflated(path: Path) -> int:
    """Bytes of a gzip file, which are let go of block by block."""
    with open(path, "rb") as file:
        return sum(map(len, runtime_gzip.inflate(file, path)))


def folder_seconds(predictor: Predictor, scans: Path, out: Path) -> dict[str, float]:
    """Wall and CPU seconds of a whole folder."""
    jobs = list_jobs(scans, out, previews=False)
    report = RunReport(predictor)
    wall, cpu = time.perf_counter(), time.process_time()
    with output_folder(out):
        predict_folder(predictor, jobs, report)
    found = {"folder": time.perf_counter() - wall, "folder, CPU": time.process_time() - cpu}
    assert report.count("written") == len(jobs), report.files
    return {stage: seconds / len(jobs) for stage, seconds in found.items()}


def stage_seconds(predictor: Predictor, scans: Path, out: Path) -> dict[str, float]:
    """Wall seconds of one volume after another, and CPU seconds of their stages."""
    seconds: dict[str, float] = {}
    paths = sorted(scans.iterdir())
    with patch.object(predictor.model, "labels", timed(seconds, "session (stub)", stub)):
        for stage, (owner, name) in STAGES.items():
            patcher = patch.object(owner, name, timed(seconds, stage, getattr(owner, name)))
            patcher.start()
        for path in paths:
            start = time.perf_counter()
            predictor.predict_file(path, out / path.name.replace("_0000.nii", ".nii"))
            seconds["one volume alone"] = seconds.get("one volume alone", 0.0) + time.perf_counter() - start
        patch.stopall()
    inflate_all = timed(seconds, "inflate", inflated)
    for path in paths:
        inflate_all(path)
    seconds["labels to grid"] = seconds["predict"] - seconds["context slices"] - seconds["session (stub)"]
    return {stage: total / len(paths) for stage, total in seconds.items()}


def main() -> None:
    """Segment a folder side by side into OUT/folder and one after another into OUT/alone."""
    model, scans, out = map(Path, sys.argv[1:4])
    predictor = Predictor(model, threads=int(sys.argv[4]))
    (out / "alone").mkdir(parents=True)
    with patch.object(predictor.model, "labels", stub):
        found = folder_seconds(predictor, scans, out / "folder")
    print(json.dumps(found | stage_seconds(predictor, scans, out / "alone")))


if __name__ == "__main__":
    main()
