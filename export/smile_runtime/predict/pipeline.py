"""Scans read, computed and written side by side, one bad file in no other's way, within the memory that there is."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from smile_runtime.errors import InputError
from smile_runtime.io.nifti import count_voxels, refuse_replacing_scan
from smile_runtime.memory import free_memory
from smile_runtime.predict.prediction import Prediction, Scan
from smile_runtime.predict.predictor import Predictor
from smile_runtime.predict.run_report import RunReport
from smile_runtime.progress import Progress
from smile_runtime.threads import default_threads

Result = TypeVar("Result")

_MOST_THREADS = 4  # a GPU's 0.1 s a volume: inflating one takes 0.12 s of a core, the rest of reading and writing 0.1 s
_SHARE = 0.5  # of the free memory, for scans that are read ahead and label maps that wait for the disk
_SCAN_BYTES, _LABEL_BYTES = 2, 1  # a voxel


@dataclass(frozen=True)
class Job:
    """One scan of a folder.

    Attributes:
        scan: The file.
        labels: Where its label map goes.
        picture: Where its preview goes, if one is wanted.
    """

    scan: Path
    labels: Path
    picture: Path | None


def run(predictor: Predictor, jobs: Sequence[Job], report: RunReport) -> None:
    """Segment scans in their order; what happens to each is noted in the report, failures are printed as they happen.

    While one scan is computed, other threads, as many as the predictor has but at most 4, write the labels of those
    before it and read those after it. With one thread at most 2 + 1 bytes a voxel of the scan at work and 2 of the next
    one are in memory. With N threads one scan is always read ahead and one label map may always wait; up to N scans
    and N label maps do, as long as all of them take no more than half of the memory that was free at the start.

    Args:
        predictor: With its model loaded.
        jobs: What to segment.
        report: Filled.
    """
    bar = Progress(len(jobs), "predict")
    threads = min(_MOST_THREADS, predictor.threads or default_threads())
    io = ThreadPoolExecutor(threads, thread_name_prefix="io")
    try:
        _Pipeline(predictor, jobs, report, bar, io, threads).run()
    finally:
        io.shutdown(cancel_futures=True)
        bar.close()


class _Pipeline:
    """The scans in flight: read ahead, at work, being written."""

    def __init__(
        self,
        predictor: Predictor,
        jobs: Sequence[Job],
        report: RunReport,
        bar: Progress,
        io: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self._predictor, self._jobs, self._report, self._bar = predictor, jobs, report, bar
        self._io, self._threads = io, threads
        self._reading: deque[Future[Scan]] = deque()
        self._writing: deque[tuple[Job, Future[Prediction]]] = deque()
        self._begun = 0  # jobs whose reading was asked for
        self._limit = _voxel_limit() if threads > 1 else 0.0
        self._voxels: deque[int] = deque()  # of the scans that are read ahead, by their headers
        self._waiting: deque[int] = deque()  # voxels of the label maps that are being written

    def run(self) -> None:
        """All jobs, one after another; their neighbours beside them."""
        for number, job in enumerate(self._jobs):
            self._read_ahead(number)
            scan = self._outcome(job, self._reading.popleft().result)  # whose future would hold it
            voxels = self._voxels.popleft()
            self._read_ahead(number + 1)
            if scan is not None:
                scan = self._outcome(job, partial(self._segmented, scan, job, number))
            if scan is not None:
                self._make_room(voxels)
                writing = self._io.submit(self._predictor.save, scan, job.labels, preview_png=job.picture)
                self._writing.append((job, writing))
                self._waiting.append(voxels)
            del scan
            self._bar.advance(number + 1)
        while self._writing:
            self._note()

    def _read_ahead(self, first: int) -> None:
        """Ask for the scan that is computed next, and for others where there are threads and memory for them."""
        while self._begun < min(len(self._jobs), first + self._threads):
            job = self._jobs[self._begun]
            voxels = count_voxels(job.scan) if self._threads > 1 else 0
            if self._begun > first and sum(self._voxels) + voxels > self._limit:
                break
            self._voxels.append(voxels)
            self._reading.append(self._io.submit(_load, self._predictor, job))
            self._begun += 1

    def _segmented(self, scan: Scan, job: Job, number: int) -> Scan:
        advance = self._bar.advance
        self._predictor.segment(scan, picture=job.picture is not None, advance=lambda share: advance(number + share))
        return scan

    def _make_room(self, voxels: int) -> None:
        """Wait until a label map of so many voxels may wait beside the others, or is the only one."""
        while self._writing and (len(self._writing) >= self._threads or sum(self._waiting) + voxels > self._limit):
            self._note()

    def _note(self) -> None:
        job, writing = self._writing.popleft()
        self._waiting.popleft()
        prediction = self._outcome(job, writing.result)
        if prediction is not None:
            self._report.add(job.scan, prediction)

    def _outcome(self, job: Job, result: Callable[[], Result]) -> Result | None:
        """A step's result; None, noted and printed, if the scan or its output cannot be used."""
        try:
            return result()
        except InputError as error:
            message = str(error).replace("\n", " ")
            self._report.add_failure(job.scan, message)
            self._bar.message(f"error: {message}")
            return None


def _voxel_limit() -> float:
    """Voxels of all scans that may be read ahead, and as many of all label maps that may wait."""
    free = free_memory()
    return float("inf") if free is None else _SHARE * free / (_SCAN_BYTES + _LABEL_BYTES)


def _load(predictor: Predictor, job: Job) -> Scan:
    refuse_replacing_scan(job.labels)
    return predictor.load(job.scan)
