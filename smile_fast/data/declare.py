"""Draft annotations.csv from the label maps, without guessing what they do not show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from smile_fast.data.annotations import Declarations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.voxel_counts import count_cases
from smile_fast.supervision.audit import CaseCounts
from smile_fast.supervision.states import State
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.names import normal_name


@dataclass(frozen=True)
class Rule:
    """The state of many pairs in one line.

    Attributes:
        option: PATTERN:ORGAN=STATE, as it was written.
        pairs: the (case, organ) pairs that it matches.
        state: theirs.
    """

    option: str
    pairs: tuple[tuple[str, str], ...]
    state: State

    @classmethod
    def read(cls, option: str, dataset: RawDataset) -> "Rule":
        """Read what was given with --set.

        Args:
            option: PATTERN:ORGAN=STATE; PATTERN is a case's name or a glob of names, ORGAN an organ or * for each.
            dataset: the cohort.

        Raises:
            InputError: it has another form, or matches no case, no organ or no state.
        """
        head, _, text = normal_name(option).rpartition("=")
        # Names may hold colons: the organ is the longest that the text ends with.
        splits = [(head[:at], normal_name(head[at + 1 :])) for at, character in enumerate(head) if character == ":"]
        pattern, organ = next(((before, name) for before, name in splits if name in (*dataset.organs, "*")), ("", None))
        if organ is None:
            raise InputError(
                f"--set: '{option}' names no organ, the organs are {listed(dataset.organs)}; write "
                "PATTERN:ORGAN=STATE, with * for each organ"
            )
        pattern, text = normal_name(pattern), normal_name(text)
        cases = [case for case in dataset.names() if case == pattern or fnmatchcase(case, pattern)]
        if not cases:
            raise InputError(f"--set: '{option}' matches no case; write a case's name, or a glob such as site_b_*")
        if text not in [state.value for state in State]:
            raise InputError(f"--set: '{option}' has the unknown state '{text}'; use one of {', '.join(State)}")
        organs = dataset.organs if organ == "*" else (organ,)
        return cls(option, tuple((case, name) for case in cases for name in organs), State(text))


@dataclass(frozen=True)
class Draft:
    """What the label maps say.

    Attributes:
        states: case -> organ -> annotated where the organ has voxels, None (undecided) where it has none: it
            was not drawn, or it is not there; the label map looks the same.
        drawn: the (case, organ) pairs with voxels.
        gaps: the pairs with slices without the organ between slices with it.
    """

    states: dict[str, dict[str, State | None]]
    drawn: frozenset[tuple[str, str]]
    gaps: frozenset[tuple[str, str]]

    @property
    def doubtful(self) -> dict[str, list[str]]:
        """Organ -> the cases in which it is annotated, but has gaps: it may be drawn in part; others are left out."""
        organs: dict[str, list[str]] = {}
        for case, states in self.states.items():
            for organ, state in states.items():
                if state is State.ANNOTATED and (case, organ) in self.gaps:
                    organs.setdefault(organ, []).append(case)
        return organs

    @property
    def undecided(self) -> dict[str, list[str]]:
        """Organ -> the cases in which it has no voxel; organs without such a case are left out."""
        organs: dict[str, list[str]] = {}
        for case, states in self.states.items():
            for organ, state in states.items():
                if state is None:
                    organs.setdefault(organ, []).append(case)
        return organs

    def assign(self, rule: "Rule") -> "Draft":
        """Set the state of the pairs of a rule, whatever the draft says of them.

        Raises:
            InputError: the rule calls absent what has voxels.
        """
        drawn = [f"{case}/{organ}" for case, organ in rule.pairs if (case, organ) in self.drawn]
        if rule.state is State.ABSENT and drawn:
            raise InputError(
                f"--set: '{rule.option}' calls absent what has voxels ({listed(drawn)}); write another state, or "
                "correct the label maps"
            )
        states: dict[str, dict[str, State | None]] = {case: dict(own) for case, own in self.states.items()}
        for case, organ in rule.pairs:
            states[case][organ] = rule.state
        return replace(self, states=states)

    def keep(self, declared: Mapping[tuple[str, str], State]) -> "Draft":
        """Take the states of some (case, organ) pairs from what was declared before."""
        states: dict[str, dict[str, State | None]] = {
            case: {organ: declared.get((case, organ), state) for organ, state in own.items()}
            for case, own in self.states.items()
        }
        return replace(self, states=states)

    def decide(self, answers: Mapping[str, State]) -> "Draft":
        """Fill in the undecided pairs of some organs.

        Args:
            answers: organ -> missing or absent; other organs stay as they are.
        """
        return replace(
            self,
            states={
                case: {organ: answers.get(organ) if state is None else state for organ, state in states.items()}
                for case, states in self.states.items()
            },
        )

    def declarations(self) -> Declarations:
        """The states, when none is undecided.

        Raises:
            ValueError: a pair is undecided.
        """
        if self.undecided:
            raise ValueError(f"undecided: {', '.join(self.undecided)}")
        return {
            case: {organ: state for organ, state in states.items() if state is not None}
            for case, states in self.states.items()
        }


def draft(dataset: RawDataset) -> Draft:
    """Read every label map and draft the declarations.

    Raises:
        InputError: a label map is broken or has a value that dataset.json does not name.
    """
    return draft_from_counts(count_cases(dataset, dataset.cases), dataset)


def draft_from_counts(counts: Mapping[str, CaseCounts], dataset: RawDataset) -> Draft:
    """Draft the declarations from voxel counts."""

    def pairs(found: Mapping[str, Sequence[int]]) -> frozenset[tuple[str, str]]:
        """The (case, organ) pairs of which there are some, given the numbers of each case by organ."""
        return frozenset(
            (case, organ)
            for case, numbers in found.items()
            for organ, number in zip(dataset.organs, numbers, strict=True)
            if number
        )

    drawn = pairs({case: counts[case].organs for case in dataset.names()})
    states: dict[str, dict[str, State | None]] = {
        case: {organ: State.ANNOTATED if (case, organ) in drawn else None for organ in dataset.organs}
        for case in dataset.names()
    }
    return Draft(states, drawn, pairs({case: counts[case].gaps for case in dataset.names()}))


def draft_path(output: Path) -> Path:
    """Where an undecided draft of `output` goes: annotations.csv -> annotations.draft.csv."""
    return output.with_name(output.stem + ".draft" + output.suffix)
