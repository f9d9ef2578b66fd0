"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """Bad input: the message is one sentence, ``PATH: what is wrong; what to do``.

    Where there is no path, the option, the organ or the case stands there. The command lines print it after ``error:``
    and exit with status 2; no traceback is shown.
    """


class AllocationError(InputError):
    """A computation does not fit into the memory that is free; with fewer slices at once it might."""


def first_line(error: BaseException) -> str:
    """What another library says about an error, for the end of a sentence."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
