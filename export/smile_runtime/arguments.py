"""The command line's parser: a wrong argument is one sentence, like every other mistake of a user."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence and exits with status 2; the usage is one ``--help`` away."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence on standard error and exit; see `argparse.ArgumentParser.error`."""
        sentence = " ".join(message.split())  # an argument may hold a line break
        self.exit(2, f"error: {sentence}; see {self.prog} --help\n")
