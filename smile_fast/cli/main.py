"""`smile-fast`: finds the command, turns a user's mistakes into one sentence and exit status 2."""

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Sequence

from smile_fast import __version__
from smile_fast.training.launch import quiet_unless_first
from smile_runtime.arguments import Parser
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.terminal import print_anything
from smile_runtime.threads import share_machine

# In the order of the work; the module of a command is its name with underscores, and one more behind a word of Python.
COMMANDS = (
    "phantom",
    "import",
    "merge",
    "declare",
    "simulate-missing",
    "audit",
    "prepare",
    "train",
    "relabel",
    "evaluate",
    "compare",
    "sweep",
    "figures",
    "export",
    "report",
    "verify",
    "doctor",
)

_EPILOG = "smile-fast COMMAND --help tells more about a command. Volumes are segmented with smile-predict."


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="smile-fast",
        description="Train organ segmentation on partially annotated CT cohorts (SMILE and SMILEr).",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"smile-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        word = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
        module = importlib.import_module(f"smile_fast.cli.{word}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0, 2 for bad input, 130 after Ctrl-C, 143 when a training was stopped by SIGTERM and saved.
    """
    print_anything()
    try:
        with quiet_unless_first():  # of the processes that torchrun started, which all read the same arguments
            arguments = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help, the version or what is wrong
        return int(stop.code or 0)
    share_machine()  # the command has not imported anything yet that looks at it
    try:
        return int(arguments.run(arguments) or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left; say nothing more
        return 1
    except OSError as error:
        if not isinstance(error.filename, str | os.PathLike):
            raise
        # Of a path that nothing more could be told of: too long a name, a disk that is gone.
        print(f"error: {error.filename}: cannot be used ({reason(error)}); check it, and run again", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
