"""What the values in a cohort's label maps are called, and which organs of ours they become."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smile_fast.data.dataset import RawDataset
from smile_fast.data.importing.label_tables import BACKGROUND, VOID_NAME, LabelTable, label_value, organ_name
from smile_fast.supervision.states import State
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.label_map import LABEL_VALUES, MAX_ORGANS, VOID
from smile_runtime.names import normal_name

REFUSED = -1
"""In the place of a value that no label has: its voxels cannot be read as anything."""


@dataclass(frozen=True)
class Legend:
    """The labels of a cohort: name -> its values, of which a region has several and two regions may share some."""

    path: Path
    names: dict[str, tuple[int, ...]]

    @classmethod
    def of_dataset(cls, dataset: RawDataset) -> "Legend":
        """That of a dataset of ours."""
        names: dict[str, tuple[int, ...]] = {organ: (value,) for value, organ in enumerate(dataset.organs, start=1)}
        if dataset.ignore is not None:
            names[VOID_NAME] = (dataset.ignore,)
        return cls(dataset.path / "dataset.json", names)

    @classmethod
    def of_described(cls, described: Mapping[str, Any], path: Path) -> "Legend":
        """Read the labels of a dataset.json, with whatever gaps, regions and names.

        Raises:
            InputError: it has no labels, or one of them is none.
        """
        labels = described.get("labels")
        if not isinstance(labels, dict) or not labels:
            raise InputError(
                f'{path}: "labels" does not map names to values; write e.g. {{"background": 0, "liver": 1}}'
            )
        older = all(key.isdecimal() and isinstance(value, str) for key, value in labels.items())  # {"1": "liver"}
        names: dict[str, tuple[int, ...]] = {}
        for key, entry in labels.items():
            name, given = (entry, key) if older else (key, entry)
            name = organ_name(name, str(path))
            if name in names and name != BACKGROUND:
                raise InputError(f"{path}: the label '{name}' occurs twice; give every label one entry")
            names[name] = _values(given, name, path)
        if shared := [name for name, values in names.items() if 0 in values and len(values) > 1]:
            raise InputError(f"{path}: the region {listed(shared)} holds 0, which is background; leave it out")
        # 0 is background whatever it is called.
        return cls(path, {name: own for name, own in names.items() if name != BACKGROUND and own != (0,)})

    def organs(self, table: LabelTable | None) -> dict[str, str]:
        """Name of a label -> the organ that it is; a table by value is no matter of names.

        Raises:
            InputError: the table names a label that is not there.
        """
        if table is None or table.values is not None:
            return {name: name for name in self.names}
        table.check_names(list(self.names))
        return {name: table.names.get(name, name) for name in self.names}


def organs_of_values(
    legend: Legend | None, table: LabelTable | None, order: Sequence[str], wanted: Sequence[str] | None = None
) -> dict[int, str]:
    """Value in the label maps -> organ of ours, `BACKGROUND` or `VOID_NAME`, of every value that may occur.

    Args:
        legend: what dataset.json says, None where there is none.
        table: what the user says; one by value goes before the legend.
        order: of organs, the first of which takes a value that several regions share.
        wanted: the organs to take, of which alone a value that several regions share can be; None for all.

    Raises:
        InputError: nobody says what the values are; or regions share a value and the order does not decide.
    """
    fixed = {0: BACKGROUND, VOID: VOID_NAME}
    if table is not None and table.values is not None:
        return fixed | table.values
    if legend is None:
        raise ValueError("neither a legend nor a table of values")
    organs = legend.organs(table)
    found: dict[int, set[str]] = {}
    for name, values in legend.names.items():
        for value in values:
            found.setdefault(value, set()).add(organs[name])
    for value, candidates in found.items():
        candidates = candidates - {BACKGROUND} or {BACKGROUND}
        if wanted is not None and len(candidates) > 1:
            candidates = candidates & {VOID_NAME, *wanted} or {min(candidates)}  # of which all become background
        if len(candidates) > 1:
            ranked = [organ for organ in order if organ in candidates]
            if len(ranked) < len(candidates) - 1:
                raise InputError(
                    f"{legend.path}: the label value {value} is of {listed(sorted(candidates))}; say with --order "
                    "which of them takes it, or give a table with --map"
                )
            candidates = {ranked[0]}
        fixed[value] = next(iter(candidates))
    return fixed


def refuse_hidden_void(
    legend: Legend, values: Mapping[int, str], declared: Mapping[str, Mapping[str, State]], file: Path
) -> None:
    """Refuse to make void of what training must not know: it would know where, by the voxels that it may not use.

    Args:
        legend: the labels.
        values: value -> organ; see `organs_of_values`.
        declared: case -> label -> state.
        file: where the states are declared, for the message.

    Raises:
        InputError: a label becomes void, and is hidden in some case.
    """
    for label, own in legend.names.items():
        if label == VOID_NAME or all(values.get(value) != VOID_NAME for value in own):
            continue
        if hidden := [case for case, states in declared.items() if states.get(label) is State.HIDDEN]:
            raise InputError(
                f"{file}: '{label}' is hidden in {listed(hidden, 5)} and would become void, which shows where it is; "
                "make it an organ or nothing in the table, or declare it missing"
            )


def states_of_names(legend: Legend, table: LabelTable | None, values: Mapping[int, str]) -> dict[str, list[str]]:
    """Organ of ours -> the labels whose annotation decides its own: those that it is made of."""
    by_name = legend.organs(table)
    found: dict[str, list[str]] = {}
    for name, own in legend.names.items():
        organs = {values.get(value, BACKGROUND) for value in own}
        if table is None or table.values is None:
            organs = {by_name[name]}
        for organ in sorted(organs - {BACKGROUND, VOID_NAME}):
            found.setdefault(organ, []).append(name)
    return found


def organ_order(named: Sequence[Sequence[str]], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The organs of a new dataset, in the order of their values.

    Args:
        named: the organs of each source.
        wanted: the ones to take; None for all.

    Raises:
        InputError: an organ that is wanted is in no source, two names look like one organ, or there are too many.
    """
    found = list(dict.fromkeys(organ for organs in named for organ in organs))
    if wanted is not None:
        strange = [organ for organ in wanted if organ not in found]
        if strange:
            raise InputError(f"--organs: there is no {listed(strange)}, only {listed(found, 20)}; correct the name")
        found = list(dict.fromkeys(wanted))
    alike: dict[str, str] = {}
    for organ in found:
        words = " ".join(sorted(organ.casefold().replace("_", " ").replace("-", " ").split()))
        if words in alike:
            raise InputError(
                f"--map: '{alike[words]}' and '{organ}' look like one organ under two names; give a table (name,organ) "
                "that brings one to the other"
            )
        alike[words] = organ
    if not 1 <= len(found) <= MAX_ORGANS:
        raise InputError(f"--organs: {len(found)} organs were found; name 1 to {MAX_ORGANS} of them")
    return tuple(found)


def lookup(values: Mapping[int, str], organs: Sequence[str]) -> tuple[int, ...]:
    """Value in the label maps -> value in ours, `REFUSED` where nobody says.

    Args:
        values: value -> organ; of what is not in `organs` the voxels become background.
        organs: [K] ours.

    Returns:
        [256].
    """
    of_organ = {organ: value for value, organ in enumerate(organs, start=1)} | {BACKGROUND: 0, VOID_NAME: VOID}
    return tuple(of_organ.get(values[value], 0) if value in values else REFUSED for value in range(LABEL_VALUES))


def _values(given: object, name: str, path: Path) -> tuple[int, ...]:
    """The values of a label: one, or the list of a region."""
    entries = given if isinstance(given, list) else [given]
    values = []
    for entry in entries:
        text = normal_name(str(entry)) if isinstance(entry, (int, str, float)) and not isinstance(entry, bool) else ""
        value = label_value(text.removesuffix(".0"))
        if value is None:
            raise InputError(
                f"{path}: the label '{name}' has the value {json.dumps(given)}; give it a whole number in "
                f"0..{LABEL_VALUES - 1}, or a list of them"
            )
        values.append(value)
    if not values:
        raise InputError(f"{path}: the label '{name}' has no value; give it one")
    return tuple(values)
