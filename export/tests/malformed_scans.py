"""Scans that are refused: name -> (what makes one in a folder, what is said of it)."""

import gzip
import os

import numpy as np
from nifti_files import AFFINE, content, dims, write

BILLIONS = dims(10_000, 10_000, 10_000)  # 10^12 voxels
NUMBERS = np.zeros((3, 3, 3), np.float32)


def affine(**entries):
    matrix = AFFINE.copy()
    for name, value in entries.items():
        matrix[int(name[1]), int(name[2])] = value
    return matrix


def scan(name="scan.nii.gz", *args, **fields):
    """A case whose scan is a NIfTI file with the given voxels and header fields."""
    return lambda folder: {"scan": write(folder / name, *args, **fields)}


def raw(name, make):
    """A case whose scan is a file of the bytes that ``make`` returns."""

    def build(folder):
        (folder / name).write_bytes(make())
        return {"scan": folder / name}

    return build


DICOM = b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + b"\0" * 300


def series(folder):
    """As a scanner exports it: slices some folders down, without a suffix."""
    (folder / "patient" / "CT 1").mkdir(parents=True)
    (folder / "patient" / "CT 1" / "IM0001").write_bytes(DICOM)
    return folder


def foreign(folder):
    folder.mkdir()
    (folder / "a.nrrd").write_bytes(b"NRRD0004\n")
    return folder


def changed(body, position, value):
    return body[:position] + value + body[position + len(value) :]


def with_voxel(value):
    data = NUMBERS.copy()
    data[1, 2, 0] = value
    return data


def tiny_lie():
    """62 bytes or so of gzip that claim 512 x 512 x 100 voxels."""
    return gzip.compress(content(np.zeros((1, 1, 1), np.uint8), dim=dims(512, 512, 100)), 9)


SCANS = {
    "missing": (lambda folder: {"scan": folder / "none.nii.gz"}, "no such file"),
    "missing, of any name": (lambda folder: {"scan": folder / "none"}, "no such file"),
    "an empty folder": (lambda folder: {"scan": make_folder(folder / "scan.nii.gz")}, "holds no scan"),
    "a pipe": (lambda folder: {"scan": make_pipe(folder / "scan.nii.gz")}, "pipe"),
    "below a file": (lambda folder: {"scan": write(folder / "a.nii") / "scan.nii"}, "not a directory"),
    "a name too long": (lambda folder: {"scan": folder / ("a" * 300 + ".nii.gz")}, "too long"),
    "another suffix": (raw("scan.dcm", content), "named like a NIfTI"),
    "nothing in it, .nii": (raw("scan.nii", bytes), "not a NIfTI"),
    "nothing in it, .nii.gz": (raw("scan.nii.gz", bytes), "cut short"),
    "gzip of nothing": (raw("scan.nii.gz", lambda: gzip.compress(b"")), "not a NIfTI"),
    "text": (raw("scan.nii", lambda: b"x" * 1000), "not a NIfTI"),
    "text, .nii.gz": (raw("scan.nii.gz", lambda: b"x" * 1000), "damaged"),
    "not compressed, cut": (raw("scan.nii.gz", lambda: content()[:-1]), "cut short, 6 x 5 x 4"),
    "not compressed, a lie": (raw("scan.nii.gz", lambda: content(dim=dims(512, 512, 100))), "cut short, 512 x 512"),
    "not compressed, more": (raw("scan.nii.gz", lambda: content(extra=bytes(60))), "more voxels"),
    "compressed, .nii, cut": (raw("scan.nii", lambda: gzip.compress(content())[:-60]), "cut short"),
    "compressed, .nii, a lie": (raw("scan.nii", tiny_lie), "cut short"),
    "compressed, .nii, a bomb": (raw("scan.nii", lambda: gzip.compress(content(extra=bytes(2**24)))), "more voxels"),
    "compressed twice": (raw("scan.nii.gz", lambda: gzip.compress(gzip.compress(content()))), "not a NIfTI"),
    "DICOM": (raw("scan.dcm", lambda: DICOM), r"is a DICOM file, .*: dcm2niix -z y -o OUT /"),
    "DICOM, .nii.gz": (raw("scan.nii.gz", lambda: DICOM), r"is a DICOM file, .*: dcm2niix -z y -o OUT /"),
    "DICOM without a suffix": (raw("IM0001", lambda: DICOM), r"is a DICOM file, .*: dcm2niix -z y -o OUT /"),
    "a folder of DICOM": (lambda folder: {"scan": series(folder / "a b")}, r"dcm2niix -z y -o OUT '/.*/a b'$"),
    "a folder of other scans": (
        lambda folder: {"scan": foreign(folder / "scans")},
        r"are no NIfTI files \('a\.nrrd'\); convert",
    ),
    "another format": (raw("scan.mha", lambda: b"ObjectType = Image"), "not named like a NIfTI file; convert it to"),
    "gzip cut in the voxels": (raw("scan.nii.gz", lambda: gzip.compress(content())[:-60]), "cut short"),
    "gzip cut in the header": (raw("scan.nii.gz", lambda: gzip.compress(content())[:40]), "cut short"),
    "gzip without its checksum": (raw("scan.nii.gz", lambda: gzip.compress(content())[:-8]), "cut short"),
    "wrong checksum": (raw("scan.nii.gz", lambda: changed(gzip.compress(content()), -8, b"\0\0")), "damaged"),
    "wrong length": (raw("scan.nii.gz", lambda: gzip.compress(content())[:-4] + b"\0\0\0\1"), "damaged"),
    "damaged voxels": (raw("scan.nii.gz", lambda: changed(gzip.compress(content()), 200, b"\xff" * 9)), "damaged"),
    "rubbish after the gzip": (raw("scan.nii.gz", lambda: gzip.compress(content()) + b"rubbish"), "damaged"),
    "header only": (raw("scan.nii", lambda: content()[:352]), "cut short"),
    "half a header": (raw("scan.nii", lambda: content()[:200]), "not a NIfTI"),
    "four bytes": (raw("scan.nii", lambda: content()[:4]), "not a NIfTI"),
    "voxels missing": (raw("scan.nii", lambda: content()[:-1]), "cut short"),
    "voxels missing, .nii.gz": (raw("scan.nii.gz", lambda: gzip.compress(content()[:-1])), "cut short"),
    "one slice too many": (raw("scan.nii", lambda: content(extra=bytes(60))), "more voxels"),
    "one slice too many, .nii.gz": (raw("scan.nii.gz", lambda: gzip.compress(content(extra=bytes(60)))), "more voxels"),
    "a bomb in the header's extension": (
        raw("scan.nii.gz", lambda: gzip.compress(content(vox_offset=15 * 2**20)[:352] + bytes(15 * 2**20), 9)),
        "more voxels",
    ),
    "a bomb of many members": (
        raw("scan.nii.gz", lambda: gzip.compress(content()) + gzip.compress(bytes(2**24), 9) * 20),
        "more voxels",
    ),
    "64 MiB of nothing behind the voxels": (lambda folder: {"scan": sparse_file(folder / "scan.nii")}, "more voxels"),
    "a bomb": (raw("scan.nii.gz", lambda: gzip.compress(content(extra=bytes(20_000_000)))), "more voxels"),
    "62 bytes that claim 512x512x100": (raw("scan.nii.gz", tiny_lie), "cut short"),
    "gzip too small for its claim": (scan("scan.nii.gz", NUMBERS.repeat(9, 0), dim=dims(512, 512, 100)), "header lies"),
    "10^12 voxels": (scan("scan.nii", dim=BILLIONS), "more than any CT"),
    "10^12 voxels, .nii.gz": (scan(dim=BILLIONS), "more than any CT"),
    "sizes whose product overflows": (scan(dim=dims(*[32767] * 3)), "more than any CT"),
    "negative size": (scan(dim=dims(6, -5, 4)), "-5"),
    "empty": (scan(dim=dims(6, 0, 4)), "empty"),
    "no dimensions": (scan(dim=[0] * 8), "0 dimensions"),
    "nine dimensions": (scan(dim=[9] + [1] * 7), "9 dimensions"),
    "2D": (scan(dim=dims(6, 5)), "2 dimensions"),
    "4D": (scan(dim=dims(6, 5, 2, 2)), "4 dimensions"),
    "complex": (scan("scan.nii.gz", np.zeros((3, 3, 3), np.complex64)), "complex"),
    "RGB": (scan(datatype=128, bitpix=24), "RGB"),
    "unknown type": (scan(datatype=99), "unknown"),
    "type and bits differ": (scan(bitpix=8), "bits per voxel"),
    "infinite slope": (scan(scl_slope=np.inf), "scl_slope"),
    "NaN intercept": (scan(scl_inter=np.nan), "scl_inter"),
    "infinite intercept": (scan(scl_inter=-np.inf), "scl_inter"),
    "NaN voxel": (scan("scan.nii.gz", with_voxel(np.nan)), r"\(1, 2, 0\)"),
    "infinite voxel": (scan("scan.nii.gz", with_voxel(np.inf)), r"\(1, 2, 0\)"),
    "infinite after scaling": (scan("scan.nii.gz", np.full((2, 2, 2), 1e300), scl_slope=1e30), "infinite voxel"),
    "NaN affine": (scan(srow_x=[np.nan] * 4), "affine"),
    "infinite affine": (scan(srow_y=[0, 1, 0, np.inf]), "affine"),
    "unknown unit of length": (scan("scan.nii.gz", None, xyzt_units=5), "unit"),
    "singular affine": (scan("scan.nii.gz", None, affine(a00=0.75, a10=0.75, a01=1, a11=1)), "inverted"),
    "no voxel size": (scan("scan.nii.gz", None, affine(a22=0)), "2.5|x 0 mm"),
    "voxels of a kilometre": (scan("scan.nii.gz", None, affine(a22=1e6)), "mm"),
    "NaN voxel size": (scan(sform_code=0, pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0]), "affine"),
    "NaN quaternion": (scan(sform_code=0, qform_code=1, quatern_b=np.nan), "affine"),
    "no quaternion": (scan(sform_code=0, qform_code=1, quatern_b=2), "orientation"),
    "voxel size of 0": (scan(sform_code=0, qform_code=1, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]), "voxels of 0 x 1 x 1 mm"),
    "voxels in the header": (scan(vox_offset=100), "begin at byte 100"),
    "voxels at half a byte": (scan(vox_offset=352.5), "begin at byte"),
    "voxels at NaN": (scan(vox_offset=np.nan), "begin at byte"),
    "voxels far away": (scan(vox_offset=1e9), "begin at byte"),
    "voxels behind the end": (scan("scan.nii", vox_offset=4096), "cut short"),
    "half of a pair": (scan(magic=b"ni1"), ".hdr/.img"),
    "no magic": (scan(magic=b"abc"), "not a NIfTI"),
}


def make_folder(path):
    path.mkdir()
    return path


def sparse_file(path):
    """A header of 120 voxels, and 64 MiB that take no room."""
    path.write_bytes(content())
    os.truncate(path, 2**26)
    return path


def make_pipe(path):
    os.mkfifo(path)
    return path
