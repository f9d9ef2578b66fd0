"""``smile-fast simulate-missing``: hide a share of the annotations."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smile_runtime.errors import InputError

if TYPE_CHECKING:
    from smile_fast.data.annotations import Declarations

HELP = "declare a share of the annotations hidden, to study missing annotations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Per organ, a share alpha of the training cases in which it is annotated becomes hidden: training behaves as "
        "if it were not drawn, evaluation still knows. With --by-source an organ is hidden in all training cases of "
        "some sources, by DATASET/sources.csv: alpha is then a share of the (source, organ) pairs. Images and label "
        "maps are not touched; --alpha 0 restores all."
    )
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="nnU-Net raw folder with annotations.csv")
    parser.add_argument("--alpha", type=float, help="share to hide, 0..1; one case or source an organ remains")
    parser.add_argument("--by-source", action="store_true", help="hide an organ in all training cases of a source")
    parser.add_argument(
        "--source-organs",
        metavar="ORGANS",
        help="instead of --alpha, what each source draws: 'source_a=liver;source_b=pancreas,stomach'",
    )
    parser.add_argument("--seed", type=int, default=0, help="which cases or sources (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: DATASET/annotations.csv, replaced")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.annotations import FILE_NAME, read_annotations, write_annotations
    from smile_fast.data.dataset import RawDataset
    from smile_fast.supervision.states import State
    from smile_runtime.io.files import refuse_overwrite

    dataset = RawDataset.open(args.dataset)
    output = args.output or args.dataset / FILE_NAME
    refuse_overwrite(output, dataset.files())
    declarations = read_annotations(args.dataset / FILE_NAME, dataset.names(), dataset.organs)
    training = dataset.names("train")
    simulated = _simulated(args, declarations, dataset.organs, training)
    write_annotations(output, simulated, dataset.names(), dataset.organs)
    said = args.source_organs or f"alpha {args.alpha:g}, seed {args.seed}"
    print(f"wrote {output} ({said})")
    for organ in dataset.organs:
        states = [simulated[case][organ] for case in training]
        hidden = states.count(State.HIDDEN)
        drawn = hidden + states.count(State.ANNOTATED)
        kept = "; one annotated case must remain" if not args.by_source and args.alpha * drawn > hidden + 0.5 else ""
        print(f"  {organ}: {hidden} of {drawn} annotations hidden{kept}")
    print(
        f"a store that was prepared before keeps its old declarations: prepare again, or train --annotations {output}"
    )


def _simulated(
    args: argparse.Namespace, declarations: "Declarations", organs: Sequence[str], training: Sequence[str]
) -> "Declarations":
    from smile_fast.data.simulate import drawn_by_sources, hide_by_source, simulate_missing

    if (args.alpha is None) == (args.source_organs is None):
        raise InputError("--alpha: says how much to hide, --source-organs who draws what; give one of them")
    if not args.by_source:
        if args.source_organs is not None:
            raise InputError("--source-organs: says what sources draw; give --by-source, too")
        return simulate_missing(declarations, args.alpha, args.seed, training)
    sources = _sources(args.dataset, training)
    if args.source_organs is None:
        drawn = drawn_by_sources(declarations, args.alpha, args.seed, sources)
    else:
        drawn = _drawn(args.source_organs, sorted(set(sources.values())), organs)
    for source, names in drawn.items():
        print(f"  {source} draws {', '.join(names) or 'nothing'}")
    return hide_by_source(declarations, sources, drawn)


def _sources(dataset: Path, training: Sequence[str]) -> dict[str, str]:
    """Training case -> its source."""
    from smile_fast.data.importing.sources import FILE_NAME, case_sources
    from smile_fast.text_table import listed
    from smile_runtime.names import normal_name

    file, known = dataset / FILE_NAME, case_sources(dataset)
    if not known:
        raise InputError(
            f"{file}: there is no such file, so nothing says which source a case is of; a merged or imported dataset "
            "has one, and a phantom with --sources"
        )
    if unsaid := [case for case in training if normal_name(case) not in known]:
        raise InputError(f"{file}: has no row of {listed(unsaid)}; add it")
    sources = {case: known[normal_name(case)] for case in training}
    if len(set(sources.values())) < 2:
        raise InputError(f"{file}: all training cases are of one source; hide by case, without --by-source")
    return sources


def _drawn(text: str, sources: Sequence[str], organs: Sequence[str]) -> dict[str, list[str]]:
    """What --source-organs says: source -> organs."""
    from smile_runtime.names import normal_name

    drawn: dict[str, list[str]] = {}
    for group in filter(str.strip, text.split(";")):
        name, _, named = group.partition("=")
        source = normal_name(name)
        if source not in sources or source in drawn:
            wrong = "stands there twice" if source in drawn else f"is none of {', '.join(sources)}"
            raise InputError(f"--source-organs: source '{source}' {wrong}; write it as a=liver;b=pancreas")
        drawn[source] = [organ for one in named.split(",") if (organ := normal_name(one))]
        if strange := [organ for organ in drawn[source] if organ not in organs]:
            raise InputError(f"--source-organs: '{strange[0]}' is none of {', '.join(organs)}; correct it")
    if left := [source for source in sources if source not in drawn]:
        raise InputError(f"--source-organs: says nothing of source {left[0]}; add {left[0]}=ORGANS")
    if undrawn := [organ for organ in organs if not any(organ in named for named in drawn.values())]:
        raise InputError(f"--source-organs: no source draws {undrawn[0]}; add it to one")
    return drawn
