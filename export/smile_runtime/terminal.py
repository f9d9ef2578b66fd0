"""Standard output and standard error that take any text."""

import io
import sys


def print_anything() -> None:
    r"""Write what a terminal's encoding lacks as an escape (``\xe9``), so that no name ends a command that worked."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a program that calls `main` may have put something else there
            stream.reconfigure(errors="backslashreplace")
