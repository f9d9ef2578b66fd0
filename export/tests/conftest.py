"""Fixtures of the runtime's tests, which need numpy, nibabel, onnxruntime, onnx and pytest, and nothing else."""

import os
import signal
from pathlib import Path

import pytest
from tiny_models import write_neighbour_model, write_threshold_model

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _handlers():
    """The command takes SIGTERM over; a test process wants it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real CT data: $SMILE_FAST_DATA, or ../shared/data seen from the repository."""
    folder = Path(os.environ.get("SMILE_FAST_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder} (set SMILE_FAST_DATA)")
    return folder


@pytest.fixture(scope="session")
def threshold_model(tmp_path_factory):
    """HU > 100 is organ 1, > 300 organ 2."""
    return write_threshold_model(tmp_path_factory.mktemp("model") / "threshold.onnx")


@pytest.fixture(scope="session")
def neighbour_model(tmp_path_factory):
    """A model whose answer changes if any axis is reversed or two are swapped."""
    return write_neighbour_model(tmp_path_factory.mktemp("model") / "neighbours.onnx")
