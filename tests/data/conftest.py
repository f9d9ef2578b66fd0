from pathlib import Path

import pytest

from tests.cohorts import annotate, make_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three training cases and one held-out one, all annotated."""
    path = make_cohort(tmp_path / "cohort", train=3, test=1)
    annotate(path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "store"
