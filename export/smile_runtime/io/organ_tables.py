"""What the label values mean, in the formats of the programs that show label maps."""

import colorsys
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, write_json

_GOLDEN_ANGLE = 0.381966  # of a turn: neighbouring values get hues far apart, however many there are


def colour(value: int) -> tuple[int, int, int]:
    """Red, green, blue (0..255) of a label value: always the same one."""
    hue = (value - 1) * _GOLDEN_ANGLE % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[value // 8 % 2], (1.0, 0.8)[value // 16 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def itksnap_table(organs: Sequence[str]) -> str:
    """ITK-SNAP's label description file: index, colour, opacity, two visibilities, quoted name.

    ITK-SNAP opens it under Segmentation, Import Label Descriptions.
    """
    lines = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# File format:",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
        '    0     0    0    0        0  0  0    "Clear Label"',
    ]
    for value, organ in enumerate(organs, 1):
        red, green, blue = colour(value)
        name = organ.replace('"', "'")  # the format cannot quote a quotation mark
        lines.append(f'{value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{name}"')
    return "\n".join(lines) + "\n"


def slicer_table(organs: Sequence[str]) -> str:
    """3D Slicer's colour table: index, name without spaces, red, green, blue, opacity.

    Source: https://slicer.readthedocs.io/en/5.2/developer_guide/modules/colors.html
    """
    lines = ["# Color table file smile-fast", f"# {len(organs) + 1} values", "0 background 0 0 0 0"]
    for value, organ in enumerate(organs, 1):
        lines.append(" ".join(map(str, (value, "_".join(organ.split()), *colour(value), 255))))
    return "\n".join(lines) + "\n"


_TEXTS: dict[str, Callable[[Sequence[str]], str]] = {".ctbl": slicer_table, ".txt": itksnap_table}


def check_table(path: str | os.PathLike[str]) -> None:
    """Refuse a table whose suffix is not that of a known format.

    Raises:
        InputError: The name ends in none of .txt, .ctbl and .json.
    """
    if Path(path).suffix.lower() not in (*_TEXTS, ".json"):
        raise InputError(
            f"{path}: not a name for an organ table; give one that ends in .txt (ITK-SNAP), .ctbl (3D Slicer) or .json "
            "(nnU-Net)"
        )


def write_table(path: str | os.PathLike[str], organs: Sequence[str]) -> None:
    """Write an organ table, atomically, in the format of its suffix.

    Args:
        path: Ends in ``.txt`` (ITK-SNAP), ``.ctbl`` (3D Slicer) or ``.json`` (as in an nnU-Net ``dataset.json``).
        organs: Names; label value k + 1 is organs[k].

    Raises:
        InputError: ``path`` has another name or cannot be written.
    """
    check_table(path)
    if Path(path).suffix.lower() == ".json":
        write_json(path, {"labels": {"background": 0} | {organ: value for value, organ in enumerate(organs, 1)}})
        return
    with atomic_path(path) as temporary:
        temporary.write_text(_TEXTS[Path(path).suffix.lower()](organs), encoding="utf-8")
