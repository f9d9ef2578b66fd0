import gzip
import hashlib
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from nifti_files import AFFINE, OFFSET, content, dims, random_hu, rotation, write

from smile_runtime.errors import InputError
from smile_runtime.io.gzip import MAX_RATIO
from smile_runtime.io.nifti import read_image, read_labels, read_note, write_image, write_labels

NUMBERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_type_reads_like_nibabel(tmp_path, dtype, order, suffix):
    data = (random_hu((7, 6, 5)) % 120).astype(dtype)
    path = write(tmp_path / f"scan{suffix}", data, order=order)
    volume = read_image(path)
    reference = nib.load(path)
    assert volume.data.dtype == np.int16
    assert volume.data.dtype.isnative
    assert np.array_equal(volume.data, np.asarray(reference.dataobj))
    assert np.array_equal(volume.affine, reference.affine)
    assert volume.path == path


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_type_of_label_map(tmp_path, dtype):
    data = (random_hu((7, 6, 5)) % 120).astype(dtype)
    labels = read_labels(write(tmp_path / "labels.nii.gz", data)).data
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, data)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("read", [read_image, read_labels])
@pytest.mark.parametrize("padding", [0, 7])
def test_a_digest_is_that_of_the_whole_file(tmp_path, name, read, padding):
    """Also of what lies behind the voxels, in the stream and behind it."""
    path = write(tmp_path / name, (random_hu((70, 60, 50)) % 120).astype(np.int16))
    raw = (gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()) + bytes(padding)
    path.write_bytes(gzip.compress(raw) + bytes(padding) if name.endswith(".gz") else raw)
    digest = hashlib.sha256()
    volume = read(path, digest)
    assert np.array_equal(volume.data, read(path).data)
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_scan_of_real_size_is_converted_in_blocks(tmp_path):
    data = random_hu((300, 300, 40)).astype(np.float32) + np.float32(0.3)
    volume = read_image(write(tmp_path / "scan.nii", data))
    assert np.array_equal(volume.data, np.rint(data))


def test_scaling_is_applied_rounded_and_clipped(tmp_path):
    data = np.array([-32768, -1000, -3, 0, 1, 3, 40000 - 65536, 32767], np.int16).reshape(2, 2, 2)
    path = write(tmp_path / "scan.nii.gz", data, scl_slope=2.5, scl_inter=-7)
    expected = np.clip(np.rint(data * 2.5 - 7), -32768, 32767)
    assert np.array_equal(read_image(path).data, expected)
    assert expected.min() == -32768  # both ends are really clipped
    assert expected.max() == 32767


@pytest.mark.parametrize("value", [1e30, -1e30, 70000, -70000])
def test_values_beyond_int16_are_clipped(tmp_path, value):
    data = np.full((2, 2, 2), value, np.float64)
    assert set(np.unique(read_image(write(tmp_path / "a.nii", data)).data)) == {32767 if value > 0 else -32768}


def test_a_slope_of_zero_means_not_scaled(tmp_path):
    data = random_hu((3, 3, 3))
    assert np.array_equal(read_image(write(tmp_path / "a.nii", data, scl_slope=0, scl_inter=5)).data, data)


@pytest.mark.parametrize("intercept", [np.nan, 5.0])
@pytest.mark.parametrize("read", [read_image, read_labels])
def test_a_slope_of_nan_means_not_scaled(tmp_path, read, intercept):
    data = random_hu((3, 4, 5)) % 120
    path = write(tmp_path / "a.nii.gz", data, scl_slope=np.nan, scl_inter=intercept)
    assert np.array_equal(read(path).data, data)
    assert np.array_equal(np.asarray(nib.load(path).dataobj), data)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.NII.GZ", "A.Nii.Gz", "a.NII"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_is_read_as_what_it_is_whatever_its_ending(tmp_path, pack, name):
    data = random_hu((6, 5, 4))
    (tmp_path / name).write_bytes(pack(content(data)))
    assert np.array_equal(read_image(tmp_path / name).data, data)


@pytest.mark.parametrize(
    ("name", "start"), [("a.NII.GZ", b"\x1f\x8b"), ("a.nii.gz ", b"\x1f\x8b"), ("a.Nii", b"\x5c\x01")]
)
def test_a_file_is_written_as_its_ending_says_in_letters_of_any_case(tmp_path, name, start):
    write_labels(tmp_path / name, np.ones((3, 4, 5), np.uint8), AFFINE, note="note")
    assert (tmp_path / name).read_bytes().startswith(start)
    assert read_note(tmp_path / name) == ((3, 4, 5), "note")


@pytest.mark.parametrize("qfac", [1, -1, 0, 7, np.nan])
@pytest.mark.parametrize("sizes", [(-0.75, 0.8, 2.5), (0.75, 0.8, -2.5), (-0.75, -0.8, -2.5)])
@pytest.mark.parametrize("codes", [(0, 1), (0, 0), (1, 1)])
def test_negative_voxel_sizes_are_repaired_as_nibabel_does(tmp_path, codes, sizes, qfac):
    sform, qform = codes
    turned = {"quatern_b": 0.1, "quatern_c": 0.2, "quatern_d": -0.3, "qoffset_x": -90, "qoffset_z": 33}
    pixdim = [qfac, *sizes, 0, 0, 0, 0]
    path = write(tmp_path / "a.nii.gz", sform_code=sform, qform_code=qform, pixdim=pixdim, **turned)
    volume, reference = read_image(path), nib.load(path)
    assert np.array_equal(volume.affine, reference.affine)
    write_image(tmp_path / "b.nii.gz", volume.data, volume.affine, header=volume.header)
    assert np.array_equal(nib.load(tmp_path / "b.nii.gz").header["pixdim"][:4], reference.header["pixdim"][:4])


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path):
    data = random_hu((6, 5, 4))
    for sizes in [(6, 5, 4, 1), (6, 5, 4, 1, 1)]:
        assert np.array_equal(read_image(write(tmp_path / "a.nii.gz", data, dim=dims(*sizes))).data, data)


def test_one_slice_is_a_volume(tmp_path):
    data = random_hu((6, 5, 1))
    assert np.array_equal(read_image(write(tmp_path / "a.nii.gz", data)).data, data)


def test_bytes_before_and_after_the_voxels(tmp_path):
    data = random_hu((6, 5, 4))
    body = content(data, vox_offset=OFFSET + 16)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(body[:348] + b"\1\0\0\0" + b"\x10\0\0\0\4\0\0\0comment " + body[352:] + b"padding"))
    assert np.array_equal(read_image(path).data, data)
    path.write_bytes(gzip.compress(content(data, vox_offset=0)))
    assert np.array_equal(read_image(path).data, data)
    path.write_bytes(gzip.compress(content(data, vox_offset=OFFSET + 1)[:352] + b"x" + content(data)[352:]))
    odd = read_image(path).data
    assert np.array_equal(odd, data)
    assert odd.flags.aligned


def test_gzip_members_and_padding(tmp_path):
    """Block-wise compressors write many members, tapes pad with zeros: both are legal."""
    body = content()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(body[:100]) + gzip.compress(body[100:]) + b"\0" * 1000)
    assert np.array_equal(read_image(path).data, random_hu((6, 5, 4)))


def test_the_most_compressible_scan_is_not_taken_for_a_lie(tmp_path):
    data = np.zeros((300, 300, 100), np.int16)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content(data), 9))
    assert data.nbytes / path.stat().st_size > 0.85 * MAX_RATIO
    assert read_image(path).data.shape == data.shape


@pytest.mark.parametrize("version", [nib.Nifti1Header, nib.Nifti2Header])
def test_both_versions_of_the_format(tmp_path, version):
    data = random_hu((6, 5, 4))
    volume = read_image(write(tmp_path / "a.nii.gz", data, header_class=version))
    assert np.array_equal(volume.data, data)
    write_image(tmp_path / "b.nii.gz", volume.data, volume.affine, header=volume.header)
    assert isinstance(nib.load(tmp_path / "b.nii.gz").header, version)


def memory_of(read, path):
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [read_image, read_labels])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("sizes", [(512, 512, 100), (10000, 10000, 10000), (32767, 32767, 32767), (1600, 1600, 1600)])
def test_no_memory_is_spent_on_the_word_of_a_header(tmp_path, sizes, name, read):
    path = write(tmp_path / name, np.zeros((2, 2, 2), np.int16), dim=dims(*sizes))
    assert path.stat().st_size < 400
    assert memory_of(read, path) < 2e6


def test_a_bomb_is_given_up_when_it_exceeds_its_claim(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content(np.zeros((2, 2, 2), np.int16), extra=bytes(100_000_000)), 9))
    assert memory_of(read_image, path) < 5e6  # a few blocks of 1 MiB, not 100 MB


def test_reading_takes_the_memory_of_the_voxels_and_little_more(tmp_path):
    data = random_hu((256, 256, 50))
    path = write(tmp_path / "a.nii.gz", data)
    tracemalloc.start()
    try:
        read_image(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * data.nbytes


def test_a_full_memory_is_the_users_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("smile_runtime.io.nifti_voxels.zeros", full)
    with pytest.raises(InputError, match="memory"):
        read_image(write(tmp_path / "a.nii"))


def test_the_place_of_a_broken_voxel_is_named(tmp_path):
    data = np.zeros((300, 300, 40), np.float32)
    data[7, 8, 39] = np.nan
    with pytest.raises(InputError, match=r"\(7, 8, 39\)"):
        read_image(write(tmp_path / "a.nii", data))


@pytest.mark.parametrize(
    ("data", "fields", "why"),
    [
        (np.full((2, 2, 2), 0.5, np.float32), {}, "whole"),
        (np.full((2, 2, 2), 256, np.int16), {}, "256"),
        (np.full((2, 2, 2), -1, np.int8), {}, "-1"),
        (np.full((2, 2, 2), np.nan, np.float64), {}, "NaN"),
        (np.full((2, 2, 2), 1, np.uint8), {"scl_slope": 0.5}, "whole"),
        (np.full((2, 2, 2), 200, np.uint8), {"scl_inter": 100}, "300"),
    ],
)
def test_what_is_no_label_map(tmp_path, data, fields, why):
    with pytest.raises(InputError, match=why):
        read_labels(write(tmp_path / "a.nii.gz", data, **fields))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("off", [2e-8, -2e-8, 9e-4, -9e-4])
def test_labels_that_were_rescaled_are_rounded(tmp_path, off, dtype):
    labels = np.arange(256).reshape(8, 8, 4)
    path = write(tmp_path / "a.nii.gz", (labels + off).astype(dtype))
    assert np.array_equal(read_labels(path).data, labels)


def test_labels_of_a_slope_that_is_no_short_number_are_rounded(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)
    path = write(tmp_path / "a.nii", labels, scl_slope=1.00000012)  # the float32 after 1
    assert not np.array_equal(np.asarray(nib.load(path).dataobj), labels)
    assert np.array_equal(read_labels(path).data, labels)


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.5"), (2.0011, "2.0011"), (-0.002, "-0.002"), (254.998, "254.998")]
)
def test_a_label_between_two_is_named_with_its_place(tmp_path, value, text):
    data = np.zeros((300, 300, 40))
    data[7, 8, 39] = value
    with pytest.raises(InputError, match=rf"has label value {text} at \(7, 8, 39\), which is no whole number"):
        read_labels(write(tmp_path / "a.nii", data))


def test_a_scaled_label_map_is_fine_while_it_is_whole(tmp_path):
    data = np.full((2, 2, 2), 3, np.uint8)
    assert (
        read_labels(write(tmp_path / "a.nii.gz", data, scl_slope=2, scl_inter=1)).data.tolist()
        == (data * 2 + 1).tolist()
    )


def geometry(path):
    """Everything in a header that says where a voxel lies, as bytes."""
    header = nib.load(path).header
    names = ("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d")
    names += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")
    return [np.asarray(header[name]).tobytes() for name in names] + [header["pixdim"][:4].tobytes()]


def oblique(shear=0.0):
    affine = np.eye(4)
    affine[:3, :3] = rotation(20, -10, 5) @ np.diag([0.7, 0.8, 3.0])
    affine[0, 1] += shear
    affine[:3, 3] = (-123.4, 56.7, -890.1)
    return affine


@pytest.mark.parametrize(("sform", "qform"), [(2, 0), (0, 1), (1, 4), (3, 1), (0, 0)])
def test_a_label_map_on_the_grid_of_a_scan_has_its_geometry_bit_for_bit(tmp_path, sform, qform):
    image = nib.Nifti1Image(random_hu((6, 5, 4)), None)
    image.set_sform(oblique(), sform)
    image.set_qform(oblique() + np.diag([0, 0, 0.0, 0]), qform)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_image(tmp_path / "scan.nii.gz")
    write_labels(tmp_path / "labels.nii.gz", (scan.data > 0).astype(np.uint8), scan.affine, header=scan.header)
    assert geometry(tmp_path / "labels.nii.gz") == geometry(tmp_path / "scan.nii.gz")
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), scan.data > 0)


@pytest.mark.parametrize(("shear", "qform_code"), [(0.0, 1), (0.3, 0)])
def test_an_affine_alone_gives_sform_and_where_possible_qform(tmp_path, shear, qform_code):
    affine = oblique(shear)
    write_image(tmp_path / "a.nii.gz", random_hu((6, 5, 4)), affine)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert np.array_equal(header.get_sform(), affine.astype(np.float32))  # float32 is what the format has
    assert int(header["qform_code"]) == qform_code
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").affine, affine.astype(np.float32))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("layout", ["F", "C", "flipped"])
def test_what_is_written_is_read_whatever_its_layout(tmp_path, layout, name):
    data = random_hu((300, 200, 40))
    data = {"F": np.asfortranarray(data), "C": data, "flipped": data[::-1, :, ::-1]}[layout]
    write_image(tmp_path / name, data, AFFINE)
    assert np.array_equal(read_image(tmp_path / name).data, data)


def test_same_input_same_bytes(tmp_path):
    for name in ("a.nii.gz", "another name.nii.gz"):
        write_labels(tmp_path / name, np.ones((3, 4, 5), np.uint8), AFFINE)
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second


def test_wrong_arguments_are_refused(tmp_path):
    header = read_image(write(tmp_path / "a.nii")).header
    with pytest.raises(ValueError, match="uint8"):
        write_labels(tmp_path / "b.nii", np.zeros((2, 2, 2), np.int16), AFFINE)
    with pytest.raises(ValueError, match=r"\[X, Y, Z\]"):
        write_image(tmp_path / "b.nii", np.zeros((2, 2), np.int16), AFFINE)
    with pytest.raises(ValueError, match="no organ"):
        write_labels(tmp_path / "b.nii", np.full((2, 2, 2), 3, np.uint8), AFFINE, organs=["liver", "spleen"])
    with pytest.raises(ValueError, match="header"):
        write_labels(tmp_path / "b.nii", np.zeros((2, 2, 2), np.uint8), 2 * AFFINE, header=header)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
