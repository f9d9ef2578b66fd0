"""``smile-fast import``: a dataset of ours from a cohort in another layout."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smile_fast.data.importing.build import Built
    from smile_fast.data.importing.plan import Plan

HELP = "make a dataset of a cohort in another layout: a mask file an organ, a folder a case, other formats"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Makes an nnU-Net raw dataset with annotations.csv of SOURCE. Known without options: SOURCE/CASE/ct with masks "
        "in SOURCE/CASE/segmentations/ORGAN (TotalSegmentator, AbdomenAtlas), SOURCE/CASE/imaging with segmentation "
        "(KiTS), imagesTr with labelsTr, whatever the values and regions in dataset.json (nnU-Net, Medical "
        "Segmentation Decathlon). Files may be .nii.gz, .nii, .nrrd or .mha (the last two with SimpleITK: pip install "
        "'smile-fast[formats]'; headers apart from their voxels, .nhdr and .mhd, are not read); OUT has .nii.gz. A "
        "mask is its one value that is not 0; a mask file that is missing says that nobody drew the organ in that "
        "case, an empty one that it was looked for. OUT appears whole "
        "or not at all: after an interruption the same command goes on. No input is changed."
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder of the cohort")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument(
        "--image", metavar="NAME", help="the scan in a case's folder, e.g. ct; or a pattern, e.g. 'img/img{case}'"
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="folder of the masks in a case's folder (. for beside the scan); or a pattern with {case} and {organ}",
    )
    parser.add_argument(
        "--labels", metavar="NAME", help="the label map in a case's folder; or a pattern, e.g. 'label/label{case}'"
    )
    parser.add_argument(
        "--map",
        metavar="FILE",
        type=Path,
        help="table (CSV) that brings labels to organs: columns name,organ or value,organ; no organ: background, void: "
        "not supervised, one organ on several rows: their union",
    )
    parser.add_argument(
        "--order",
        metavar="A,B,...",
        help="where organs overlap, the one named first takes the voxel; else it is refused",
    )
    parser.add_argument("--organs", metavar="A,B,...", help="the organs to take, in this order (default: all)")
    parser.add_argument(
        "--all-annotated",
        action="store_true",
        help="of label maps: every organ was drawn in every case, wherever it exists (else: smile-fast declare OUT)",
    )
    add_making(parser, "its name")


def add_making(parser: argparse.ArgumentParser, names: str) -> None:
    """Declare the options that the commands share which make a dataset of others."""
    parser.add_argument(
        "--without",
        metavar="CASE",
        action="append",
        default=[],
        help=f"leave a case out: {names}, or a glob; repeatable",
    )
    parser.add_argument(
        "--link",
        choices=("hard", "copy", "symbolic"),
        default="hard",
        help="how scans that stay as they are get into OUT: as a second name of the file (on another disk: copied), "
        "copied, or as symbolic links, which break when the source is moved; label maps are always copied (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes (default: one for each CPU that it may use)"
    )


def split_names(option: str | None, name: str) -> tuple[str, ...] | None:
    """The names in an option like liver,pancreas; None where it is not given."""
    from smile_runtime.errors import InputError
    from smile_runtime.names import normal_name

    if option is None:
        return None
    names = tuple(normal_name(part) for part in option.split(","))
    if not all(names):
        raise InputError(f"{name}: '{option}' has an empty name; write e.g. liver,pancreas")
    return names


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.importing.build import build
    from smile_fast.data.importing.folder import Choice, plan_import

    choice = Choice(
        image=args.image,
        masks=args.masks,
        labels=args.labels,
        table=args.map,
        order=split_names(args.order, "--order") or (),
        organs=split_names(args.organs, "--organs"),
        all_annotated=args.all_annotated,
        without=tuple(args.without),
    )
    plan = plan_import(args.source, choice)
    built = build(plan, args.out, link=args.link, workers=args.workers, label="importing cases")
    print_built(args.out, plan, built)


def print_built(out: Path, plan: "Plan", built: "Built") -> None:
    """Print what was made, and what has to be known of it."""
    from smile_fast.cli.prepare import print_empty
    from smile_fast.data.importing.findings import empty_pairs, header_warnings, repeat_warnings
    from smile_fast.supervision.states import State
    from smile_fast.text_table import listed

    if built.was_there:
        print(f"{out}: is there already, made of the same cases and settings; nothing was done")
        return
    for note in plan.notes:
        print(f"note: {note}")
    print_empty(empty_pairs(plan, built.made))
    for warning in (*header_warnings(built.made), *repeat_warnings(plan, built.made)):
        print(f"warning: {warning}", file=sys.stderr)
    splits = [case.split for case in plan.cases]
    print(
        f"{out}: {splits.count('train')} training and {splits.count('test')} held-out cases ({built.new} made, "
        f"{len(splits) - built.new} kept from before), {len(plan.organs)} organs"
    )
    if plan.states is None:
        print(f"nobody has said yet who drew what: smile-fast declare {out}")
        return
    width = max(map(len, plan.organs))
    for organ in plan.organs:
        counts = [sum(row[organ] is state for row in plan.states.values()) for state in State]
        said = ", ".join(f"{state} in {count}" for state, count in zip(State, counts, strict=True) if count)
        print(f"  {organ:<{width}}  {said}")
    bare = [case for case, row in plan.states.items() if all(state is State.MISSING for state in row.values())]
    if bare:
        print(f"note: every organ is missing in {len(bare)} cases ({listed(bare)}), which teach nothing but rounds")
