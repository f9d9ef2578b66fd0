"""Which cases are trained on, watched and scored: drawn, or said by a file; always by patient where these are known."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smile_fast.data.dataset import Split
from smile_fast.data.table_file import read_table
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import parse_json, reason
from smile_runtime.names import normal_name

PARTS = ("train", "validation", "test")
_HEADERS = (("case", "patient", "split"), ("case", "split"), ("case", "patient"))
_NO_FILE = "give a CSV file with the columns case,patient,split, or nnU-Net's splits_final.json"


@dataclass(frozen=True)
class SplitsFile:
    """What a file says.

    Attributes:
        path: the file.
        folds: of each fold, case -> train or validation; one fold where nothing is to choose.
        is_list: whether it is nnU-Net's list, of which --fold chooses.
        patients: case -> patient, of every case that a table names; of others the case stands for itself.
    """

    path: Path
    folds: tuple[dict[str, str], ...]
    is_list: bool
    patients: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "SplitsFile":
        """Read a CSV file with the columns case, patient and split, or nnU-Net's list.

        Either patient or split may be left out. A split is train, validation or test; where there is no such column,
        cases are where the dataset has them. An empty patient is the case itself.

        Raises:
            InputError: the file is no such file, or names a case twice.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            return cls(path, _read_list(path), True, {})
        parts: dict[str, str] = {}
        patients: dict[str, str] = {}
        lines: dict[str, int] = {}
        for line, row in read_table(path, _HEADERS, missing=_NO_FILE):
            case, where = normal_name(row["case"]), f"{path}, line {line}"
            if case in lines:
                raise InputError(f"{where}: case '{case}' stands on line {lines[case]} already; keep one of the rows")
            lines[case] = line
            patients[case] = normal_name(row.get("patient", "")) or case
            if "split" in row:
                if row["split"] not in PARTS:
                    raise InputError(
                        f"{where}: case '{case}' has the split '{row['split']}'; write one of {', '.join(PARTS)}"
                    )
                parts[case] = row["split"]
        if not lines:
            raise InputError(f"{path}: names no case; write one row for each")
        return cls(path, (parts,), False, patients)

    def split(self, cases: Mapping[str, Split], folds: int, fold: int) -> dict[str, list[str]]:
        """The cases of each part.

        Args:
            cases: case -> where the store has it.
            folds: of the cross-validation, 0 for none.
            fold: which of them is set aside.

        Returns:
            Part -> names, sorted.

        Raises:
            InputError: the file does not name a training case, trains on a held-out one, has a patient in
                two parts, or leaves nothing to train on; or `folds` do not go with it.
        """
        said = self._fold(folds, fold)
        self._check_cases(said, cases)
        parts = {case: said.get(case, split) for case, split in cases.items()}
        if folds and not self.is_list:
            training = [case for case, part in parts.items() if part == "train"]
            try:
                parts |= dict.fromkeys(drawn_fold(training, folds, fold, self.patients), "validation")
            except ValueError as error:
                raise InputError(f"{self.path}: {error}; ask for fewer folds") from None
        self._check_patients(parts)
        found = {part: sorted(case for case, own in parts.items() if own == part) for part in PARTS}
        if not found["train"]:
            raise InputError(f"{self.path}: leaves no case to train on; give some the split train")
        return found

    def _fold(self, folds: int, fold: int) -> dict[str, str]:
        """What is said of the fold that was asked for."""
        if not self.is_list:
            if folds and "validation" in self.folds[0].values():
                raise InputError(f"--folds: {self.path} says itself what validation is; leave --folds out")
            return self.folds[0]
        if folds != len(self.folds):
            raise InputError(
                f"--folds: {self.path} holds {len(self.folds)} of them; say --folds {len(self.folds)}, and --fold for "
                "which"
            )
        return self.folds[fold]

    def _check_cases(self, said: Mapping[str, str], cases: Mapping[str, Split]) -> None:
        named = said if self.is_list else self.patients  # where only patients are said, every case is somebody's
        unsaid = [case for case, split in cases.items() if split == "train" and case not in named]
        if unsaid:
            raise InputError(
                f"{self.path}: does not name {len(unsaid)} training cases of the store ({listed(unsaid)}); add them"
            )
        moved = [case for case, split in cases.items() if split == "test" and said.get(case, "test") != "test"]
        if moved:
            raise InputError(
                f"{self.path}: trains on {listed(moved)}, which the dataset holds out (imagesTs); correct the file, or "
                "move the cases to imagesTr and prepare again"
            )

    def _check_patients(self, parts: Mapping[str, str]) -> None:
        seen: dict[str, str] = {}
        for case in sorted(parts):
            other = seen.setdefault(self.patients.get(case, case), case)
            if parts[other] != parts[case]:
                raise InputError(
                    f"{self.path}: patient {self.patients.get(case, case)} is in two parts, with {other} in "
                    f"{parts[other]} and {case} in {parts[case]}; put all scans of a patient into one"
                )

    def strangers(self, cases: Iterable[str]) -> list[str]:
        """Cases that the file names and the store does not have: broken ones, or slips of the pen."""
        known = set(cases)
        return sorted({*(case for fold in self.folds for case in fold), *self.patients} - known)


def drawn_fold(cases: Sequence[str], folds: int, fold: int, patients: Mapping[str, str]) -> list[str]:
    """The cases of one fold, drawn from a fixed shuffle of the patients; all scans of a patient are in one fold.

    Args:
        cases: the training cases.
        folds: how many folds there are.
        fold: which of them.
        patients: case -> patient; of others the case stands for itself.

    Raises:
        ValueError: there are fewer patients than folds.
    """
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(patients.get(case, case), []).append(case)
    if folds > len(groups):
        raise ValueError(f"{folds} folds need at least as many patients in training, there are {len(groups)}")
    # The shuffle is the same for every seed of the training, so that folds of different runs are comparable.
    shuffled = np.random.default_rng(0).permutation(sorted(groups)).tolist()
    return sorted(case for patient in shuffled[fold::folds] for case in groups[patient])


def _read_list(path: Path) -> tuple[dict[str, str], ...]:
    try:
        entries = parse_json(f'{{"folds": {path.read_bytes().decode("utf-8-sig")}}}')["folds"]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {_NO_FILE}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
    except ValueError as error:
        raise InputError(f"{path}: is no list of folds as nnU-Net writes it ({error}); {_NO_FILE}") from None
    folds = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        train, validation = (_names(entry, key, path, number) for key in ("train", "val"))
        if both := sorted(train & validation):
            raise InputError(f"{path}: fold {number} has {listed(both)} in train and in val; keep one of them")
        folds.append(dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation"))
    if len(folds) < 2:
        raise InputError(f"{path}: holds {len(folds)} folds; give two or more, or a CSV file")
    return tuple(folds)


def _names(entry: object, key: str, path: Path, number: int) -> set[str]:
    names = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f'{path}: fold {number} has no list of names "{key}"; {_NO_FILE}')
    return set(map(normal_name, names))
