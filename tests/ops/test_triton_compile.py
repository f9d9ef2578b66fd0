"""Every Triton kernel is compiled for the GPUs that matter, without one: it fits into the registers, for every size.

Triton brings NVIDIA's assembler along. The ops say what they launch (`tests/ops/triton_launches.py`), in each
configuration that a GPU may choose. Triton compiles anew for an integer that is 1, which it makes a constant, for one
that is a multiple of 16, and for one above 2^31. `make gpu-compile` runs only this file.
"""

import re
import struct
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has packages for Linux only")
import triton
from triton.compiler import CompiledKernel

from smile_fast.ops.triton_kernels.core import INTERPRETED
from tests.ops.triton_launches import (
    EXAMPLES,
    MULTIPLE_OF_16,
    ONE,
    Launch,
    kernels_of_the_package,
    launches,
    ops_with_kernels,
)

pytestmark = pytest.mark.slow
ARCHITECTURES = [80, 90, 100]
assert not INTERPRETED, "these tests compile; unset TRITON_INTERPRET"
LAUNCHES = launches()
EACH = list({launch.kernel.__name__: launch for launch in reversed(LAUNCHES)}.values())
"""One launch of each kernel."""
VARIANTS = list({launch.variant: launch for launch in reversed(LAUNCHES)}.values())
"""One launch of each kernel and combination of the switches in it."""


def stack_bytes(kernel: CompiledKernel, folder: Path) -> int:
    """Return how many bytes a thread keeps in memory for want of registers."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (stack,), (local,) = re.findall(r"STACK:(\d+)", listing), re.findall(r"LOCAL:(\d+)", listing)
    return int(stack) + int(local)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def launched(kernel: str, pointer: str) -> Launch:
    return next(one for one in LAUNCHES if one.kernel.__name__ == kernel and one.types[0][1] == pointer)


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_kernels_compile_without_spilling(launch: Launch, tmp_path: Path) -> None:
    assert stack_bytes(launch.where(launch.integers, MULTIPLE_OF_16).compiled(90), tmp_path) == 0


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != 90])
@pytest.mark.parametrize("launch", EACH, ids=str)
def test_kernels_compile_for_other_generations(launch: Launch, architecture: int, tmp_path: Path) -> None:
    assert stack_bytes(launch.compiled(architecture), tmp_path) == 0


@pytest.mark.parametrize("launch", EACH, ids=str)
def test_integers_of_one_compile(launch: Launch, tmp_path: Path) -> None:
    assert stack_bytes(launch.where(launch.integers, ONE).compiled(90), tmp_path) == 0


@pytest.mark.parametrize("launch", VARIANTS, ids=str)
def test_types_are_right_for_every_kind_of_integer(launch: Launch) -> None:
    launch.check_types(90)
    launch.with_large().check_types(90)
    launch.where(launch.integers, ONE).check_types(90)
    for name in launch.integers:
        launch.where([name], ONE).check_types(90)


@pytest.mark.parametrize("stride", [8, 3])
@pytest.mark.parametrize("kernel", ["count_kernel", "overlay_kernel"])
def test_scores_are_rounded_once(kernel: str, stride: int) -> None:
    launch = next(one for one in LAUNCHES if one.kernel.__name__ == kernel and ("STRIDE", stride) in one.constants)
    ptx = launch.compiled(90).asm["ptx"]
    assert "fma.rn.f64" not in ptx  # the interpreter, which the bits are tested in, does not fuse
    assert ".ftz" not in ptx  # denormal scores are candidates
    unit = struct.pack(">d", 1 / (2 * stride) ** 2).hex()
    assert f"0d{unit}" in ptx.lower()  # not the nearest float32
    assert "cvt.rn.f32.f64" in ptx


def test_labels_are_decided_without_flushing() -> None:
    ptx = launched("label_map_upsampled_kernel", "*fp32").compiled(90).asm["ptx"]
    assert "fma.rn.f64" not in ptx
    assert ".ftz" not in ptx  # the smallest logits are compared, too


def test_a_kernel_that_spills_is_noticed(tmp_path: Path) -> None:
    launch = launched("masked_bce_upsampled_kernel", "*fp32")
    tight = dict(launch.options) | {"maxnreg": 24}
    assert stack_bytes(
        Launch(launch.kernel, launch.types, launch.constants, tuple(tight.items())).compiled(90), tmp_path
    )


def test_every_kernel_is_compiled() -> None:
    assert set(ops_with_kernels()) == set(EXAMPLES)
    assert kernels_of_the_package() == {launch.kernel.__name__ for launch in LAUNCHES}
