"""Measures one whole command in a process of its own. `python -m bench.commands commands/NAME OUT.json`."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine, records
from bench.commands import cohort, scoring, training
from bench.commands.cohort import CommandError
from bench.commands.workloads import NAMES, WORKLOADS
from bench.measure import ERRORS, MILLISECONDS, RATIOS
from smile_runtime.errors import InputError

MEASURES: dict[str, Callable[..., dict[str, Any]]] = {"evaluate": scoring.evaluate, "export": scoring.export}


def figures(name: str, device: str, cohorts: Path = cohort.FOLDER) -> records.Figures:
    """What is recorded of one command: facts and costs.

    Args:
        name: of NAMES. device: of the commands. cohorts: where synthetic stores are kept.
    """
    short = name.partition("/")[2]
    measure = MEASURES.get(short, training.measure)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(WORKLOADS[short], Path(folder), device, cohorts)
    empty: dict[str, Any] = {ERRORS: {}, MILLISECONDS: {}, RATIOS: {}}
    return {"name": name, **empty, **found, **machine.commit()}


def main(arguments: list[str] | None = None) -> int:
    """Measure and write a record of that one benchmark; 1 if the command failed or what it gave cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    given = parser.parse_args(arguments)
    try:
        found = figures(given.name, "cuda")
    except (CommandError, InputError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    records.write(records.Record(machine.describe_gpu(), records.now(), {given.name: found}), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
