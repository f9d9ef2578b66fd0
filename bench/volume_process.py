"""Start-up time and peak memory of smile-predict, each in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Not ru_maxrss: a process inherits that from the one that started it.
_PEAK = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""
# What no pipeline can avoid: the session, and one batch of the size that the predictor computes.
_SESSION = """
import sys
import numpy as np
from smile_runtime.model import Model
model = Model(sys.argv[1], threads=int(sys.argv[2]))
hu = np.zeros((int(sys.argv[3]), model.card.channels, int(sys.argv[4]), int(sys.argv[5])), np.int16)
for _ in range(3):
    model.labels(hu)
"""
_PREDICT = """
import sys
from smile_runtime.predict import Predictor
Predictor(sys.argv[1], threads=int(sys.argv[2])).predict_file(sys.argv[3], sys.argv[4])
"""


def seconds(code: str, *arguments: str, repetitions: int = 5) -> float:
    """Median wall time of a fresh interpreter that runs some code."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        _python(code, *arguments)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def start_up(file: Path) -> dict[str, float]:
    """Seconds of a bare interpreter, of the import, of --help, and until a model is loaded."""
    help_text = "import sys; sys.argv[0] = 'smile-predict'; from smile_runtime.cli import main; main()"
    return {
        "python": seconds("pass"),
        "import smile_runtime": seconds("import smile_runtime"),
        "smile-predict --help": seconds(help_text, "--help"),
        "model loaded": seconds("import sys; from smile_runtime.model import Model; Model(sys.argv[1])", str(file)),
    }


def peak_memory(file: Path, scan: Path, out: Path, shape: tuple[int, int, int], threads: int) -> dict[str, Any]:
    """Peak resident bytes of a prediction and of the bare session, and their difference a voxel.

    Args:
        file: the model. scan: of `shape` voxels. out: the label map. shape: (X, Y, Z). threads: of the session.
    """
    width, height, _ = shape
    batch = max(1, 512 * 512 // (width * height))
    session = int(_python(_SESSION + _PEAK, str(file), str(threads), str(batch), str(height), str(width)))
    predict = int(_python(_PREDICT + _PEAK, str(file), str(threads), str(scan), str(out)))
    voxels = shape[0] * shape[1] * shape[2]
    return {"session": session, "predict": predict, "bytes a voxel beyond the session": (predict - session) / voxels}


def _python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def main() -> int:
    """Print start-up and memory of MODEL and SCAN as JSON."""
    import nibabel as nib

    file, scan, out = (Path(argument) for argument in sys.argv[1:4])
    shape = nib.load(scan).shape
    print(json.dumps({"start-up": start_up(file), "memory": peak_memory(file, scan, out, shape, 2)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
