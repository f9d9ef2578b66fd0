"""A folder laid out as a MONAI Bundle: metadata, inference config, model, README."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import smile_fast
from smile_runtime.io.files import write_json
from smile_runtime.model.exported import INPUT, LABELS, PIXEL_SPACING, PROBABILITIES, ModelCard

MONAI_VERSION = "1.6.1"  # with which the inference config was run
_CHANNELS = "neighbouring slices from inferior to superior, the middle one is segmented"


def write_bundle(folder: Path, content: bytes, card: ModelCard, probabilities: str | None, name: str) -> None:
    """Write a bundle into an empty folder.

    It has no models/model.pt: a state dictionary is a pickle, and running one needs this package's network.

    Args:
        folder: where.
        content: of the ONNX file.
        card: what the file says about itself.
        probabilities: dtype of its second output, if it has one.
        name: of the model.
    """
    for child in ("configs", "models", "docs"):
        (folder / child).mkdir()
    (folder / "models" / "model.onnx").write_bytes(content)
    write_json(folder / "configs" / "metadata.json", metadata(card, probabilities, name))
    write_json(folder / "configs" / "inference.json", inference_config())
    (folder / "docs" / "README.md").write_text(readme(card, name), encoding="utf-8")


def metadata(card: ModelCard, probabilities: str | None, name: str) -> dict[str, Any]:
    """What configs/metadata.json says.

    Source: the MONAI Bundle Specification.
    """
    organs = {str(value): organ for value, organ in enumerate(card.organs, start=1)}
    axial = {"spatial_shape": ["*", "*"], "is_patch_data": False, "modality": "CT"}
    hu = {"type": "image", "format": "hounsfield", "num_channels": card.channels, "dtype": "int16"} | axial
    inputs: dict[str, Any] = {INPUT: hu | {"value_range": [-32768, 32767], "channel_def": {"0": _CHANNELS}}}
    if card.pixel_size is not None:
        lengths = {"type": "tuples", "format": "mm", "num_channels": 1, "dtype": "float64", "spatial_shape": [2]}
        inputs[PIXEL_SPACING] = (
            axial | lengths | {"value_range": [0, 1000], "channel_def": {"0": "side of a pixel along rows and columns"}}
        )
    labels = {"type": "image", "format": "segmentation", "num_channels": 1, "dtype": "uint8"} | axial
    outputs = {
        LABELS: labels | {"value_range": [0, len(card.organs)], "channel_def": {"0": "background"} | organs},
    }
    if probabilities is not None:
        found = {"type": "probabilities", "format": "classes", "num_channels": len(card.organs), "dtype": probabilities}
        outputs[PROBABILITIES] = found | axial
        outputs[PROBABILITIES] |= {
            "value_range": [0, 255 if probabilities == "uint8" else 1],
            "channel_def": {str(channel): organ for channel, organ in enumerate(card.organs)},
        }
    return {
        "version": smile_fast.__version__,
        "changelog": {smile_fast.__version__: "exported by smile-fast"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": importlib.metadata.version("torch"),
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {
            package: importlib.metadata.version(package) for package in ("onnxruntime", "nibabel")
        }
        | {"smile-fast-runtime": smile_fast.__version__},
        "name": name,
        "task": f"CT segmentation of {', '.join(card.organs)}",
        "description": "A 2D DeepLab v3 on CT slices, trained on partially annotated scans with smile-fast. Its file "
        "takes HU and gives a label map: windowing, upsampling and decision are part of it.",
        "authors": "not stated",
        "copyright": "not stated",
        "intended_use": "research; no medical device",
        "data_type": "nibabel",
        "network_data_format": {
            "inputs": inputs,
            "outputs": outputs,
        },
        "smile_fast": json.loads(card.to_json()),
    }


def inference_config() -> dict[str, Any]:
    """What configs/inference.json says: `smile-predict` on a folder, where a bad scan is in no other's way.

    `options` are further arguments of the command. With bad scans the run ends with its status, after all the others.
    """
    return {
        "imports": ["$import sys", "$from smile_runtime.predict.cli import main"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "model_path": "$@bundle_root + '/models/model.onnx'",
        "options": [],
        "run": ["$main([@model_path, @dataset_dir, '-o', @output_dir, *@options]) and sys.exit(2)"],
    }


def readme(card: ModelCard, name: str) -> str:
    """What docs/README.md says."""
    organs = "\n".join(f"| {value} | {organ} |" for value, organ in enumerate(card.organs, start=1))
    return f"""\
# {name}

Segments CT volumes in NIfTI format. `models/model.onnx` ({card.precision}) takes HU and gives a label map.

| value | organ |
|---|---|
{organs}

With `smile-fast-runtime` alone:

    smile-predict models/model.onnx scan.nii.gz -o labels.nii.gz

With MONAI, which needs `smile-fast-runtime` beside it:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir LABELS

Both take a folder of `.nii` and `.nii.gz`, and go on after a bad scan.

The file was compared with the network that it was made from: {card.parity["identical_share"]:.4%} of
{card.parity["voxels"]} voxels have the same label. How it was trained stands in `configs/metadata.json`, under
`smile_fast`. There is no `model.pt`: it would be a pickle.
"""
