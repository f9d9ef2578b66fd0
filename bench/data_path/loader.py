"""Random axial slices of a prepared cohort, one at a time and checked, against everybody else's way to have them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from bench.comparison import OURS, Call, Comparison, Conditions
from bench.data_path.names import LEFT_OUT, NIFTI, PERSISTENT, SLICES_PER_SECOND, UNCHECKED
from bench.data_path.peers import left_out, readers
from bench.data_path.volumes import dataset, scan_of, store
from bench.data_path.workloads import Workload
from bench.ops.names import BYTES
from smile_fast.data import arrays

SLICES = 128  # of a run
FEW = {NIFTI: 6, PERSISTENT: 6}  # of a run of those that take tens of milliseconds for one


class _Any:
    """Every checksum."""

    def __ne__(self, other: object) -> bool:
        return False


class Unchecked:
    """In place of what computes checksums: it finds the right one at once."""

    @staticmethod
    def crc32(_: bytes) -> _Any:
        """The checksum of anything."""
        return _Any()


def compare(workload: Workload, conditions: Conditions, folder: Path) -> Comparison:
    """Store the volumes in everybody's format, and draw the same slices for everybody."""
    volumes = workload.volumes
    raw = dataset(volumes, conditions, folder)
    prepared = store(raw, folder / "store")
    images = {case: prepared.read_image(case) for case in volumes.names}
    others = readers(images, {case: scan_of(raw.path, case) for case in images}, folder)
    rng = np.random.default_rng(0)
    drawn = [(volumes.names[rng.integers(volumes.cases)], int(rng.integers(volumes.slices))) for _ in range(SLICES)]

    def ours(case: str, z: int) -> NDArray[np.int16]:
        return prepared.read_image(case, [z])[0]

    def unchecked() -> None:
        with patch.object(arrays, "inflater", Unchecked):
            all_of(ours, SLICES)

    def all_of(read: Callable[[str, int], NDArray[Any]], taken: int) -> None:
        for case, z in drawn[:taken]:
            read(case, z)

    def check() -> dict[str, float]:
        for name, read in {OURS: ours, **others}.items():
            for case, z in drawn[: FEW.get(name, SLICES)]:
                np.testing.assert_array_equal(read(case, z), images[case][z], f"{name}: slice {z} of {case}")
        return {}

    calls = [
        Call(name, partial(all_of, read, FEW.get(name, SLICES)), steps=FEW.get(name, SLICES))
        for name, read in {OURS: ours, **others}.items()
    ]
    calls.insert(1, Call(UNCHECKED, unchecked, steps=SLICES))
    stored = sum(file.stat().st_size for file in prepared.path.rglob("image*"))
    facts = {
        "volumes": [volumes.cases, volumes.slices, volumes.size, volumes.size],
        BYTES: stored,
        LEFT_OUT: left_out(),
    }
    return Comparison(calls[:1], calls[1:], check, facts, derived=lambda seconds: {SLICES_PER_SECOND: 1 / seconds})
