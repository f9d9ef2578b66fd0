"""The templates of the room, and how numbers stand in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from smile_fast.evaluation import format_alarms, format_number, format_spread
from smile_fast.report.audit_text import audit_sentence
from smile_fast.report.volumes import millilitres, range_words


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill in one of the room's templates."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        sentence=audit_sentence,
        spread=format_spread,
        number=format_number,
        alarms=format_alarms,
        percent=format_percent,
        count=format_count,
        hu=format_hu,
        millilitres=millilitres,
        range_words=range_words,
    )
    return environment.get_template(template).render(context)


def format_percent(share: float | None, digits: int = 0) -> str:
    """Return a share of one in percent, a dash for one that does not exist."""
    return "–" if share is None else f"{share:.{digits}%}"


def format_count(value: int | None) -> str:
    """Return a count with thin spaces between thousands, a dash for one that does not exist."""
    return "–" if value is None else f"{value:,}".replace(",", "\u2009")


def format_hu(value: float) -> str:
    """Return Hounsfield units with a true minus sign."""
    return f"{value:g}".replace("-", "\u2212")
