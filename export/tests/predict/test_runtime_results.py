"""What is written beside a label map: organ tables, volumes, a preview; and the clean-up of components."""

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from itertools import pairwise

import numpy as np
import pytest
from nifti_files import random_hu, write
from test_runtime_imports import WITHOUT_TORCH

from smile_runtime.errors import InputError
from smile_runtime.io.nifti import read_labels
from smile_runtime.io.organ_tables import colour, itksnap_table, slicer_table, write_table
from smile_runtime.predict.cli import main
from smile_runtime.predict.preview import fingerprint, preview, shown_labels, write_png
from smile_runtime.volume.components import chosen_values, keep_largest_components
from smile_runtime.volume.organ_volumes import volumes_ml, write_volumes

ORGANS = ("liver", "left kidney", 'the "other" one')


def test_colours_tell_all_organs_apart():
    colours = [colour(value) for value in range(1, 127)]
    assert len(set(colours)) == 126
    for one, other in pairwise(colours[:14]):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 100  # neighbouring values


def test_itk_snap_reads_index_colour_opacity_visibilities_and_quoted_name():
    lines = itksnap_table(ORGANS).splitlines()
    assert "# ITK-SnAP Label Description File" in lines
    rows = [line.split(maxsplit=7) for line in lines if not line.startswith("#")]
    assert [(int(row[0]), row[7]) for row in rows] == [
        (0, '"Clear Label"'),
        (1, '"liver"'),
        (2, '"left kidney"'),
        (3, "\"the 'other' one\""),
    ]
    assert tuple(map(int, rows[1][1:4])) == colour(1)
    assert rows[1][4:7] == ["1", "1", "1"]


def test_slicer_reads_index_name_and_colour_without_spaces_in_names():
    lines = slicer_table(ORGANS).splitlines()
    assert lines[0].startswith("# Color table file")
    assert lines[1] == "# 4 values"
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [row[:2] for row in rows[:3]] == [["0", "background"], ["1", "liver"], ["2", "left_kidney"]]
    assert all(len(row) == 6 and all(0 <= int(n) <= 255 for n in row[2:]) for row in rows)


def test_a_table_has_the_format_of_its_name(tmp_path):
    for name, start in (("a.label.txt", "####"), ("a.ctbl", "# Color"), ("a.json", "{")):
        write_table(tmp_path / name, ORGANS)
        assert (tmp_path / name).read_text().startswith(start)
    with pytest.raises(InputError, match=r"a\.xml: not a name for an organ table; give one that ends in \.txt"):
        write_table(tmp_path / "a.xml", ORGANS)


def test_the_json_table_is_the_labels_of_an_nnu_net_dataset(tmp_path):
    write_table(tmp_path / "organs.json", ("bone", "metal"))
    assert json.loads((tmp_path / "organs.json").read_text()) == {"labels": {"background": 0, "bone": 1, "metal": 2}}


def test_volumes_are_counted_voxels():
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 0] = 1
    labels[1, 2, :3] = 2
    assert volumes_ml(labels, ORGANS, 500.0) == {"liver": 2.0, "left kidney": 1.5, 'the "other" one': 0.0}


def test_volumes_as_csv_and_json(tmp_path):
    volumes = {"a, b.nii.gz": {"liver": 1.25, "left kidney": 0.0}, "c.nii": {"liver": 2.0, "left kidney": 1 / 3}}
    write_volumes(tmp_path / "v.csv", volumes)
    assert (tmp_path / "v.csv").read_text().splitlines() == [
        "scan,organ,ml",
        '"a, b.nii.gz",liver,1.250',
        '"a, b.nii.gz",left kidney,0.000',
        "c.nii,liver,2.000",
        "c.nii,left kidney,0.333",
    ]
    write_volumes(tmp_path / "v.json", volumes)
    assert json.loads((tmp_path / "v.json").read_text()) == {"unit": "ml", "volumes": volumes}


def decode_png(content):
    """The pixels of an RGB picture whose rows are not filtered, every checksum verified."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = {}, 8
    while position < len(content):
        (size,) = struct.unpack(">I", content[position : position + 4])
        kind, body = content[position + 4 : position + 8], content[position + 8 : position + 8 + size]
        assert struct.unpack(">I", content[position + 8 + size : position + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        position += 12 + size
    assert list(chunks) == [b"IHDR", b"tEXt", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_a_png_holds_its_pixels(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (13, 7, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", picture, fingerprint("of some labels"))
    assert np.array_equal(decode_png((tmp_path / "a.png").read_bytes()), picture)
    assert shown_labels(tmp_path / "a.png") == hashlib.sha256(b"of some labels").hexdigest()


def test_the_preview_shows_the_slices_with_most_organ():
    slices, labels = np.full((10, 40, 60), 40, np.int16), np.zeros((10, 40, 60), np.uint8)
    slices[7] = 240  # white
    labels[7, 20:30, 5:15] = 1
    labels[3, 25, 50] = 2
    picture = preview(slices, labels, (4.0, 1.0, 1.0), (-160.0, 240.0))
    assert picture.shape == (40, 60 + 8 + 60, 3)  # the coronal slice: 10 slices of 4 mm
    axial, coronal = picture[:, :60], picture[:, 68:]
    assert (axial[0, 0] == 255).all()  # slice 7
    assert not (axial[25, 10] == axial[25, 10, 0]).all()  # coloured
    assert (coronal[8:12, 0] == 255).all()  # slice 7 is the third from above: superior is on top
    assert coronal[10, 10].tolist() == axial[25, 10].tolist()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2000, 9), (1, 5, 1500)])
def test_a_preview_of_any_shape_is_of_bounded_size(shape):
    picture = preview(random_hu(shape), np.zeros(shape, np.uint8), (1.0, 1.0, 1.0), (-160.0, 240.0))
    assert max(picture.shape) <= 2 * 768 + 8


def test_the_largest_component_stays():
    labels = np.zeros((6, 8, 9), np.uint8)
    labels[0, :2, :2] = 1
    labels[3:5, 4:7, 4:8] = 1
    labels[5, 7, 8] = 1  # touches by its corner only
    labels[0, 7, :3] = labels[2, 7, :3] = 2  # equally large: the first stays
    labels[1, 0, 8] = 3
    expected = labels.copy()
    expected[0, :2, :2] = expected[5, 7, 8] = expected[2, 7, :3] = 0
    part = labels.copy()
    keep_largest_components(labels, (1, 2, 3, 9))
    assert np.array_equal(labels, expected)
    keep_largest_components(part, (2,))
    assert np.count_nonzero(part == 1) == 4 + 24 + 1
    assert np.count_nonzero(part == 2) == 3


def test_organs_are_chosen_by_name():
    assert chosen_values(None, ORGANS) == ()
    assert chosen_values("all", ORGANS) == (1, 2, 3)
    assert chosen_values("left kidney, liver", ORGANS) == (1, 2)
    for asked, known in (("R\u00f6hre", "Ro\u0308hre"), (" Ro\u0308hre ", "R\u00f6hre")):
        assert chosen_values(asked, ("liver", known)) == (2,)
    with pytest.raises(InputError, match="of 'spleen': the model has no such organ; name all, or some of liver"):
        chosen_values("liver,spleen", ORGANS)


def test_all_results_of_one_scan(tmp_path, threshold_model):
    hu = np.full((12, 10, 5), -1000, np.int16)
    hu[1:4, 1:4, 1:3] = hu[8, 8, 4] = 200
    scan = write(tmp_path / "scan.nii.gz", hu)
    out = tmp_path / "out"
    out.mkdir()
    names = {"--volumes": "v.csv", "--organ-table": "o.json", "--report": "run.json"}
    options = [text for option, name in names.items() for text in (option, str(out / name))]
    arguments = [str(threshold_model), str(scan), "-o", str(out / "a.nii.gz"), "--preview", *options]
    assert main([*arguments, "--largest-component", "bone"]) == 0
    assert {path.name for path in out.iterdir()} == {"a.nii.gz", "a.png", *names.values()}
    assert np.count_nonzero(read_labels(out / "a.nii.gz").data) == 3 * 3 * 2
    assert json.loads((out / "run.json").read_text())["settings"]["largest_component"] == ["bone"]
    assert decode_png((out / "a.png").read_bytes()).shape[2] == 3


def test_the_clean_up_says_what_it_needs_where_scipy_is_missing(tmp_path, threshold_model):
    script = "import importlib.util; importlib.util.find_spec = lambda name: None\n"
    script += "from smile_runtime.predict.cli import main; sys.exit(main(sys.argv[1:]))"
    scan = write(tmp_path / "scan.nii.gz")
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_TORCH + script, str(threshold_model), str(scan)),
            *("-o", str(tmp_path / "a.nii"), "--largest-component", "all"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "scipy is not installed; install it, or smile-fast-runtime with the extra [clean]" in done.stderr
    assert not (tmp_path / "a.nii").exists()
