"""Fixtures that several folders of tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks are tiny in the tests: a second thread only waits, badly so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fair_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts take this worker's share of the cores: threads that fight for one only wait."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT data: $SMILE_FAST_DATA, or ../shared/data seen from the repository."""
    folder = Path(os.environ.get("SMILE_FAST_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder} (set SMILE_FAST_DATA)")
    return folder
