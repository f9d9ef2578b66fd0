"""A volume from `.nii.gz` to the store by one process, in CPU seconds, against what a script of a few lines does."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bench.comparison import OURS, Call, Comparison, Conditions
from bench.data_path.names import BY_HAND, BY_HAND_NNUNET, CPU_SECONDS
from bench.data_path.peers import PATCHES_3D, save_chunks
from bench.data_path.volumes import dataset, labels_of, scan_of
from bench.data_path.workloads import Workload
from bench.ops.names import BYTES
from smile_fast.data import prepare as preparing
from smile_fast.data.store import Store

SLICE = 1  # axial slices of a chunk, by hand


def by_hand(raw: Path, case: str, out: Path) -> None:
    """Read both files with nibabel, and write them as our store has them: nothing is checked, hashed or counted."""
    for name, file in (("image", scan_of(raw, case)), ("labels", labels_of(raw, case))):
        array = _slices(file, np.dtype(np.int16 if name == "image" else np.uint8))
        blosc2.asarray(
            array,
            urlpath=str(out / f"{name}.b2nd"),
            mode="w",
            chunks=(SLICE, *array.shape[1:]),
            cparams={"codec": blosc2.Codec.LZ4, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
        )


def by_hand_as_nnunet(raw: Path, case: str, out: Path) -> None:
    """The same in nnU-Net's chunks: float32 and int16, and the smaller of two filters, found on one chunk."""
    for name, file, dtype in (("image", scan_of(raw, case), np.float32), ("labels", labels_of(raw, case), np.int16)):
        array = _slices(file, np.dtype(dtype))
        first = array[tuple(slice(size) for size in PATCHES_3D[0])]
        filters = (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE)
        sizes = [save_chunks(out / "trial.b2nd", first, *PATCHES_3D, [each]) for each in filters]
        save_chunks(out / f"{name}.b2nd", array, *PATCHES_3D, [filters[int(np.argmin(sizes))]])


def compare(workload: Workload, conditions: Conditions, folder: Path) -> Comparison:
    """Convert the first case, again and again."""
    raw = dataset(workload.volumes, conditions, folder)
    case = raw.cases[0].name
    outs = {name: folder / name for name in (BY_HAND, BY_HAND_NNUNET)}
    for out in outs.values():
        out.mkdir()

    def ours() -> Store:
        return preparing.prepare(raw, folder / "store", workers=1).store

    def forget() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)

    calls = [
        Call(OURS, ours, forget),
        Call(BY_HAND, partial(by_hand, raw.path, case, outs[BY_HAND])),
        Call(BY_HAND_NNUNET, partial(by_hand_as_nnunet, raw.path, case, outs[BY_HAND_NNUNET])),
    ]

    def check() -> dict[str, float]:
        store = ours()
        for call in calls[1:]:
            call.run()
            for name, expected in (("image", store.read_image(case)), ("labels", store.read_labels(case))):
                stored = np.asarray(blosc2.open(str(outs[call.name] / f"{name}.b2nd"), mode="r")[:])
                np.testing.assert_array_equal(stored.reshape(expected.shape), expected, f"{call.name}: {name}")
        return {}

    volumes = workload.volumes
    facts: dict[str, Any] = {
        "volume": [volumes.slices, volumes.size, volumes.size],
        BYTES: scan_of(raw.path, case).stat().st_size,
    }
    return Comparison(
        calls[:1], calls[1:], check, facts, derived=lambda seconds: {CPU_SECONDS: seconds / len(raw.cases)}
    )


def _slices(file: Path, dtype: "np.dtype[Any]") -> NDArray[Any]:
    """A file's voxels [D, H, W]: its axes are those that networks see, in the other order."""
    image: Any = nib.load(file)
    return np.ascontiguousarray(np.asarray(image.dataobj).transpose(2, 1, 0), dtype=dtype)
