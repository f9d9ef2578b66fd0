"""What an import of one cohort, in whatever layout, will hold."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from smile_fast.data.annotations import FILE_NAME, Declarations, read_annotations
from smile_fast.data.dataset import CHANNEL, Split
from smile_fast.data.importing.label_tables import BACKGROUND, VOID_NAME, LabelTable, organ_name
from smile_fast.data.importing.layout import (
    CASE,
    FolderLayout,
    as_layout,
    find_files,
    find_layout,
    find_masks,
    refuse_unpaired,
)
from smile_fast.data.importing.legend import (
    Legend,
    lookup,
    organ_order,
    organs_of_values,
    refuse_hidden_void,
    states_of_names,
)
from smile_fast.data.importing.plan import (
    DrawnMap,
    DrawnMasks,
    Plan,
    PlannedCase,
    joined_state,
    left_out,
    unlabelled_note,
)
from smile_fast.supervision.states import State
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import printable, read_json
from smile_runtime.label_map import VOID
from smile_runtime.names import normal_name


@dataclass(frozen=True)
class Choice:
    """What the user says of a cohort.

    Attributes:
        image, masks, labels: where its files lie, see `as_layout`.
        table: file that brings its labels to organs.
        order: organs, of which an earlier one takes the voxels that several were drawn on.
        organs: the ones to take; by default all.
        all_annotated: every organ of the label maps was drawn in every case, wherever it exists.
        without: cases to leave out; see `left_out`.
    """

    image: str | None = None
    masks: str | None = None
    labels: str | None = None
    table: Path | None = None
    order: tuple[str, ...] = ()
    organs: tuple[str, ...] | None = None
    all_annotated: bool = False
    without: tuple[str, ...] = ()


def plan_import(source: Path, choice: Choice) -> Plan:
    """Decide what the imported cohort holds; opens no volume.

    Args:
        source: its folder.
        choice: what the user says of it.

    Raises:
        InputError: the layout is none that is known, or the tables, orders and organs do not fit.
    """
    source = Path(source)
    patterns = as_layout(choice.image, choice.masks, choice.labels)
    name = normal_name(printable(os.path.basename(os.path.realpath(source)))) or "source"
    table = None if choice.table is None else LabelTable.read(choice.table, name)
    if patterns == (None, None, None) and os.path.isdir(source / "imagesTr"):
        plan = _of_label_maps(source, name, _nnunet_layouts(source), table, choice)
    else:
        layout = find_layout(source, *patterns)
        if layout.has_masks:
            plan = _of_masks(source, name, layout, table, choice)
        else:
            plan = _of_label_maps(source, name, {"train": layout}, table, choice)
    if strange := [organ for organ in choice.order if organ not in (*plan.organs, VOID_NAME)]:
        raise InputError(f"--order: there is no organ {listed(strange)}, only {listed(plan.organs)}; correct the name")
    gone = left_out(plan.cases, choice.without) if choice.without else set()
    cases = sorted(
        (case for case in plan.cases if case.name not in gone), key=lambda case: (case.split != "train", case.name)
    )
    states = None if plan.states is None else {case.name: plan.states[case.name] for case in cases}
    return replace(plan, cases=tuple(cases), states=states)


def _of_masks(source: Path, name: str, layout: FolderLayout, table: LabelTable | None, choice: Choice) -> Plan:
    """One mask file an organ: a file that is missing says that nobody drew the organ there."""
    if table is not None and table.values is not None:
        raise InputError(f"{table.path}: masks have names and no values; give a table with the columns name,organ")
    if choice.all_annotated:
        raise InputError("--all-annotated: a mask that is there says that its organ was drawn; leave the option out")
    images, masks = find_files(source, layout.images), find_masks(source, layout.drawn, layout.images)
    refuse_unpaired(source, list(images), list(masks), "masks")
    found = sorted({mask for own in masks.values() for mask in own})
    if not found:
        raise InputError(f"{source}: no case has a mask; say with --masks where they lie")
    if table is not None:
        table.check_names(found)
    made_of: dict[str, list[str]] = {}
    for mask in found:
        if table is None and mask == "background":
            raise InputError(
                f"{source}: a mask is called background, which is no organ; remove it, or give a table (name,organ) "
                "that drops it, with --map"
            )
        target = organ_name(mask if table is None else table.names.get(mask, mask), str(source / mask))
        if target != BACKGROUND:
            made_of.setdefault(target, []).append(mask)
    organs = organ_order([[organ for organ in made_of if organ != VOID_NAME]], choice.organs)
    values = {organ: value for value, organ in enumerate(organs, start=1)} | {VOID_NAME: VOID}
    ranked = [*choice.order, *(organ for organ in made_of if organ not in choice.order)]
    cases, states = [], Declarations()
    for case, image in images.items():
        own = masks.get(case, {})
        drawn = tuple(
            (organ, own[mask], values[organ])
            for organ in ranked
            if organ in values
            for mask in made_of.get(organ, ())
            if mask in own
        )
        cases.append(PlannedCase(case, "train", name, case, image, DrawnMasks(drawn, choice.order)))
        states[case] = {
            organ: State.ANNOTATED if all(mask in own for mask in made_of[organ]) else State.MISSING for organ in organs
        }
    return Plan(organs, tuple(cases), states, (source,))


def _of_label_maps(
    source: Path, name: str, layouts: Mapping[Split, FolderLayout], table: LabelTable | None, choice: Choice
) -> Plan:
    """One label map a case, whose values a dataset.json or a table explains."""
    described = source / "dataset.json"
    legend = None
    if os.path.isfile(described):
        legend = Legend.of_described(read_json(described, "correct it, or give a table with --map"), described)
    if legend is None and (table is None or table.values is None):
        raise InputError(
            f"{source}: nothing says what the values in its label maps are; give a table with the columns value,organ "
            "with --map"
        )
    values = organs_of_values(legend, table, choice.order, choice.organs)
    named = dict.fromkeys(organ for organ in values.values() if organ not in (BACKGROUND, VOID_NAME))
    organs = organ_order([list(named)], choice.organs)
    where = table.path if table is not None and table.values is not None else described
    drawn_values = lookup(values, organs)
    advice = f"name it in {where}, or correct the label map"
    cases: list[PlannedCase] = []
    notes: tuple[str, ...] = ()
    for split, layout in layouts.items():
        images, labels = find_files(source, layout.images), find_files(source, layout.drawn)
        refuse_unpaired(source, list(images), list(labels), "label maps")
        alone = sorted(set(images) - set(labels))
        if alone and split == "train":
            raise InputError(
                f"{source}: no label map for {listed(alone, 5)}; add it, or leave the case out by moving its scan away"
            )
        if split == "test":
            notes = unlabelled_note(name, alone)
        cases += [
            PlannedCase(case, split, name, case, images[case], DrawnMap(labels[case], drawn_values, advice))
            for case in labels
        ]
    if not any(case.split == "train" for case in cases):
        raise InputError(f"{source}: no training case was found; say where they lie with --image and --labels")
    states = _states(source, legend, table, values, organs, [case.name for case in cases], choice)
    return Plan(organs, tuple(cases), states, (source,), notes)


def _states(
    source: Path,
    legend: Legend | None,
    table: LabelTable | None,
    values: Mapping[int, str],
    organs: Sequence[str],
    cases: Sequence[str],
    choice: Choice,
) -> Declarations | None:
    """What is known of who drew what: what the user says, or the cohort's own annotations.csv."""
    file = source / FILE_NAME
    if choice.all_annotated:
        if os.path.exists(file):
            raise InputError(f"--all-annotated: {file} says who drew what; leave the option out")
        return {case: dict.fromkeys(organs, State.ANNOTATED) for case in cases}
    if legend is None or not os.path.exists(file):
        return None
    declared = read_annotations(file, cases, [label for label in legend.names if label != VOID_NAME], others=True)
    refuse_hidden_void(legend, values, declared, file)
    made_of = states_of_names(legend, table, values)
    return {
        case: {
            organ: joined_state([declared[case][label] for label in made_of[organ]], f"{file}, case {case}, {organ}")
            if organ in made_of
            else State.MISSING  # of a value that only the table knows
            for organ in organs
        }
        for case in cases
    }


def _nnunet_layouts(source: Path) -> dict[Split, FolderLayout]:
    """ImagesTr and labelsTr, and imagesTs and labelsTs if both are there; with the channel in the names, or without."""
    found: dict[Split, FolderLayout] = {}
    splits: tuple[tuple[Split, str], ...] = (("train", "Tr"), ("test", "Ts"))
    for split, end in splits:
        if split == "test" and not os.path.isdir(source / f"labels{end}"):
            continue
        with_channel = f"images{end}/{CASE}{CHANNEL}"
        if find_files(source, f"images{end}/{CASE}_0001"):
            raise InputError(f"{source / f'images{end}'}: has scans of several channels; give a cohort of CT alone")
        images = with_channel if find_files(source, with_channel) else f"images{end}/{CASE}"
        found[split] = FolderLayout(images, f"labels{end}/{CASE}")
    return found
