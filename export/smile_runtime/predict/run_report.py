"""What ran, on what, how long and with which result: the JSON file of ``--report``."""

import os
import platform
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy
import onnxruntime

from smile_runtime import __version__
from smile_runtime.io.files import printable, write_json
from smile_runtime.predict.prediction import Prediction
from smile_runtime.predict.predictor import Predictor
from smile_runtime.sharding import Shard
from smile_runtime.threads import default_threads

SCHEMA = 1
WRITTEN, KEPT, FAILED = "written", "already complete", "failed"


class RunReport:
    """Collects what happens to each scan.

    Args:
        predictor: What segments them.

    Attributes:
        files: One JSON object a scan, in the order in which they were finished.
        volumes: Scan -> organ -> millilitres, of all that have a label map.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self.files: list[dict[str, Any]] = []
        self.volumes: dict[str, dict[str, float]] = {}

    def add(self, scan: Path, prediction: Prediction, *, kept: bool = False) -> None:
        """Note a scan that has its label map, written now or kept from an earlier run."""
        self.volumes[printable(scan.name)] = prediction.volumes_ml
        self.files.append(
            {
                "scan": printable(scan),
                "status": KEPT if kept else WRITTEN,
                "labels": printable(prediction.path),
                "shape": list(prediction.shape),
                "seconds": {step: round(seconds, 4) for step, seconds in prediction.times.items()},
                "computed": prediction.box,
                "skipped_slices": prediction.skipped_slices,
                "range_hu": list(prediction.range_hu),
                "padding": prediction.padding,
                "volumes_ml": prediction.volumes_ml,
                "warning": prediction.warning,
            }
        )

    def add_failure(self, scan: Path, message: str) -> None:
        """Note a scan that could not be finished."""
        self.files.append({"scan": printable(scan), "status": FAILED, "error": printable(message)})

    def warnings(self) -> list[str]:
        """One sentence for each scan whose labels need one, with its name."""
        return [f"{file['scan']}: {file['warning']}" for file in self.files if file.get("warning")]

    def count(self, status: str) -> int:
        """Number of scans of a status."""
        return sum(file["status"] == status for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        model, predictor = self._predictor.model, self._predictor
        return {
            "schema": SCHEMA,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            "versions": {
                "smile-fast-runtime": __version__,
                "python": platform.python_version(),
                "numpy": numpy.__version__,
                "nibabel": nibabel.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
            "platform": platform.platform(),
            "model": {"path": printable(model.path), "sha256": model.sha256, "organs": list(model.card.organs)},
            "provider": {"asked": predictor.provider, "active": model.providers},
            "threads": predictor.threads or default_threads(),
            "settings": predictor.settings,
            "peak_memory_bytes": peak_memory(),
            "counts": {status: self.count(status) for status in (WRITTEN, KEPT, FAILED)},
            "files": self.files,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report, atomically.

        Raises:
            InputError: ``path`` cannot be written.
        """
        write_json(path, self.to_json())


def of_share(path: str | None, shard: Shard | None) -> str | None:
    """The name of a file about one share: ``report.json`` becomes ``report.2-of-4.json``, for each has its own."""
    if path is None or shard is None:
        return path
    name, suffix = os.path.splitext(path)
    return f"{name}.{shard.number}-of-{shard.count}{suffix}"


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    try:  # on Linux ru_maxrss would be at least that of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
