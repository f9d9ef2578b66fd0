"""Digests of everything that a commit computes on a fixed list of problems.

    python tests/same_bits/digests.py OUT.json

Run by `python -m tests.same_bits`, once per commit, with that commit's packages on PYTHONPATH. It may therefore use
only what both commits have: the public functions of smile_fast.ops and smile_fast.supervision, the commands, and the
formats of the files that they write.
"""

import contextlib
import hashlib
import inspect
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from smile_fast import ops
from smile_fast.cli.main import main
from smile_fast.supervision import Policy, State, build_tables
from smile_fast.training.config import TrainConfig

STATES = (State.ANNOTATED, State.MISSING, State.ABSENT, State.HIDDEN)
HALF_PRECISION = (torch.float32, torch.bfloat16, torch.float16)
THREADS = (1, 2)
NETWORK = "--backbone resnet18 --width 8 --rates 1 --crop-size 64 --batch-size 4 --seed 3"
if hasattr(TrainConfig, "pixel_size"):  # older commits know no other than this
    NETWORK += " --pixel-size native"
# Trainings of 18 to 36 steps on 6 phantoms of 12 slices; the high rate makes pseudo-labels within that few.
TRAININGS = {
    "baseline": "--method baseline --epochs 1.1 --lr 0.02",
    "smile": "--method smile --epochs 1.1 --lr 0.02",
    "channel-drop": "--method smile --policy channel-drop --channels 3 --output-stride 16 --epochs 1 --optimizer sgd "
    "--lr 0.3",
    "smiler": "--method smiler --rounds 2 --epochs 1 --round-share 0.5 --ema 0.9 --optimizer sgd --lr 0.3",
    "smiler-slice": "--method smiler --rounds 1 --epochs 1 --scope slice --pseudo-negative --optimizer sgd --lr 0.3",
}

Digests = Iterator[tuple[str, str]]


def digest(*arrays: Tensor | NDArray[np.generic]) -> str:
    """SHA-256 of dtypes, shapes and elements."""
    found = hashlib.sha256()
    for array in arrays:
        if isinstance(array, Tensor):
            found.update(f"{array.dtype} {list(array.shape)}".encode())
            array = array.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            found.update(f"{array.dtype} {list(array.shape)}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def problem(
    batch: int, organs: int, size: tuple[int, ...], low: tuple[int, ...], dtype: torch.dtype, policy: Policy
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, K, *low], labels [B, *size] with void and pseudo-labels, and tables; half of the slices are empty."""
    random = np.random.default_rng([batch, organs, *size])
    labels = random.integers(0, organs + 1, (batch, *size), dtype=np.uint8)
    labels[random.random(labels.shape) < 0.5] = 0
    labels[random.random(labels.shape) < 0.1] = 255
    labels[random.random(labels.shape) < 0.1] |= 0x80
    labels[(labels == 0x80) | (labels > 0x80 + organs) & (labels < 255)] = 0
    labels.reshape(batch, size[0], -1)[:, ::2] = 0
    states = [[STATES[(image + organ) % len(STATES)] for organ in range(organs)] for image in range(batch)]
    logits = torch.from_numpy(random.normal(0, 4, (batch, organs, *low))).to(dtype)
    return logits, torch.from_numpy(labels), build_tables(states, policy)


def losses() -> Digests:
    """Both losses and their gradients: formats, reductions, policies, sizes, threads and implementations."""
    shapes = {  # name -> organs, size of the labels, size of the logits
        "K3": (3, (64, 96), (64, 96)),
        "K13 ragged": (13, (37, 53), (37, 53)),
        "K33 3D": (33, (5, 24, 40), (5, 24, 40)),
        "K3 stride 8": (3, (64, 96), (8, 12)),
        "K13 stride 8": (13, (61, 93), (8, 12)),
        "K33 stride 4": (33, (40, 56), (10, 14)),
        "K2 stride 16": (2, (96, 96), (6, 6)),
        "K5 any ratio": (5, (50, 71), (13, 9)),
        "K3 3D": (3, (12, 40, 48), (3, 5, 6)),
        "K2 one pixel": (2, (16, 24), (1, 1)),
    }
    for (name, (organs, size, low)), dtype, policy in product(shapes.items(), HALF_PRECISION, Policy):
        op = ops.masked_bce if size == low else ops.masked_bce_upsampled
        logits, labels, table = problem(3, organs, size, low, dtype, policy)
        for reduction, implementation, threads in product(("mean", "sum", "none"), ("native", "reference"), THREADS):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            loss = op(leaf, labels, table, reduction=reduction, implementation=implementation)
            weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
            (loss * weights).sum().backward()
            key = f"{op.__name__}/{name}/{dtype}/{policy.value}/{reduction}/{implementation}/{threads} threads"
            yield key, digest(loss, leaf.grad)
            leaf.grad = None
            op(leaf, labels, table, reduction=reduction, implementation=implementation).sum().backward()
            yield key + "/plain", digest(leaf.grad)
        if size == low:
            leaf = logits.clone().requires_grad_()
            ops.masked_bce(leaf * 1, labels, table, overwrite_logits=True).backward()
            yield f"masked_bce/{name}/{dtype}/{policy.value}/in place", digest(leaf.grad)


def selections() -> Digests:
    """Selections with ties, NaN, empty segments and every share."""
    random = np.random.default_rng(0)
    for dtype, length, gamma in product(HALF_PRECISION, (0, 1, 100, 70_001, 600_000), (0.0, 0.07, 0.33, 0.66, 1.0)):
        scores = torch.from_numpy(random.normal(0, 3, length).round(2)).to(dtype)
        scores[random.random(length) < 0.01] = float("nan")
        candidates = torch.from_numpy(random.random(length) < 0.4)
        cuts = torch.tensor([0, length // 5, length // 5, length // 2, length])
        for implementation, threads in product(("native", "reference"), THREADS):
            torch.set_num_threads(threads)
            selected = ops.select_top_fraction(scores, candidates, gamma, cuts, implementation=implementation)
            yield f"select_top_fraction/{dtype}/{length}/{gamma}/{implementation}/{threads} threads", digest(selected)


def label_maps() -> Digests:
    """Label maps and pseudo-labels of upsampled logits."""
    random = np.random.default_rng(1)
    scoped = "scope" in inspect.signature(ops.pseudo_labels_upsampled).parameters
    for dtype, stride, organs in product(HALF_PRECISION, (1, 3, 8, 16), (1, 3, 13)):
        height, width = 61, 83
        low = (-(-height // stride), -(-width // stride))
        logits = torch.from_numpy(random.normal(-1, 3, (4, organs + 1, *low))).to(dtype)
        labels = torch.from_numpy(random.integers(0, 2, (4, height, width), dtype=np.uint8))
        for implementation, threads in product(("native", "reference"), THREADS):
            torch.set_num_threads(threads)
            key = f"{dtype}/stride {stride}/K{organs}/{implementation}/{threads} threads"
            for softmax in (False, True):
                given = logits if softmax else logits[:, :organs]
                found = ops.label_map_upsampled(given, height, width, stride, softmax, implementation=implementation)
                yield f"label_map_upsampled/{key}/{'softmax' if softmax else 'sigmoid'}", digest(found)
            for scope in ("volume", "slice"):
                found = ops.pseudo_labels_upsampled(
                    logits[:, :organs].contiguous(),
                    labels,
                    range(organs),
                    0.33,
                    stride,
                    scope if scoped else scope == "slice",
                    implementation=implementation,
                )
                yield f"pseudo_labels_upsampled/{key}/{scope}", digest(*found)


def _without_digest(path: Path) -> str:
    """The name of an array, whether its content stands in the name of its file or not."""
    return str(path.with_name(re.sub("-[0-9a-f]{16}$", "", path.stem)))


def pipeline() -> Digests:
    """A cohort, its store, trainings with relabelling, scores, exported files and what they make of a scan."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run("phantom cohort --train 6 --test 2 --size 64 --slices 12 --seed 5 --workers 1")
        run("simulate-missing cohort --alpha 0.5 --seed 1")
        run("prepare cohort store")
        for path in sorted(Path("store").rglob("*.b2nd")):
            yield _without_digest(path), digest(blosc2.open(str(path), mode="r")[:])
        for name, options in TRAININGS.items():
            run(f"train store {name} {NETWORK} {options}")
            weights = load_file(f"{name}/model.safetensors")
            yield f"train/{name}", digest(*(weights[tensor] for tensor in sorted(weights)))
            for path in sorted(Path(name, "rounds").rglob("*.b2nd")):
                yield _without_digest(path), digest(blosc2.open(str(path), mode="r")[:])
            run(f"evaluate {name}")
            scores = json.loads(Path(name, "evaluation.json").read_text())
            yield f"evaluate/{name}", hashlib.sha256(json.dumps(numbers(scores)).encode()).hexdigest()
            run(f"export {name} {name}.onnx")
            for scan in sorted(Path("cohort/imagesTs").iterdir()):
                labels = Path(f"{name}-{scan.name}")
                subprocess.run(
                    [sys.executable, "-c", PREDICT, f"{name}.onnx", str(scan), "-o", str(labels), "--threads", "1"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                image = nibabel.load(labels)
                yield f"predict/{labels}", digest(np.asarray(image.dataobj), image.affine)


PREDICT = """
import importlib, sys
for name in ("smile_runtime.predict.cli", "smile_runtime.cli"):
    try:
        module = importlib.import_module(name)
        break
    except ImportError:
        pass
sys.exit(module.main(sys.argv[1:]))
"""


def run(command: str) -> None:
    """Run one of our commands in this process, silently unless it fails."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(command.split())
    if status:
        raise SystemExit(f"smile-fast {command}: exit status {status}\n{output.getvalue()}")


def numbers(value: object) -> list[object]:
    """All numbers of a JSON value in the order of its sorted keys, whatever the keys are called around them."""
    if isinstance(value, dict):
        return [number for key in sorted(value) if key != "schema" for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        json.dumps({key: value for part in (losses, selections, label_maps, pipeline) for key, value in part()})
    )
