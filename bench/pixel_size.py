"""What the size of a scan's pixels costs in Dice: the same anatomy in five pixel sizes, trained and segmented.

python -m bench.pixel_size OUT     # cohorts, trainings and scores in OUT; -> bench/results/pixel_size.json, README.md

Phantoms are made once in fine pixels and resampled to 0.5, 0.75, 1, 1.5 and 2 times those of the training. Three runs
with full annotation and the same steps: cases of one pixel size, with and without a network of one pixel size, and
cases of all five. Every run is scored on the held-out cases in each size.
"""

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from bench.machine import cpu
from smile_fast.data.annotations import read_annotations, write_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.demo.timed_commands import Commands, fresh_folder
from smile_runtime.io.files import atomic_path, read_json, write_json

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "bench" / "results" / "pixel_size.json"
BEGIN, END = "<!-- pixels:begin -->\n", "<!-- pixels:end -->\n"

FINE, NATIVE = 320, 160  # pixels of a slice: as the phantoms are made, and as training has them
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the training's pixels
COHORTS = {"uniform": (1.0,), "mixed": SCALES}  # pixels of the training cases in turn
RUNS = {
    "one size, brought to it": ("uniform", "auto"),
    "all sizes, brought to one": ("mixed", "auto"),
    "one size, native": ("uniform", "native"),
}
PHANTOM = ("--train", "40", "--test", "8", "--size", str(FINE), "--slices", "24")
TRAIN = (
    *("--backbone", "resnet18", "--width", "16", "--rates", "3", "6", "9", "--batch-size", "8"),
    *("--lr", "0.003", "--epochs", "5", "--ema", "0.98"),
)


def make_cohort(fine: Path, out: Path, scales: tuple[float, ...]) -> None:
    """Resample the training cases to some pixel sizes in turn, and every held-out case to all of them."""
    dataset = RawDataset.open(fine)
    declared = read_annotations(fine / "annotations.csv", dataset.names(), dataset.organs)
    states, training = {}, 0
    for case in dataset.cases:
        split = "Tr" if case.split == "train" else "Ts"
        sizes = SCALES if case.split == "test" else (scales[training % len(scales)],)
        training += case.split == "train"
        for scale in sizes:
            name = case.name if case.split == "train" else f"{case.name}_x{round(100 * scale)}"
            for source, target, order in (
                (case.image, out / f"images{split}" / f"{name}_0000.nii.gz", "HU"),
                (case.label, out / f"labels{split}" / f"{name}.nii.gz", "labels"),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                resample(source, target, round(NATIVE / scale), labels=order == "labels")
            states[name] = declared[case.name]
    shutil.copy(fine / "dataset.json", out)
    write_annotations(out / "annotations.csv", states, list(states), dataset.organs)


def resample(source: Path, target: Path, size: int, *, labels: bool) -> None:
    """Write a volume with so many pixels on both axes of its slices; labels by the largest share of a pixel."""
    volume = nib.load(source)
    data = np.asarray(volume.dataobj)
    depth = next(axis for axis, extent in enumerate(data.shape) if extent != FINE)
    slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(data, depth, 0)).astype(np.float32))  # [D, H, W]
    values = np.unique(data) if labels else [None]
    channels = torch.stack([slices if value is None else (slices == value).float() for value in values], dim=1)
    seen = functional.interpolate(channels, (size, size), mode="bilinear", antialias=True)  # [D, values, H, W]
    found = np.asarray(values, np.uint8)[seen.argmax(dim=1)] if labels else seen[:, 0].round().short().numpy()
    affine = volume.affine.copy()
    for axis in {0, 1, 2} - {depth}:
        affine[:3, 3] += affine[:3, axis] * (FINE / size - 1) / 2  # the centre of the first pixel
        affine[:3, axis] *= FINE / size
    image = nib.Nifti1Image(np.moveaxis(found, 0, depth), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, target)


def measure(out: Path) -> dict[str, Any]:
    """Make the cohorts, train, and score: run -> scale -> organ -> mean Dice of the held-out cases."""
    out = fresh_folder(out)
    commands = Commands(out)
    commands.smile_fast("phantom", "phantom", out / "fine", *PHANTOM)
    for cohort, scales in COHORTS.items():
        make_cohort(out / "fine", out / cohort, scales)
        commands.smile_fast(f"prepare {cohort}", "prepare", out / cohort, out / f"{cohort}-store")
    folders = {run: out / run.replace(",", "").replace(" ", "-") for run in RUNS}
    commands.in_parallel(
        {
            f"train {run}": ("train", out / f"{cohort}-store", folders[run], "--pixel-size", pixel_size, *TRAIN)
            for run, (cohort, pixel_size) in RUNS.items()
        }
    )
    commands.in_parallel({f"evaluate {run}": ("evaluate", path, "--no-surface") for run, path in folders.items()})
    return {run: by_scale(read_json(path / "evaluation.json", "measure again")) for run, path in folders.items()}


def by_scale(evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scale -> organ -> mean Dice."""
    found: dict[str, dict[str, list[float]]] = {}
    for pair in evaluation["pairs"]:
        if pair["dice"] is None:  # the truth does not hold the organ
            continue
        scale = int(pair["case"].rpartition("_x")[2]) / 100
        found.setdefault(f"{scale:g}", {}).setdefault(pair["organ"], []).append(pair["dice"])
    return {
        scale: {organ: round(float(np.mean(dice)), 4) for organ, dice in organs.items()}
        for scale, organs in sorted(found.items())
    }


def table(recorded: dict[str, Any]) -> str:
    """The figures as Markdown."""
    runs = recorded["dice"]
    scales = list(next(iter(runs.values())))
    organs = list(runs[next(iter(runs))][scales[0]])
    lines = [
        f"| Dice of {', '.join(organs)}; pixels of the scan / those of the training | {' | '.join(scales)} |",
        "|---|" + "---|" * len(scales),
    ]
    for run, found in runs.items():
        cells = [", ".join(f"{found[scale][organ]:.3f}" for organ in organs) for scale in scales]
        lines.append(f"| trained on {run} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Phantoms, full annotation; {recorded['cpu']}, commit {recorded['commit']}.", ""])


def main() -> None:
    """Measure, record, and write the README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the cohorts and runs; new, or of this program"
    )
    dice = measure(parser.parse_args().out)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    write_json(RECORD, {"commit": commit.stdout.strip(), "cpu": cpu(), "dice": dice})
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    text = table(read_json(RECORD, "measure again"))
    with atomic_path(readme) as path:
        path.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
