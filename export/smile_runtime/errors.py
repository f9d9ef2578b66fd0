"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """Bad input: the message is one sentence that says what is wrong, where, and what to do.

    The command lines print it after ``error:`` and exit with status 2; no traceback is shown.
    """
