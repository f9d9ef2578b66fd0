"""Files of a store that nothing names any more: they go when nobody reads the store and nobody else prepares it."""

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from smile_fast.data.arrays import array_name
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.data.store import BROKEN_FILE, CASE_FILE, CASES, Store, read_case
from smile_runtime.errors import InputError

_TEMPORARY = ".tmp-*"
_ARRAY = re.compile(r"(image|labels)(-[0-9a-f]+)?\.b2nd")


def sweep(store: Store, cohort: Collection[str]) -> None:
    """Remove what earlier conversions left; nothing while others read the store, it then stays until the next time.

    Args:
        store: as its index is now; nobody else prepares it.
        cohort: the names of all cases of the dataset, the broken ones, too. Folders of other cases go.
    """
    with suppress(InputError), locked(store.path, stays=True) as alone:  # the error: somebody reads it
        if not alone:
            return
        with suppress(OSError):
            for path in store.path.glob(_TEMPORARY):
                path.unlink()
        for folder in (store.path / CASES).iterdir():
            if folder.is_dir() and not folder.is_symlink():
                kept = _named(store, folder) if folder.name in cohort else set()
                _sweep_case(folder, folder.name in cohort, kept)


def _named(store: Store, folder: Path) -> set[str]:
    """The arrays that the index or case.json name; case.json may be newer, or of a case that is broken now."""
    infos = [store.cases[folder.name]] if folder.name in store.cases else []
    with suppress(InputError):
        infos.append(read_case(folder).case)
    return {array_name(array, digest) for info in infos for array, digest in info.arrays.items()}


def _sweep_case(folder: Path, is_in_cohort: bool, kept: Collection[str]) -> None:
    with suppress(OSError):  # what cannot be removed is in nobody's way
        for path in list(folder.iterdir()):
            array = _ARRAY.fullmatch(path.name) is not None and path.name not in kept
            record = not is_in_cohort and path.name in (CASE_FILE, BROKEN_FILE)
            if array or record or path.name == LOCK or path.match(_TEMPORARY):  # the last two: of killed calls
                path.unlink()
        if not is_in_cohort:
            folder.rmdir()
