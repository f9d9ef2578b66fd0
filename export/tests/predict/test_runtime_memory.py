"""Peak memory of whole runs, measured in processes of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from nifti_files import write
from onnx import TensorProto, helper
from tiny_models import hu_input, labels_output, save, threshold_card

from smile_runtime.volume.body import BodyRule

SHAPE = (256, 256, 240)  # voxels: 16 M, so that 5 bytes each are 79 MB
MARGIN = 4 * 2**20  # bytes: blocks of files, zlib, a preview; nothing of it grows with the scan

# The session is warmed up with the batches that the scan will be cut into: what it keeps after that is its own.
SCRIPT = """
import json, sys
import numpy as np
from smile_runtime.predict.predictor import Predictor

def memory(name):  # ru_maxrss would be that of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

model, scan, out, preview = sys.argv[1:5]
predictor = Predictor(model, threads=1)
for batch in (4, 1) * 2:
    predictor.model.labels(np.random.default_rng(0).integers(-1000, 1000, (batch, 1, 256, 256), np.int16))
before = memory("VmRSS")
predictor.predict_file(scan, out, preview_png=preview)
print(json.dumps(memory("VmHWM") - before))
"""

FOLDER = """
import json, sys
import numpy as np
from smile_runtime.predict.predictor import Predictor
from smile_runtime.predict.folder import list_jobs, output_folder, predict_folder
from smile_runtime.predict.run_report import RunReport
from pathlib import Path

def memory(name):  # ru_maxrss would be that of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

model, scans, out, _ = sys.argv[1:5]
predictor = Predictor(model, threads=1)
for batch in (4, 1) * 2:
    predictor.model.labels(np.random.default_rng(0).integers(-1000, 1000, (batch, 1, 256, 256), np.int16))
jobs = list_jobs(Path(scans), Path(out), previews=False)
before = memory("VmRSS")
with output_folder(Path(out)):
    predict_folder(predictor, jobs, RunReport(predictor))
print(json.dumps(memory("VmHWM") - before))
"""

CLEAN = """
import json, sys
import numpy as np
from smile_runtime.volume.components import keep_largest_components

def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def ball(size):
    squares = (np.arange(size) - size / 2) ** 2
    labels = np.zeros((size, size, size), np.uint8)
    for label, height in zip(labels, squares):
        label[height + squares[:, None] + squares < size**2 / 4] = 1
    labels[0, 0, 0] = labels[-1, -1, -1] = 1
    return labels

keep_largest_components(ball(8), (1,))  # scipy is loaded
labels = ball(240)
before = memory("VmRSS")
keep_largest_components(labels, (1,))
assert labels[0, 0, 0] == 0 and labels[120, 120, 120] == 1
print(json.dumps((memory("VmHWM") - before) / labels.size))
"""


def wide_model(path, organs, body=None):
    """Scores of K organs at full size, and the best one: the memory of K channels, inside the session."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [organs, 1, 1, 1], np.linspace(0.5, 1.5, organs).tolist())
    nodes = [
        helper.make_node("Cast", ["hu"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    card = threshold_card(organs=tuple(f"organ {number}" for number in range(organs)), body=body)
    return save(path, nodes, [hu_input()], [labels_output()], card, [weights])


def noisy(shape, dtype, seed=0):
    """Voxels that compress a little, as a scan does: a block of noise, repeated."""
    block = np.random.default_rng(seed).integers(-1000, 1000, (*shape[:2], 8), np.int16)
    return np.tile(block, (1, 1, shape[2] // 8)).astype(dtype)


def growth(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("organs", "name", "dtype", "axes"),
    [
        (3, "scan.nii.gz", np.int16, (0, 1, 2)),
        (100, "scan.nii.gz", np.int16, (0, 1, 2)),
        (3, "scan.nii", np.float32, (0, 1, 2)),
        (3, "scan.nii.gz", np.float32, (2, 1, 0)),  # sagittal slices in the file: no axis lies as it is needed
    ],
)
def test_peak_memory_is_5_bytes_a_voxel_beyond_the_session(tmp_path, organs, name, dtype, axes):
    data = np.transpose(noisy(SHAPE, dtype), axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, source in enumerate(axes):
        affine[source, axis] = (-0.8, -0.8, 1.0)[source]
    scan = write(tmp_path / name, data, affine)
    voxels = data.size
    del data
    model = wide_model(tmp_path / "m.onnx", organs)
    grown = growth(SCRIPT, model, scan, tmp_path / "labels.nii.gz", tmp_path / "preview.png")
    print(f"K = {organs}, {name} of {np.dtype(dtype)}: {grown / voxels:.2f} bytes a voxel")
    assert grown <= 5 * voxels + MARGIN
    assert grown >= 2 * voxels  # the measurement sees the scan itself


@pytest.mark.parametrize("body", [None, BodyRule()])
def test_a_folder_takes_no_more_memory_than_its_largest_scan(tmp_path, body):
    """The largest in the middle: beside it the next one is read and the one before it is written."""
    (tmp_path / "scans").mkdir()
    depths = [SHAPE[2] // 2, SHAPE[2], SHAPE[2] * 3 // 4, SHAPE[2] // 4]
    for number, depth in enumerate(depths):
        data = noisy((*SHAPE[:2], depth), np.int16, number)
        if body is not None:
            data[:64] = data[:, :64] = -1000  # air, a bit more than a third of each slice
        write(tmp_path / "scans" / f"{number}.nii.gz", data)
    model = wide_model(tmp_path / "m.onnx", 3, body=body)
    grown = growth(FOLDER, model, tmp_path / "scans", tmp_path / "out", "")
    print(f"folder: {grown / np.prod(SHAPE):.2f} bytes a voxel of the largest scan")
    assert grown <= 5 * np.prod(SHAPE) + MARGIN
    assert grown >= 2 * np.prod(SHAPE)


def test_the_clean_up_takes_5_bytes_a_voxel_of_the_organs_box():
    taken = growth(CLEAN)
    print(f"clean-up: {taken:.2f} bytes a voxel")
    assert 4 <= taken <= 5.3  # its numbers alone are 4
