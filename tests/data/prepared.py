"""`prepare` as most tests call it: in this process, and without a word."""

from pathlib import Path
from typing import Any

from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import Prepared, prepare
from smile_fast.data.store import Store

SILENT = dict.fromkeys(("report", "note"), lambda text: None)


def run(cohort: Path, out: Path, **options: Any) -> Prepared:
    return prepare(RawDataset.open(cohort), out, **{"workers": 1, **SILENT, **options})


def voxels(store: Store) -> dict[str, tuple[bytes, bytes]]:
    """Image and human labels of every case."""
    return {name: (store.read_image(name).tobytes(), store.read_labels(name).tobytes()) for name in store.cases}
