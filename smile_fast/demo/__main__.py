"""`python -m smile_fast.demo [--out DIR] [--data DIR]`."""

import argparse
import sys
from pathlib import Path

from smile_fast.demo.phantoms import run_phantom_demo
from smile_fast.demo.real import run_real_demo
from smile_fast.demo.timed_commands import CommandFailed
from smile_runtime.errors import InputError
from smile_runtime.terminal import print_anything


def main() -> int:
    """Run one of the two demonstrations; exit status 0 when it met its promises, 1 when not, 2 for bad input."""
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m smile_fast.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write, replaced if it exists")
    parser.add_argument("--data", type=Path, help="folder of real CT volumes; without it phantoms are made")
    parser.add_argument("--quick", action="store_true", help="phantoms only: a tiny run that promises nothing")
    arguments = parser.parse_args()
    try:
        if arguments.data is not None:
            return run_real_demo(arguments.out, arguments.data)
        return run_phantom_demo(arguments.out, quick=arguments.quick)
    except (InputError, CommandFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
