"""Draft annotations.csv from the label maps, without guessing what they do not show."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smile_fast.data.annotations import Declarations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.voxel_counts import count_cases
from smile_fast.supervision.audit import CaseCounts
from smile_fast.supervision.states import State


@dataclass(frozen=True)
class Draft:
    """What the label maps say.

    Attributes:
        states: case -> organ -> annotated where the organ has voxels, None (undecided) where it has none: it
            was not drawn, or it is not there; the label map looks the same.
    """

    states: dict[str, dict[str, State | None]]

    @property
    def undecided(self) -> dict[str, list[str]]:
        """Organ -> the cases in which it has no voxel; organs without such a case are left out."""
        organs: dict[str, list[str]] = {}
        for case, states in self.states.items():
            for organ, state in states.items():
                if state is None:
                    organs.setdefault(organ, []).append(case)
        return organs

    def decide(self, answers: Mapping[str, State]) -> "Draft":
        """Fill in the undecided pairs of some organs.

        Args:
            answers: organ -> missing or absent; other organs stay as they are.
        """
        return Draft(
            {
                case: {organ: answers.get(organ) if state is None else state for organ, state in states.items()}
                for case, states in self.states.items()
            }
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
    return Draft(
        {
            case: {
                organ: State.ANNOTATED if voxels else None
                for organ, voxels in zip(dataset.organs, counts[case].organs, strict=True)
            }
            for case in dataset.names()
        }
    )


def draft_path(output: Path) -> Path:
    """Where an undecided draft of `output` goes: annotations.csv -> annotations.draft.csv."""
    return output.with_name(output.stem + ".draft" + output.suffix)
