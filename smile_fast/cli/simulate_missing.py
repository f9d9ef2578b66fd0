"""``smile-fast simulate-missing``: hide a share of the annotations."""

import argparse
from pathlib import Path

HELP = "declare a share of the annotations hidden, to study missing annotations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Per organ, a share alpha of the training cases in which it is annotated becomes hidden: training behaves as "
        "if it were not drawn, evaluation still knows. Images and label maps are not touched; --alpha 0 restores all."
    )
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="nnU-Net raw folder with annotations.csv")
    parser.add_argument("--alpha", type=float, required=True, help="share to hide, 0..1; one case an organ remains")
    parser.add_argument("--seed", type=int, default=0, help="which cases (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: DATASET/annotations.csv, replaced")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.annotations import FILE_NAME, read_annotations, write_annotations
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.simulate import simulate_missing
    from smile_fast.supervision.states import State
    from smile_runtime.io.files import refuse_overwrite

    dataset = RawDataset.open(args.dataset)
    output = args.output or args.dataset / FILE_NAME
    refuse_overwrite(output, dataset.files())
    declarations = read_annotations(args.dataset / FILE_NAME, dataset.names(), dataset.organs)
    training = dataset.names("train")
    simulated = simulate_missing(declarations, args.alpha, args.seed, training)
    write_annotations(output, simulated, dataset.names(), dataset.organs)
    print(f"wrote {output} (alpha {args.alpha:g}, seed {args.seed})")
    for organ in dataset.organs:
        states = [simulated[case][organ] for case in training]
        hidden = states.count(State.HIDDEN)
        drawn = hidden + states.count(State.ANNOTATED)
        kept = "; one annotated case must remain" if args.alpha * drawn > hidden + 0.5 else ""
        print(f"  {organ}: {hidden} of {drawn} annotations hidden{kept}")
    print(
        f"a store that was prepared before keeps its old declarations: prepare again, or train --annotations {output}"
    )
