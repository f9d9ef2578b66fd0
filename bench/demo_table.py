"""Writes the README's table and picture from a finished demo, so that no figure there is typed by hand.

python -m bench.demo_table --record demo    # demo -> bench/results/demo.json (with machine and commit), docs/slice.png
python -m bench.demo_table                  # bench/results/demo.json -> README.md
"""

import argparse
import base64
import io
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from smile_fast.demo.phantoms import TITLES
from smile_fast.report.collect import collect, open_runs
from smile_fast.report.gallery import prediction_rows
from smile_fast.report.palette import organ_colours
from smile_runtime.io.files import atomic_path, write_json

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "bench" / "results" / "demo.json"
PICTURE = ROOT / "docs" / "slice.png"
PANEL_WIDTH, CAPTION_HEIGHT, GAP = 300, 30, 6  # pixels
BEGIN, END = "<!-- demo:begin -->\n", "<!-- demo:end -->\n"


def record(demo: Path) -> None:
    """Keep a demo's figures, with what they were measured on: the commit is that of the checkout the demo stands in."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=demo, capture_output=True, text=True, check=True
    ).stdout.strip()
    summary = json.loads((demo / "summary.json").read_text())
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()}
    write_json(RECORD, {"commit": commit, "machine": machine, **summary})


def picture(demo: Path) -> None:
    """The best held-out case of the report: its truth, and what every run makes of it, side by side."""
    records = collect(open_runs([demo / run for run in ("full", "baseline", "smile", "smiler")]))
    row = prediction_rows(records, organ_colours(records[0].run.organs))[0]
    images = [Image.open(io.BytesIO(base64.b64decode(panel.picture.split(",")[1]))) for panel in row.panels]
    height = round(images[0].height * PANEL_WIDTH / images[0].width)
    canvas = Image.new("RGB", (len(images) * (PANEL_WIDTH + GAP) - GAP, height + CAPTION_HEIGHT), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=17)
    for number, (image, panel) in enumerate(zip(images, row.panels, strict=True)):
        left = number * (PANEL_WIDTH + GAP)
        canvas.paste(image.convert("RGB").resize((PANEL_WIDTH, height), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left + 2, height + 5), TITLES.get(panel.title, panel.title), fill="black", font=font)
    with atomic_path(PICTURE) as path:
        canvas.save(path)


def table(recorded: dict[str, Any]) -> str:
    """The figures as Markdown."""
    organs = list(recorded["per_organ"]["full"])
    lines = [f"| Dice on held-out cases | {' | '.join(organs)} | mean |", "|---|" + "---|" * (len(organs) + 1)]
    for name, mean in recorded["mean_dice"].items():
        cells = " | ".join(f"{recorded['per_organ'][name][organ]:.3f}" for organ in organs)
        lines.append(f"| {TITLES[name]} | {cells} | **{mean:.3f}** |")
    machine = recorded["machine"]
    minutes = recorded["seconds"]["total"] / 60
    lines.append(
        f"\n{machine['cores']} cores of {machine['cpu']}, commit {recorded['commit']}, {minutes:.0f} minutes after the "
        "installation."
    )
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Record, or write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="DEMO", help="folder of a finished demo")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        picture(arguments.record)
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    with atomic_path(readme) as path:
        path.write_text(before + BEGIN + table(json.loads(RECORD.read_text())) + END + after)


if __name__ == "__main__":
    main()
