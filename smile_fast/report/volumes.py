"""Volumes as a reader of a report wants them."""

from smile_fast.training.curriculum.ranges import OrganRange


def range_words(annotated: OrganRange) -> str:
    """The volumes of annotated cases, in ml."""
    return f"{millilitres(annotated.low_ml)} to {millilitres(annotated.high_ml)}"


def millilitres(volume: float) -> str:
    """Return a volume in ml without digits that say nothing: 1.2, 35.4, 1058."""
    return f"{volume:.1f}" if volume < 100 else f"{volume:.0f}"
