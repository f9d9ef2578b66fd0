"""The same scan twice in a cohort, told by its voxels: the header and the compression of its file do not matter."""

from collections.abc import Iterable, Mapping

from smile_fast.data.case_info import IMAGE
from smile_fast.data.store import Store
from smile_fast.text_table import listed


def same_scans(digests: Mapping[str, str]) -> list[list[str]]:
    """Groups of cases, two or more, that are the same scan.

    Args:
        digests: case -> checksum of its voxels.
    """
    names: dict[str, list[str]] = {}
    for name, digest in digests.items():
        names.setdefault(digest, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def leak_warning(store: Store, training: Iterable[str], scored: Iterable[str]) -> str | None:
    """Say which cases that are trained on are also scored under another name.

    Args:
        store: the cohort.
        training: the cases to train on.
        scored: other cases of the cohort.

    Returns:
        One sentence that names both of each pair, None if there is no such pair.
    """
    trained = {store.cases[name].arrays[IMAGE]: name for name in training}
    found = ((trained.get(store.cases[name].arrays[IMAGE]), name) for name in scored)
    pairs = [f"{first} and {name}" for first, name in found if first is not None]
    if not pairs:
        return None
    return (
        f"{store.path}: the same scan is in training and among the cases to score ({listed(pairs)}), whose scores will "
        "be too good; take one of them out of the dataset"
    )


def repeat_warning(store: Store, cases: Iterable[str]) -> str | None:
    """Say which of some cases are the same scan under several names; see `leak_warning`."""
    digests = {name: store.cases[name].arrays[IMAGE] for name in cases}
    groups = [" and ".join(group) for group in same_scans(digests)]
    if not groups:
        return None
    return (
        f"{store.path}: the same scan stands under several names ({listed(groups)}) and counts as often; keep one of "
        "them, with all that was drawn in any"
    )
