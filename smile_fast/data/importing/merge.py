"""One cohort of several datasets: organs by name, and what a dataset does not know is missing in all of its cases."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smile_fast.data.annotations import FILE_NAME, Declarations, read_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.importing.label_tables import BACKGROUND, VOID_NAME, LabelTable
from smile_fast.data.importing.legend import (
    Legend,
    lookup,
    organ_order,
    organs_of_values,
    refuse_hidden_void,
    states_of_names,
)
from smile_fast.data.importing.plan import DrawnMap, Plan, PlannedCase, joined_state, left_out, unlabelled_note
from smile_fast.supervision.states import State
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.names import normal_name


@dataclass(frozen=True)
class Member:
    """One of the datasets that are merged.

    Attributes:
        name: what its cases are called by. dataset: the folder.
        values: value in its label maps -> organ of the cohort.
        states: of its cases and the organs that it knows.
    """

    name: str
    dataset: RawDataset
    values: dict[int, str]
    states: dict[str, dict[str, State]]

    @property
    def organs(self) -> list[str]:
        """The organs that it knows."""
        return list(dict.fromkeys(organ for organ in self.values.values() if organ not in (BACKGROUND, VOID_NAME)))


def plan_merge(
    paths: Sequence[Path],
    *,
    maps: Sequence[str] = (),
    all_annotated: Collection[str] = (),
    organs: Sequence[str] | None = None,
    prefix: bool = False,
    without: Sequence[str] = (),
) -> Plan:
    """Decide what a merged cohort holds; opens no volume.

    Args:
        paths: two or more nnU-Net raw folders.
        maps: what was given with --map: DATASET=FILE, or FILE for all of them.
        all_annotated: names of datasets without annotations.csv in which every organ was drawn in every case, wherever
            it exists; * stands for each of these.
        organs: the organs to take, in this order; by default all, as they come.
        prefix: put the dataset's name before every case's, not only where two have one name.
        without: cases to leave out; see `left_out`.

    Raises:
        InputError: a dataset cannot be opened, is named twice or has no annotations.csv; a table does not fit; two
            cases get one name.
    """
    names = member_names(paths)
    tables = _tables(maps, names)
    unused = [name for name in all_annotated if name not in (*names, "*")]
    if unused:
        raise InputError(f"--all-annotated: there is no dataset {listed(unused)}, only {listed(names)}; correct it")
    members = [
        _member(path, name, tables.get(name), name in all_annotated, "*" in all_annotated)
        for path, name in zip(paths, names, strict=True)
    ]
    ordered = organ_order([member.organs for member in members], organs)
    cases, states = [], Declarations()
    for case, drawn in _named(members, ordered, prefix, without):
        cases.append(case)
        states[case.name] = {organ: drawn.get(organ, State.MISSING) for organ in ordered}
    cases.sort(key=lambda case: (case.split != "train", case.name))
    notes = [note for member in members for note in unlabelled_note(member.name, member.dataset.unlabelled)]
    return Plan(ordered, tuple(cases), states, tuple(Path(path) for path in paths), tuple(notes))


def member_names(paths: Sequence[Path]) -> list[str]:
    """What the datasets are called: their folders' names, with those above where two have one.

    Raises:
        InputError: there are not two, or one of them is given twice.
    """
    if len(paths) < 2:
        raise InputError("--help: a merge takes two datasets or more, and OUT; name them all")
    real = [Path(os.path.realpath(path)) for path in paths]
    for path, count in Counter(real).items():
        if count > 1:
            raise InputError(f"{path}: was given {count} times; name every dataset once")
    for depth in range(1, 1 + max(len(path.parts) for path in real)):
        names = [normal_name("_".join(part.strip(os.sep) for part in path.parts[-depth:])) for path in real]
        if len(set(names)) == len(names):
            break
    if strange := [name for name in names if not name or name.startswith(".") or not name.isprintable()]:
        raise InputError(f"{strange[0]!a}: is no usable name for a dataset; rename its folder")
    return names


def _tables(maps: Sequence[str], names: Sequence[str]) -> dict[str, LabelTable]:
    """The table of each dataset that has one."""
    found: dict[str, LabelTable] = {}
    for option in maps:
        name, equals, file = option.partition("=")
        named = normal_name(name) in names
        if equals and not named and not os.path.exists(option):
            raise InputError(f"--map: '{name}' is none of the datasets {listed(names)}; write DATASET=FILE, or FILE")
        for member in [normal_name(name)] if named and equals else names:
            if member in found:
                raise InputError(f"--map: {member} has two tables; join them into one")
            found[member] = LabelTable.read(Path(file if named and equals else option), member)
    return found


def _member(path: Path, name: str, table: LabelTable | None, all_annotated: bool, if_unsaid: bool) -> Member:
    dataset = RawDataset.open(Path(path))
    legend = Legend.of_dataset(dataset)
    values = organs_of_values(legend, table, ())
    made_of = states_of_names(legend, table, values)
    file = dataset.path / FILE_NAME
    if all_annotated or (if_unsaid and not file.exists()):
        if file.exists():
            raise InputError(f"--all-annotated: {name} has {file}, which says who drew what; leave the option out")
        declared: Mapping[str, Mapping[str, State]] = {
            case: dict.fromkeys(dataset.organs, State.ANNOTATED) for case in dataset.names()
        }
    elif not file.exists() and not file.with_suffix(f".draft{file.suffix}").exists():
        raise InputError(
            f"{file}: there is no such file; draft it with 'smile-fast declare {dataset.path}', or say --all-annotated "
            f"{name} if each of its organs was drawn in every case"
        )
    else:
        declared = read_annotations(file, dataset.names(), dataset.organs)
    refuse_hidden_void(legend, values, declared, file)
    states = {
        case: {
            organ: joined_state([declared[case][label] for label in labels], f"{file}, case {case}, organ {organ}")
            for organ, labels in made_of.items()
        }
        for case in dataset.names()
    }
    return Member(name, dataset, values, states)


def _named(
    members: Sequence[Member], organs: Sequence[str], prefix: bool, without: Sequence[str]
) -> list[tuple[PlannedCase, dict[str, State]]]:
    """The cases under their new names, with what was declared of the organs that their dataset knows."""
    shared = Counter(name for member in members for name in member.dataset.names())
    found: list[tuple[PlannedCase, dict[str, State]]] = []
    for member in members:
        values = lookup(member.values, organs)
        advice = f"correct it, name it in {member.dataset.path / 'dataset.json'}, or give a table with --map"
        for case in member.dataset.cases:
            name = f"{member.name}_{case.name}" if prefix or shared[case.name] > 1 else case.name
            drawn = DrawnMap(case.label, values, advice)
            planned = PlannedCase(name, case.split, member.name, case.name, case.image, drawn)
            found.append((planned, member.states[case.name]))
    if without:
        gone = left_out([case for case, _ in found], without)
        found = [(case, states) for case, states in found if case.name not in gone]
    twice = [name for name, count in Counter(case.name for case, _ in found).items() if count > 1]
    if twice:
        raise InputError(f"--prefix: two cases would get the name {twice[0]}; rename the folder of one of the datasets")
    return found
