"""The demonstration on real CT: three sources that each drew other organs become one cohort.

Expects a folder with
    ct_abdomen_3mm/{ct,labels}.nii.gz, labels.json   seven organs, all drawn (TotalSegmentator's test files)
    ct_spleen_512/{ct,labels}.nii.gz                 spleen only (Medical Segmentation Decathlon)
    slices_pancreas_hu/slices.npz                    pancreas only (NIH Pancreas-CT)
    ct_thorax_512/ct.nii.gz                          no labels; segmented at the end (LIDC-IDRI)
"""

import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from smile_fast.demo.timed_commands import Commands, fresh_folder
from smile_runtime.errors import InputError
from smile_runtime.io.files import read_json, write_json
from smile_runtime.io.nifti import Volume, read_image, read_labels, write_image, write_labels

TRAIN = (
    *("--method", "smile", "--backbone", "resnet18", "--width", "16", "--rates", "2", "4", "6"),
    # The pixels of the scan in which all organs are drawn; what is finer is reduced to them.
    *(
        "--pixel-size",
        "3",
        "--crop-size",
        "128",
        "--batch-size",
        "8",
        "--lr",
        "0.003",
        "--epochs",
        "20",
        "--ema",
        "0.98",
    ),
)
WANTED = {"liver": 0.85, "spleen": 0.85}  # Dice on ct_abdomen_3mm, which is a training case


def run_real_demo(out: Path, data: Path) -> int:
    """Merge the sources into a cohort, audit, prepare, train, evaluate, export, and segment every volume without torch.

    Returns:
        0, or 1 when an output's geometry or a Dice is not what it must be.
    """
    started = time.monotonic()
    if not data.is_dir():
        raise InputError(f"{data}: not a folder; give the folder of the real CT volumes")
    out = fresh_folder(out)
    commands = Commands(out)
    cohort, store, run, model = out / "cohort", out / "store", out / "run", out / "model.onnx"
    sources = write_sources(data, out / "sources")
    commands.smile_fast("merge", "merge", *sources, cohort, "--all-annotated", "*", show=True)
    scans = {source.name: cohort / "imagesTr" / f"{source.name}_0000.nii.gz" for source in sources}

    commands.smile_fast("audit", "audit", cohort, show=True)
    commands.smile_fast("prepare", "prepare", cohort, store)
    commands.smile_fast("train", "train", store, run, *TRAIN)
    commands.smile_fast("evaluate", "evaluate", run, "--split", "train", show=True)
    commands.smile_fast("export", "export", run, model)
    thorax = _file(data, "ct_thorax_512/ct.nii.gz")
    geometry = {}
    for name, scan in {**scans, "thorax": thorax}.items():
        prediction = out / "predictions" / f"{name}.nii.gz"
        prediction.parent.mkdir(exist_ok=True)
        commands.smile_predict(f"predict {name}", model, scan, "-o", prediction)
        geometry[name] = same_geometry(scan, prediction)
    commands.smile_fast("report", "report", run, "-o", out / "report.html")

    pairs = read_json(run / "evaluation-train.json", "run the demo again")["pairs"]
    dice = {pair["organ"]: pair["dice"] for pair in pairs if pair["case"] == "abdomen"}
    seconds = {**commands.seconds, "total": round(time.monotonic() - started, 1)}
    write_json(out / "summary.json", {"dice_abdomen": dice, "same_geometry": geometry, "seconds": seconds})
    print("\nDice on ct_abdomen_3mm (a training case): " + ", ".join(f"{o} {d:.3f}" for o, d in dice.items() if d))
    print("geometry kept: " + ", ".join(f"{name} {'yes' if same else 'NO'}" for name, same in geometry.items()))
    print(f"report: {out / 'report.html'}   predictions: {out / 'predictions'}   {seconds['total']:.0f} s in all")
    return 0 if all(geometry.values()) and all(dice[o] >= least for o, least in WANTED.items()) else 1


def write_sources(data: Path, folder: Path) -> list[Path]:
    """Write each source as an nnU-Net raw folder of its own, with one case and the organs that were drawn there.

    Returns:
        The folders: abdomen, spleen, pancreas; each is called as its case.
    """
    described = _file(data, "ct_abdomen_3mm/labels.json")
    organs = tuple(read_json(described, "restore it from a copy").get("labels", ()))
    if not organs:
        raise InputError(f'{described}: names no organ under "labels"; restore it from a copy')
    drawn = {"abdomen": organs, "spleen": ("spleen",), "pancreas": ("pancreas",)}
    volumes = {"abdomen": _abdomen(data), "spleen": _spleen(data), "pancreas": _pancreas(data)}
    for name, (hu, labels, affine) in volumes.items():
        for part in ("imagesTr", "labelsTr"):
            (folder / name / part).mkdir(parents=True)
        write_image(folder / name / "imagesTr" / f"{name}_0000.nii.gz", hu, affine)
        write_labels(folder / name / "labelsTr" / f"{name}.nii.gz", labels, affine, organs=drawn[name])
        write_json(
            folder / name / "dataset.json",
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, **{organ: value for value, organ in enumerate(drawn[name], start=1)}},
                "numTraining": 1,
                "file_ending": ".nii.gz",
            },
        )
    return [folder / name for name in volumes]


def same_geometry(scan: Path, prediction: Path) -> bool:
    """Whether two NIfTI files have the same shape, affine and axis codes."""
    one, two = nib.load(scan), nib.load(prediction)
    return (
        one.shape == two.shape
        and np.array_equal(one.affine, two.affine)
        and nib.aff2axcodes(one.affine) == nib.aff2axcodes(two.affine)
    )


_Source = tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]  # HU and labels [X, Y, Z], affine


def _abdomen(data: Path) -> _Source:
    image, labels = _pair(data, "ct_abdomen_3mm")
    return image.data, labels.data, image.affine


def _spleen(data: Path) -> _Source:
    image, labels = _pair(data, "ct_spleen_512")
    affine = image.affine.copy()
    # The file says that its columns run to the left; its spleen lies at their start and its liver at their end,
    # so they run to the right. A network that learns the side of an organ needs the truth.
    affine[:, 0] *= -1
    affine[0, 3] *= -1
    return image.data, (labels.data > 0).astype(np.uint8), affine


def _pancreas(data: Path) -> _Source:
    path = _file(data, "slices_pancreas_hu/slices.npz")
    try:
        with np.load(path) as slices:
            hu, pancreas = slices["hu"], slices["pancreas"]  # [D, H, W]; rows run from posterior to anterior
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: does not hold hu and pancreas ({error}); restore it from a copy") from None
    # Slices of several patients without their spacing: 0.8 mm pixels are the source's average.
    affine = np.diag([-0.8, 0.8, 1.0, 1.0])
    return np.ascontiguousarray(hu.T), np.ascontiguousarray(pancreas.T).astype(np.uint8), affine


def _pair(data: Path, folder: str) -> tuple[Volume, Volume]:
    return read_image(_file(data, f"{folder}/ct.nii.gz")), read_labels(_file(data, f"{folder}/labels.nii.gz"))


def _file(data: Path, name: str) -> Path:
    path = data / name
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; put it there, the demonstration on real CT needs it")
    return path
