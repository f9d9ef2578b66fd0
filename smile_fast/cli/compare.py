"""`smile-fast compare`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smile_fast.evaluation import Evaluation

HELP = "compare evaluated runs on the (case, organ) pairs that all of them have scored"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Read what 'smile-fast evaluate' wrote into runs, and compare their Dice over the (case, organ) pairs that all "
        "of them have scored and whose truth holds the organ: per organ and for the mean of organs the difference of "
        "each two runs, its 95% bootstrap interval, and Wilcoxon's signed-rank test. How many pairs are common and how "
        "many are left out is said. Nothing is predicted, and no store is needed."
    )
    parser.add_argument(
        "run_folders", type=Path, nargs="+", metavar="RUN", help="folders of evaluated runs, two or more"
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="whose scores are compared (default: test)",
    )
    parser.add_argument(
        "--of-predictions",
        action="store_true",
        help="compare the scores of label maps from elsewhere, those of evaluate --predictions",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON, too")


def run(arguments: argparse.Namespace) -> None:
    """Compare, print the tables, and write them where asked to."""
    from smile_fast.evaluation.compared import compare_evaluations, format_comparison
    from smile_fast.text_table import listed
    from smile_runtime.errors import InputError
    from smile_runtime.io.files import check_json, check_results, write_json

    evaluations = _read(arguments)
    if arguments.json is not None:
        check_json(arguments.json, "a comparison")
        check_results([arguments.json], [file for path in arguments.run_folders for file in path.glob("*.json")])
    comparison = compare_evaluations(evaluations)
    if comparison.unlike:
        pairs = listed([f"{key.case} {key.organ}" for key in comparison.unlike], 3)
        print(
            f"warning: {len(comparison.unlike)} pairs have another truth in another run and are left out: {pairs}",
            file=sys.stderr,
        )
    if not comparison.pairs:
        raise InputError(
            f"{arguments.run_folders[0]}: has no pair whose truth holds the organ in common with the others; compare "
            "runs that were evaluated on the same cases"
        )
    print(format_comparison(comparison))
    if arguments.json is not None:
        write_json(arguments.json, comparison.to_json())
        print(f"wrote the comparison to {arguments.json}")


def _read(arguments: argparse.Namespace) -> "dict[str, Evaluation]":
    """Name -> scores; names that two runs share are their paths.

    Raises:
        InputError: fewer than two runs, one given twice, or one that is not evaluated.
    """
    from smile_fast.evaluation.results import read_scores, score_file
    from smile_runtime.errors import InputError

    paths: list[Path] = arguments.run_folders
    if len(paths) < 2:
        raise InputError(f"{paths[0]}: is one run alone; give two or more to compare")
    resolved = [path.resolve() for path in paths]
    found = {}
    for path, real in zip(paths, resolved, strict=True):
        if resolved.count(real) > 1:
            raise InputError(f"{path}: given twice; name every run once")
        if not path.is_dir():
            raise InputError(f"{path}: there is no such folder; give the folder of an evaluated run")
        scores = read_scores(path, arguments.split, of_predictions=arguments.of_predictions)
        if scores is None:
            file = score_file(arguments.split, of_predictions=arguments.of_predictions)
            raise InputError(f"{path}: has no {file}; run smile-fast evaluate with --split {arguments.split} first")
        alone = [other.name for other in resolved].count(real.name) == 1
        found[real.name if alone else str(path)] = scores
    return found
