"""How names of cases and organs are compared."""

import unicodedata


def normal_name(name: str) -> str:
    """The one spelling of a case's or an organ's name: composed letters (NFC), no blanks around it.

    An accented letter is one character from most keyboards and two in file names from macOS; both look the same.
    """
    return unicodedata.normalize("NFC", name).strip()
