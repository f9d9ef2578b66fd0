"""Start-up time and peak memory of smile-predict, each in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.whole_volume.workloads import HELP, IMPORT

# Not ru_maxrss: a process inherits that from the one that started it.
_PEAK = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""
# What no pipeline can avoid: the session, and batches of the sizes that the predictor computes.
_SESSION = """
import json, sys
import numpy as np
from smile_runtime.model.exported import Model
model = Model(sys.argv[1], threads=int(sys.argv[2]))
for shape in json.loads(sys.argv[3]) * 3:
    model.labels(np.zeros(shape, np.int16))
"""
_PREDICT = """
import sys
from smile_runtime.predict.predictor import Predictor
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
    help_text = "import sys; sys.argv[0] = 'smile-predict'; from smile_runtime.predict.cli import main; main()"
    return {
        "python, s": seconds("pass"),
        IMPORT: seconds("import smile_runtime.predict.predictor"),
        HELP: seconds(help_text, "--help"),
        "model loaded, s": seconds(
            "import sys; from smile_runtime.model.exported import Model; Model(sys.argv[1])", str(file)
        ),
    }


def peak_memory(file: Path, scan: Path, out: Path, shapes: Sequence[tuple[int, ...]], threads: int) -> dict[str, int]:
    """Peak resident bytes of a prediction, and of the bare session.

    Args:
        file: the model. scan: what is segmented. out: the label map.
        shapes: of the batches [N, C, H, W] that the session gets. threads: of the session.
    """
    batches = json.dumps([list(shape) for shape in shapes])
    return {
        "session": int(_python(_SESSION + _PEAK, str(file), str(threads), batches)),
        "predict": int(_python(_PREDICT + _PEAK, str(file), str(threads), str(scan), str(out))),
    }


def _python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()
