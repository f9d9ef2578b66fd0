"""Tests that need a GPU: collected only with SMILE_FAST_GPU=1, and then a missing GPU or core is a failure.

With SMILE_FAST_GPU=rehearse they run on the CPU, on its implementations: what the tests themselves do is tested so.
"""

import os

import pytest
import torch

from smile_fast.ops.native_cuda.core import UNUSABLE

collect_ignore_glob = [] if os.environ.get("SMILE_FAST_GPU") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    if os.environ.get("SMILE_FAST_GPU") != "rehearse":
        assert torch.cuda.is_available(), "SMILE_FAST_GPU=1 without a CUDA device"
        assert UNUSABLE == "", UNUSABLE
