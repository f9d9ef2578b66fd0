"""How others read one axial slice of a volume on disk: everybody's files, and a function of case and slice."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bench.data_path.names import CHUNKS, CHUNKS_2D, CHUNKS_INT16, NIFTI, PERSISTENT, ZARR, ZARR_BEST

Volume = NDArray[np.int16]  # [D, H, W]
Read = Callable[[str, int], NDArray[Any]]  # case, slice -> [H, W]

# What `comp_blosc2_params` of nnU-Net 2.8.1 (nnunetv2/training/dataloading/nnunet_dataset.py) answers for a volume of
# 100 x 512 x 512 voxels: chunks and blocks [Z, Y, X] for patches of 48 x 192 x 192 (a usual one for abdominal CT) of
# 4 and of 2 bytes, and for its 2D configuration. It stores float32 by LZ4HC at level 5, with the filter that makes the
# file smaller, and opens a file for every case that it draws.
PATCHES_3D = (48, 192, 160), (16, 64, 32)
PATCHES_3D_INT16 = (48, 256, 256), (16, 64, 64)
PATCHES_2D = (1, 512, 512), (1, 256, 128)


def readers(volumes: Mapping[str, Volume], scans: Mapping[str, Path], folder: Path) -> dict[str, Read]:
    """Everybody that is installed, by name.

    Args:
        volumes: by case, what everybody stores.
        scans: by case, the same as `.nii.gz`.
        folder: an empty one, for everybody's files.
    """
    found: dict[str, Read] = {}
    if find_spec("zarr"):
        from zarr.codecs import BloscCodec

        found[ZARR] = _zarr(volumes, folder / "zarr", "auto")
        found[ZARR_BEST] = _zarr(volumes, folder / "zarr-best", BloscCodec(cname="lz4", shuffle="shuffle"))
    for name, dtype, (chunks, blocks) in (
        (CHUNKS, np.float32, PATCHES_3D),
        (CHUNKS_INT16, np.int16, PATCHES_3D_INT16),
        (CHUNKS_2D, np.float32, PATCHES_2D),
    ):
        found[name] = _chunks(volumes, folder, np.dtype(dtype), chunks, blocks)
    found[NIFTI] = nifti(scans)
    if find_spec("monai"):
        found[PERSISTENT] = _persistent(scans, folder / "monai")
    return found


def left_out() -> dict[str, str]:
    """Peers that are no dependency of ours and are not installed, and what to do."""
    packages = {ZARR: "zarr", ZARR_BEST: "zarr", PERSISTENT: "monai"}
    missing = {name: package for name, package in packages.items() if not find_spec(package)}
    return {name: f"{package} is not installed; make bench installs it" for name, package in missing.items()}


def save_chunks(
    path: Path, array: NDArray[Any], chunks: Sequence[int], blocks: Sequence[int], filters: "Sequence[blosc2.Filter]"
) -> int:
    """Write an array [Z, Y, X] as nnU-Net does, with a channel before it; the bytes that it takes."""
    shape = (1, *array.shape)
    stored = blosc2.asarray(
        np.ascontiguousarray(array)[None],
        urlpath=str(path),
        mode="w",
        chunks=tuple(min(pair) for pair in zip((1, *chunks), shape, strict=True)),
        blocks=tuple(min(pair) for pair in zip((1, *blocks), shape, strict=True)),
        cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": list(filters), "nthreads": 1},
    )
    return int(stored.schunk.cbytes)


def _chunks(
    volumes: Mapping[str, Volume], folder: Path, dtype: "np.dtype[Any]", chunks: Sequence[int], blocks: Sequence[int]
) -> Read:
    files = {case: folder / f"{case}-{dtype}-{chunks[0]}.b2nd" for case in volumes}
    for case, volume in volumes.items():
        save_chunks(files[case], volume.astype(dtype), chunks, blocks, [blosc2.Filter.SHUFFLE])

    def read(case: str, z: int) -> NDArray[Any]:
        stored = blosc2.open(str(files[case]), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return np.asarray(stored[0, z])

    return read


def _zarr(volumes: Mapping[str, Volume], folder: Path, compressors: Any) -> Read:
    import zarr

    arrays: dict[str, Any] = {}
    for case, volume in volumes.items():
        chunks = (1, *volume.shape[1:])
        path = str(folder / case)
        made = zarr.create_array(path, shape=volume.shape, chunks=chunks, dtype=volume.dtype, compressors=compressors)
        made[:] = volume
        arrays[case] = zarr.open_array(path, mode="r")
    return lambda case, z: np.asarray(arrays[case][z])


def nifti(scans: Mapping[str, Path]) -> Read:
    """By nibabel, from files that stay open."""
    images: dict[str, Any] = {case: nib.load(path, keep_file_open=True) for case, path in scans.items()}
    return lambda case, z: np.asarray(images[case].dataobj[:, :, z]).T


def _persistent(scans: Mapping[str, Path], folder: Path) -> Read:
    """MONAI's cache holds a case's whole tensor, and every access loads it: as int16, the least that it can be."""
    from monai.data import PersistentDataset
    from monai.transforms import Compose, LoadImaged

    cases = list(scans)
    load = Compose([LoadImaged(keys="image", dtype=np.int16, image_only=True)])
    cached = PersistentDataset([{"image": str(scans[case])} for case in cases], load, folder)
    numbers = {case: number for number, case in enumerate(cases)}

    def read(case: str, z: int) -> NDArray[Any]:
        item: Any = cached[numbers[case]]
        return np.asarray(item["image"][:, :, z]).T

    for case in cases:
        read(case, 0)  # fills the cache
    return read
