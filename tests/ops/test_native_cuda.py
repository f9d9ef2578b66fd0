"""The CUDA core on machines without a GPU: it loads, says why it cannot run, and is never chosen by accident.

Its kernels are executed by csrc/tests (on the host) and by tests/gpu (on a GPU).
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from smile_fast.ops import OPS, available, masked_bce
from smile_fast.ops.native.core import load, refused_dtype
from smile_fast.ops.native_cuda import core
from tests.ops.problems import problem

NVCC = shutil.which("nvcc") is not None and os.environ.get("SMILE_FAST_REQUIRE_NATIVE") == "1"


def test_loads_wherever_it_was_built() -> None:
    if NVCC:
        assert core.UNUSABLE == ""
    assert (core.CORE is None) == bool(core.UNUSABLE)


@pytest.mark.skipif(core.CORE is None, reason="needs the core")
def test_holds_code_for_two_architectures_and_ptx_for_later_ones() -> None:
    tool = pytest.importorskip("triton").knobs.nvidia.cuobjdump.path  # NVIDIA's, which Triton brings along
    found = {
        kind: subprocess.run(
            [tool, f"--list-{kind}", core.CORE.__file__], check=True, capture_output=True, text=True
        ).stdout
        for kind in ("elf", "ptx")
    }
    assert "sm_80" in found["elf"]
    assert "sm_90" in found["elf"]
    assert "sm_90" in found["ptx"]


def test_comes_before_the_reference_on_cuda() -> None:
    # On CUDA the others have Triton alone.
    for op in set(OPS) - {"label_map_upsampled", "pseudo_labels_upsampled", "masked_bce_upsampled"}:
        names = [name for name, _, _ in available(op, "cuda")]
        assert names.index("cuda") < names.index("reference")
        assert dict((name, usable) for name, usable, _ in available(op, "cpu"))["cuda"] is False


def test_by_name_never_falls_back() -> None:
    given = problem(1, 2, (4, 4), torch.float32)
    reason = re.escape(core.UNUSABLE or "it runs on cuda only")
    with pytest.raises(ValueError, match=f"'cuda' of masked_bce cannot be used: {reason}"):
        masked_bce(given.logits, given.labels, given.table, implementation="cuda")


def test_refuses_float64() -> None:
    assert "float64" in refused_dtype(torch.ones(1, dtype=torch.float64))
    assert refused_dtype(torch.ones(1)) == ""


def test_core_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module, reason = load("_native_cuda", core.NOT_BUILT)
    assert module is None
    assert "SMILE_FAST_CUDA=ON" in reason


def test_core_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libstdc++.so.6: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(importlib, "import_module", broken)
    module, reason = load("_native_cuda", core.NOT_BUILT)
    assert module is None
    assert reason.startswith("the CUDA core does not load: libstdc++")


@pytest.mark.skipif(core.CORE is None or torch.cuda.is_available(), reason="needs the core, and no GPU")
def test_without_a_driver_a_kernel_raises() -> None:
    with pytest.raises(RuntimeError, match=r"scale_gradient: (CUDA driver|no CUDA)"):
        core.CORE.scale_gradient(dtype="float32", gradient=0, factors=0, channels=1, voxels=1, workspace=0, stream=0)


@pytest.mark.skipif(core.CORE is None, reason="needs the core")
def test_workspace_is_small() -> None:
    arguments = dict.fromkeys(("labels", "table", "loss", "sums", "counts", "gradient", "logits"), 0)
    shape = {"batch": 4, "organs": 13, "dtype": "bfloat16"}
    logits = 4 * 13 * 512 * 512 * 2
    assert core.CORE.masked_bce_workspace(**arguments, **shape, voxels=512 * 512, mean=True) < 0.01 * logits
