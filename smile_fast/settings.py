"""Settings as fields of a dataclass: what one is, may be and is called is declared once, where the field stands.

The checks, the options of the command line with their help, and the docstring of the class all come from there.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Self, TypeVar

from smile_runtime.errors import InputError

_C = TypeVar("_C", bound=type)


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting.

    Attributes:
        help: what it is, for `--help` and the docstring; without the default.
        group: heading of its option in `--help`; None for what is no option.
        kind: type of its value, or of the elements of a tuple.
        count: None for one value, "+" for a tuple of any length, or the length of the tuple.
        choices: all usable values, where they can be listed.
        wanted: which values are usable, to follow "give".
        holds: whether a value of the right type is usable.
        metavar: what stands for the value in `--help`.
        parse: text of the command line to the value; None for `kind`.
    """

    help: str
    group: str | None
    kind: type
    count: int | str | None
    choices: Sequence[Any]
    wanted: str
    holds: Callable[[Any], bool]
    metavar: str | tuple[str, ...] | None
    parse: Callable[[str], Any] | None

    def usable(self, value: Any, default: Any) -> bool:
        """Whether a value has the right type and keeps the rule; an optional setting may be None."""
        if value is None:
            return default is None
        if self.count is None:
            return _is_a(value, self.kind) and self.holds(value)
        wrong_length = self.count != "+" and len(value) != self.count if isinstance(value, tuple) else True
        return not wrong_length and all(_is_a(each, self.kind) for each in value) and self.holds(value)


def setting(
    default: Any,
    help: str,
    wanted: str = "",
    holds: Callable[[Any], bool] = lambda value: True,
    *,
    group: str | None = None,
    choices: Sequence[Any] = (),
    kind: type | None = None,
    count: int | str | None = None,
    metavar: str | tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """Declare a field of a `Settings` class; see `Setting`. `kind` is the default's type unless it is given."""
    if choices:
        *others, last = map(str, choices)
        wanted, holds = f"{', '.join(others)} or {last}", lambda value: value in choices
    kind = kind or type(default)
    wanted = wanted or {bool: "true or false", str: "a text"}[kind]
    entry = Setting(help, group, kind, count, choices, wanted, holds, metavar, parse)
    return field(default=default, metadata={"setting": entry})


class Settings:
    """Base of a frozen dataclass whose fields are made by `setting`, or are settings themselves."""

    def __post_init__(self) -> None:
        """Refuse the first value that cannot be used."""
        for name, entry in declared(type(self)).items():
            given = getattr(self, name)
            if not entry.usable(given, default_of(type(self), name)):
                raise unusable(name, given, entry.wanted)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every subclass is a dataclass

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """The inverse of `to_json`.

        Raises:
            InputError: for anything but an object with every setting in it, each of them usable.
        """
        if not isinstance(record, dict):
            raise InputError(f"settings: {record!r:.40} is not an object; train again")
        names = {each.name for each in fields(cls)}  # type: ignore[arg-type]  # every subclass is a dataclass
        if unknown := sorted(set(record) - names):
            raise InputError(f"settings: {', '.join(unknown)} is not known to this version; train again")
        if lost := sorted(names - set(record)):
            raise InputError(f"settings: {', '.join(lost)} is missing; train again")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})


def declared(cls: type) -> dict[str, Setting]:
    """The settings of a class by name, in the order of their declaration."""
    return {each.name: each.metadata["setting"] for each in fields(cls) if "setting" in each.metadata}


def default_of(cls: type, name: str) -> Any:
    """The default of a setting."""
    return next(each.default for each in fields(cls) if each.name == name)


def option_of(name: str) -> str:
    """The command-line option of a setting."""
    return f"--{name.replace('_', '-')}"


def unusable(name: str, given: Any, wanted: str) -> InputError:
    """The sentence about a setting's value that cannot be used."""
    return InputError(f"{option_of(name)}: {given!r} cannot be used; give {wanted}")


def documented(cls: _C) -> _C:
    """Write the settings of a class into its docstring, below the summary."""
    summary, *rest = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    lines = "\n".join(f"    {name}: {entry.help}." for name, entry in declared(cls).items())
    cls.__doc__ = "\n\n".join([summary, f"Args:\n{lines}", *rest])
    return cls


def _is_a(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    numbers: dict[type, type] = {int: Integral, float: Real}
    return isinstance(value, numbers.get(kind, kind))
