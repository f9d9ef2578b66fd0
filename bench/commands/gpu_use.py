"""How busy the GPU was: nvidia-smi's share of the time in which any kernel ran, sampled while something else runs."""

import os
import subprocess
import threading
import time
from typing import IO, NamedTuple, Self

EVERY = 100  # ms
QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={EVERY}"]


class Sample(NamedTuple):
    """One reading."""

    moment: float  # of time.time(), as files have it
    share: float  # 0 to 1


class GpuUse:
    """Samples while its block runs; holds none where nvidia-smi is not there.

    Attributes:
        samples: in the order in which they came.
    """

    def __init__(self, query: list[str] | None = None) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        self._query = query or [*QUERY, f"--id={visible or 0}"]
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                self._query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
            )
        except OSError:
            return self
        assert self._process.stdout is not None
        self._thread = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if line.strip().isdecimal():
                self.samples.append(Sample(time.time(), int(line) / 100))

    def mean(self, begin: float, end: float) -> float | None:
        """Mean share between two moments of time.time(); None where nothing was read."""
        shares = [sample.share for sample in self.samples if begin <= sample.moment <= end]
        return sum(shares) / len(shares) if shares else None
