"""NIfTI files for tests, honest and otherwise."""

import gzip
import itertools

import nibabel as nib
import numpy as np

AFFINE = np.diag([0.75, 0.8, 2.5, 1.0])
OFFSET = 352


def orientations():
    """The 48 ways in which a volume's axes can lie in the body, as nibabel orientation arrays."""
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            yield np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])


def rotation(x, y, z):
    """[3, 3] rotation by angles in degrees."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        first, second = (n for n in range(3) if n != axis)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        matrix = matrix @ turn
    return matrix


def random_hu(shape, seed=0):
    return np.random.default_rng(seed).integers(-1024, 1500, shape, dtype=np.int16)


def content(data=None, affine=AFFINE, *, header_class=nib.Nifti1Header, order="<", extra=b"", **fields):
    """Bytes of a .nii file; ``fields`` overwrite header fields after everything else, without any check."""
    data = random_hu((6, 5, 4)) if data is None else data
    header = header_class(endianness=order)
    header.set_data_dtype(data.dtype.newbyteorder(order))
    header.set_data_shape(data.shape)
    header.set_sform(affine, 1)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    with np.errstate(all="ignore"):
        for name, value in fields.items():
            header[name] = value
    stored = data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")
    return header.binaryblock + b"\0" * 4 + stored + extra


def write(path, *args, **kwargs):
    """A file with `content`, compressed if its name says so."""
    body = content(*args, **kwargs)
    path.write_bytes(gzip.compress(body, 1) if path.suffix == ".gz" else body)
    return path


def dims(*sizes):
    """The header's dim field."""
    return [len(sizes), *sizes, *[1] * (7 - len(sizes))]
