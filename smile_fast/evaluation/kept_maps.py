"""The label maps that an evaluation keeps: CASE.nii.gz on the grid of each case, in a folder that appears as a whole.

They are written beside it, .NAME.PLAN.maps/CASE.nii.gz, by any number of processes, and the folder is renamed when all
are there. What label-maps.json does not name is foreign: a folder that holds such files is refused.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.case_info import CaseInfo
from smile_fast.data.folder_lock import LOCK, locked, patiently
from smile_fast.records import read_record, write_record
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason, sha256

if TYPE_CHECKING:
    from smile_fast.evaluation.evaluate import Inputs, Scoring

RECORD = "label-maps.json"
_SCHEMA: Final = 1


@dataclass(frozen=True)
class _Record:
    """What label-maps.json holds.

    Attributes:
        plan: what the label maps were made of, see `Inputs`.
        digests: case -> SHA-256 of its label map: one that somebody corrected since is not replaced.
    """

    schema: Literal[1]
    plan: str
    digests: dict[str, str]


class KeptMaps:
    """The label maps of one evaluation.

    Args:
        folder: where they appear; missing, empty, or with those of an earlier evaluation, which they replace.
        plan: digest of what they are made of: those of another plan do not mix with them.
        cases: all cases of the split.

    Raises:
        InputError: the folder holds other files, or cannot be made.
    """

    def __init__(self, folder: Path, plan: str, cases: Sequence[str]) -> None:
        self.folder, self._plan, self._cases = folder, plan, tuple(cases)
        self._target = Path(os.path.realpath(folder))
        if self._target == Path(os.path.realpath(os.curdir)):
            raise InputError(f"{folder}: is the folder that this process is in; give another one")
        self._hidden = self._target.with_name(f".{self._target.name}.{plan[:16]}.maps")
        self._there = self._refuse_foreign()
        if not self.finished():
            try:
                self._hidden.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._cannot(error) from None

    @classmethod
    def of(cls, folder: Path | None, scoring: "Scoring", inputs: "Inputs", cases: Sequence[str]) -> "KeptMaps | None":
        """Those that `--write` asks for; None where it does not.

        Raises:
            InputError: see the class; or the label maps come from a folder already.
        """
        if folder is None:
            return None
        if scoring.predictions is not None:
            raise InputError("--write: keeps what the network predicts; leave it out with --predictions")
        return cls(folder, inputs.plan, cases)

    def finished(self) -> bool:
        """Whether the folder holds all label maps of this plan."""
        there = self._there
        return there is not None and (there.plan, tuple(there.digests)) == (self._plan, self._cases)

    def path(self, case: str) -> Path | None:
        """The file that a process writes; None where the folder is finished already."""
        return None if self.finished() else self._hidden / f"{case}.nii.gz"

    def has(self, case: str) -> bool:
        """Whether the label map of a case is written."""
        file = self.path(case)
        return file is None or file.is_file()

    def finish(self) -> None:
        """Let the folder appear, with the label maps of all cases.

        Raises:
            InputError: some are not there, or the folder cannot be renamed.
        """
        self._there = self._refuse_foreign()  # somebody else may have let it appear
        if self.finished():
            return
        if missing := [case for case in self._cases if not self.has(case)]:
            raise InputError(
                f"{self.folder}: {len(missing)} of {len(self._cases)} label maps are not written "
                f"({listed(missing, 3)}); run 'smile-fast evaluate' for their shards, with the same options"
            )
        digests = {case: sha256(self._hidden / f"{case}.nii.gz") for case in self._cases}
        write_record(self._hidden / RECORD, {"schema": _SCHEMA, "plan": self._plan, "digests": digests})
        with patiently(lambda: locked(self._target.parent, f".{self._target.name}.writing")):
            self._refuse_foreign()  # once more: it is about to be replaced
            try:
                self._appear()
            except OSError as error:
                raise self._cannot(error) from None
        self._there = self._refuse_foreign()

    def _appear(self) -> None:
        for cut_short in self._hidden.glob(".tmp-*"):  # by processes that were killed
            cut_short.unlink()
        flush(self._hidden)
        old = self._target.with_name(f".{self._target.name}.old.maps")
        shutil.rmtree(old, ignore_errors=True)
        if self._target.exists():
            os.rename(self._target, old)
        os.rename(self._hidden, self._target)
        flush(self._target.parent)
        ours = re.compile(rf"\.{re.escape(self._target.name)}\.[0-9a-f]{{16}}\.maps")
        unfinished = [entry for entry in self._target.parent.iterdir() if ours.fullmatch(entry.name)]
        for left in (old, *unfinished):  # of other plans
            shutil.rmtree(left, ignore_errors=True)

    def _refuse_foreign(self) -> _Record | None:
        """What the folder holds; None of a folder that is empty or not there."""
        if not self._target.exists():
            return None
        try:
            names = {entry.name for entry in self._target.iterdir()} - {LOCK}
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be read ({reason(error)}); give another folder") from None
        if not names:
            return None
        found = None
        if RECORD in names:
            with suppress(InputError):  # a record that is damaged names nothing
                found = read_record(self._target / RECORD, _Record, _SCHEMA, "give another folder")
        written = {f"{case}.nii.gz": digest for case, digest in (found.digests if found else {}).items()}
        known = {RECORD, *written}
        if foreign := sorted(names - known if found else names):
            raise InputError(
                f"{self.folder}: holds files that no evaluation has written there ({listed(foreign, 3)}); give a new "
                "folder"
            )
        if changed := [name for name, digest in written.items() if self._changed(name, digest)]:
            raise InputError(
                f"{self.folder}: holds label maps that were changed since they were written ({listed(changed, 3)}); "
                "give a new folder"
            )
        return found

    def _changed(self, name: str, digest: str) -> bool:
        file = self._target / name
        return not file.is_file() or sha256(file) != digest

    def _cannot(self, error: OSError) -> InputError:
        return InputError(f"{self.folder}: the label maps cannot be kept ({reason(error)}); give another folder")


def write_label_map(
    path: Path,
    slices: NDArray[np.uint8],  # [D, H, W]
    case: CaseInfo,
    organs: Sequence[str],
) -> None:
    """Write a label map in slices order as NIfTI, on the grid of its case.

    Raises:
        InputError: it cannot be written.
    """
    from smile_runtime.io.nifti import write_labels

    write_labels(path, np.ascontiguousarray(slices.transpose(2, 1, 0)), np.array(case.affine), organs=organs)
