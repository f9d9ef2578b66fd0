"""Plain text as the commands print it: tables, and lists that may be long."""

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], *, rules: Collection[int] = (1,)) -> list[str]:
    """Align columns: the first to the left, the others to the right, two spaces between them.

    Args:
        rows: the cells, the head's first; every row has as many.
        rules: before which rows a line of dashes stands; after the head by default.

    Returns:
        The lines, all of one length.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, (name, *cells) in enumerate(rows):
        if number in rules:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    return lines


def listed(names: Sequence[str], shown: int = 8) -> str:
    """The first names of a list that may hold thousands."""
    more = f", ... ({len(names) - shown} more)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
