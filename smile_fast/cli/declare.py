"""``smile-fast declare``: draft annotations.csv."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smile_fast.data.declare import Draft
    from smile_fast.supervision.states import State

HELP = "draft annotations.csv from the label maps, asking about what they do not show"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "An organ with voxels in a case is drafted as annotated. An organ without any is missing (not drawn) "
        "or absent (it is not there): the label map looks the same, so you have to say which. On a terminal you are "
        "asked; elsewhere a draft with '?' is written for you to fill in. --set says it of as many cases as a pattern "
        "matches, also of organs with voxels: those that were drawn in part are missing."
    )
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="nnU-Net raw folder")
    parser.add_argument(
        "--set",
        metavar="PATTERN:ORGAN=STATE",
        action="append",
        default=[],
        help="state (annotated, missing, absent, hidden) of an organ, or of each (*), in the cases whose names match a "
        "glob, e.g. 'site_b_*:pancreas=missing'; may be repeated, later ones win",
    )
    assume = parser.add_mutually_exclusive_group()
    assume.add_argument("--assume-missing", action="store_true", help="an organ without voxels was not drawn")
    assume.add_argument("--assume-absent", action="store_true", help="an organ without voxels is not in the body")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: DATASET/annotations.csv")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--update",
        action="store_true",
        help="keep what the file declares already and draft the rest, e.g. after cases were added; --set goes first",
    )
    again.add_argument("--force", action="store_true", help="replace existing declarations and drafts")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.annotations import FILE_NAME, read_declared, write_annotations
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.declare import Rule, draft, draft_path
    from smile_fast.supervision.states import State
    from smile_runtime.errors import InputError
    from smile_runtime.io.files import check_writable, refuse_overwrite

    dataset = RawDataset.open(args.dataset)
    output: Path = args.output or args.dataset / FILE_NAME
    unfinished = draft_path(output)
    if output.exists() and not (args.force or args.update):
        raise InputError(
            f"{output}: already there; edit it, or pass --update to draft what it does not declare yet, or --force to "
            "draft all of it again"
        )
    for file in (output, unfinished):
        refuse_overwrite(file, dataset.files())
    check_writable(output)

    rules = [Rule.read(option, dataset) for option in args.set]
    declared = read_declared(output, dataset.names(), dataset.organs, others=True) if args.update else {}
    drafted = draft(dataset).keep(declared)
    if args.update:
        pairs = len(dataset.cases) * len(dataset.organs)
        print(f"kept the state of {len(declared)} of {pairs} (case, organ) pairs")
    _print_summary(drafted)
    for rule in rules:
        drafted = drafted.assign(rule)
        print(f"set {rule.option}: {len(rule.pairs)} (case, organ) pairs")
    _print_doubts(drafted)
    answers: dict[str, State] = {}
    if args.assume_missing or args.assume_absent:
        assumed = State.MISSING if args.assume_missing else State.ABSENT
        answers = dict.fromkeys(dataset.organs, assumed)
    elif drafted.undecided and _interactive() and not args.yes:
        answers = _ask(drafted)
    decided = drafted.decide(answers)
    if decided.undecided:
        if unfinished.exists() and not args.force:
            raise InputError(
                f"{unfinished}: already there; replace every '?' in it and rename it to {output.name}, "
                "or pass --force to draft it again"
            )
        write_annotations(unfinished, decided.states, dataset.names(), dataset.organs)
        print(f"wrote {unfinished}: a draft")
        pairs = sum(map(len, decided.undecided.values()))
        raise InputError(
            f"{unfinished}: {pairs} (case, organ) pairs have no voxel and are undecided; replace every '?' in it by "
            f"missing or absent and rename it to {output.name}, or pass --assume-missing or --assume-absent"
        )
    if _interactive() and not args.yes and not _confirm(f"Write {output}?"):
        raise InputError(f"{output}: not confirmed, not written; edit the label maps or write the file by hand")
    write_annotations(output, decided.declarations(), dataset.names(), dataset.organs)
    if unfinished.exists():
        print(f"{unfinished} is no longer needed")
    print(f"wrote {output}: {_totals(decided)}")


def _print_doubts(drafted: "Draft") -> None:
    """Name the organs that are called annotated, though their slices have gaps."""
    from smile_fast.text_table import listed

    for organ, cases in drafted.doubtful.items():
        print(
            f"note: {organ} is not in every slice between its first and its last in {len(cases)} cases "
            f"({listed(cases)}); where it was drawn in part, say so: --set '{cases[0]}:{organ}=missing'"
        )


def _print_summary(drafted: "Draft") -> None:
    """What has voxels, and per organ what is undecided; readable for a thousand cases."""
    from smile_fast.text_table import listed

    cases = list(drafted.states)
    organs = list(drafted.states[cases[0]])
    undecided = drafted.undecided
    width = max(map(len, organs))
    print(f"{len(cases)} cases, {len(organs)} organs")
    for organ in organs:
        gone = undecided.get(organ, [])
        counts = Counter(str(state) for states in drafted.states.values() if (state := states[organ]) is not None)
        said = counts.pop("annotated", 0)
        line = f"  {organ:<{width}}  annotated in {said}"
        line += "".join(f", {state} in {count}" for state, count in counts.most_common())
        if gone:
            line += f"; missing or absent? in {len(gone)}: {listed(gone)}"
        print(line)
    print(
        "An organ with voxels is taken to be drawn wherever it exists; declare it missing where it was drawn in part."
    )


def _ask(drafted: "Draft") -> "dict[str, State]":
    """Ask about each organ with undecided cases; an empty answer leaves it open."""
    from smile_fast.supervision.states import State

    answers = {}
    for organ, cases in drafted.undecided.items():
        question = f"{organ}, no voxel in {len(cases)} cases: [m]issing, [a]bsent, or Enter for '?' in a draft? "
        while (answer := _answer(question)) not in ("", "m", "missing", "a", "absent"):
            print("Please answer m, a or Enter.")
        if answer:
            answers[organ] = State.MISSING if answer.startswith("m") else State.ABSENT
    return answers


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _confirm(question: str) -> bool:
    return _answer(f"{question} [y/N] ") in ("y", "yes")


def _answer(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:  # Ctrl-D
        print()
        return ""


def _totals(decided: "Draft") -> str:
    counts = Counter(state for states in decided.declarations().values() for state in states.values())
    return ", ".join(f"{count} {state.value}" for state, count in counts.most_common())
