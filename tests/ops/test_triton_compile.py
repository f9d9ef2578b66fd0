"""Every Triton kernel is compiled for the GPUs that matter, without one: it must fit into the registers.

Triton brings NVIDIA's assembler along. Each configuration that a GPU may choose is compiled, `make gpu-compile` runs
only this file.
"""

import re
import struct
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton has packages for Linux only")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from smile_fast.ops.triton_kernels import (
    counts,
    interpolation,
    label_map_upsampled,
    masked_bce,
    masked_bce_upsampled,
    pseudo_labels_upsampled,
    scale_gradient,
    select_top_fraction,
)
from smile_fast.ops.triton_kernels.core import INTERPRETED, Configuration

pytestmark = pytest.mark.slow
ARCHITECTURES = [80, 90]
POINTERS = {
    **{name: "*u8" for name in ("labels", "candidates", "selection", "selected", "overlay")},
    **{name: "*i16" for name in ("offsets",)},
    **{name: "*i32" for name in ("table", "sizes", "ties")},
    **{name: "*u32" for name in ("keys",)},
    **{name: "*i64" for name in ("total", "histogram", "histograms", "segments", "sums_of_ties", "counts")},
    **{name: "*fp32" for name in ("partials", "best")},
    **{name: "*fp64" for name in ("sums", "shares", "factors")},
}
OF_THE_LOGITS = ("logits", "gradient", "scores")
MULTIPLES_OF_16 = ("voxels", "length")  # Triton compiles such sizes anew, with wide accesses


class Case(NamedTuple):
    """One kernel as one launch would compile it."""

    module: ModuleType
    kernel: str
    dtype: str
    choice: Configuration

    def __str__(self) -> str:
        values = "-".join(f"{name}={value}" for name, value in self.choice.constants.items())
        return f"{self.kernel}-{self.dtype}-{values}-warps={self.choice.warps}"


def with_constants(choice: Configuration, **constants: object) -> Configuration:
    return choice._replace(constants={**choice.constants, **constants})


def loss_cases() -> list[Case]:
    cases = []
    for dtype in ("fp32", "bf16", "fp16"):
        for choice in masked_bce.CONFIGURATIONS:
            for with_grad in (True, False) if dtype == "fp32" else (True,):
                full = with_constants(choice, PRECISE=dtype == "fp32", WITH_GRAD=with_grad, MEAN=with_grad)
                cases.append(Case(masked_bce, "masked_bce_kernel", dtype, full))
        for volume, choices in masked_bce_upsampled.CONFIGURATIONS.items():
            for choice in choices if dtype == "fp32" else choices[:1]:
                for with_grad in (True, False) if dtype == "fp32" else (True,):
                    full = with_constants(choice, PRECISE=False, WITH_GRAD=with_grad, VOLUME=volume)
                    cases.append(Case(masked_bce_upsampled, "masked_bce_upsampled_kernel", dtype, full))
    return cases


def other_cases() -> list[Case]:
    cases = [Case(counts, "finish_kernel", "fp32", Configuration({"PARTIALS": counts.PARTIALS}))]
    for mean in (False, True):
        choice = Configuration({"CHUNK": counts.CHUNK, "MEAN": mean})
        cases.append(Case(counts, "histogram_kernel", "fp32", choice))
    for dtype in ("fp32", "bf16", "fp16"):
        choice = Configuration({"BLOCK": scale_gradient.BLOCK, "BLOCKS": scale_gradient.BLOCKS})
        cases.append(Case(scale_gradient, "scale_gradient_kernel", dtype, choice))
    for dtype, levels in (("fp32", 4), ("fp16", 3), ("bf16", 2)):
        sizing = {"LEVELS": levels, "TILE": select_top_fraction.TILE, "BLOCK": select_top_fraction.BLOCK}
        cases.append(Case(select_top_fraction, "compact_kernel", dtype, Configuration(sizing, registers=128)))
        for level in range(1, levels):
            choice = Configuration({**sizing, "LEVEL": level}, registers=128)
            cases.append(Case(select_top_fraction, "refine_kernel", dtype, choice))
        for kernel in ("count_ties_kernel", "write_kernel"):
            choice = Configuration({**sizing, "SPAN": select_top_fraction.SPAN}, registers=128)
            cases.append(Case(select_top_fraction, kernel, dtype, choice))
    return cases


def sized(constants: dict[str, object]) -> Configuration:
    return Configuration({**constants, "BLOCK": interpolation.BLOCK}, registers=interpolation.REGISTERS)


def upsampled_cases() -> list[Case]:
    cases = [Case(pseudo_labels_upsampled, "keep_kernel", "fp32", sized({}))]
    for dtype in ("fp32", "bf16", "fp16"):
        for stride in (8, 3):
            sizing = sized({"STRIDE": stride})
            cases.append(Case(pseudo_labels_upsampled, "scores_kernel", dtype, sizing))
            for softmax in (False, True):
                choice = with_constants(sizing, SOFTMAX=softmax)
                cases.append(Case(label_map_upsampled, "label_map_upsampled_kernel", dtype, choice))
    return cases


CASES = [*loss_cases(), *other_cases(), *upsampled_cases()]


def compiled(case: Case, architecture: int) -> CompiledKernel:
    """Compile one kernel as the launch of an aligned problem would."""
    assert not INTERPRETED, "these tests compile; unset TRITON_INTERPRET"
    kernel = getattr(case.module, case.kernel)
    types = POINTERS | dict.fromkeys(OF_THE_LOGITS, f"*{case.dtype}")
    if case.module is pseudo_labels_upsampled:
        types |= {"scores": "*fp32"}  # whatever the logits are
    signature = {
        name: "constexpr" if name in case.choice.constants else types.get(name, "i32") for name in kernel.arg_names
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in MULTIPLES_OF_16
    }
    source = ASTSource(kernel, signature, case.choice.constants, aligned)
    target = GPUTarget("cuda", architecture, 32)
    options = {name: value for name, value in case.choice.launch_options.items() if name not in case.choice.constants}
    return triton.compile(source, target=target, options=options)


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_compile_without_spilling(case: Case, architecture: int, tmp_path: Path) -> None:
    assert stack_bytes(compiled(case, architecture), tmp_path) == 0


def test_logits_are_read_and_gradients_written_16_bytes_at_a_time() -> None:
    for dtype in ("fp32", "bf16"):
        case = next(case for case in CASES if case.kernel == "masked_bce_kernel" and case.dtype == dtype)
        ptx = compiled(case, 90).asm["ptx"]
        assert "ld.global.v4.b32" in ptx
        assert "st.global.v4.b32" in ptx


@pytest.mark.parametrize("stride", [8, 3])
def test_scores_are_rounded_once(stride: int) -> None:
    choice = sized({"STRIDE": stride})
    ptx = compiled(Case(pseudo_labels_upsampled, "scores_kernel", "fp32", choice), 90).asm["ptx"]
    assert "fma.rn.f64" not in ptx  # the interpreter, which the bits are tested in, does not fuse
    assert ".ftz" not in ptx  # denormal scores are candidates
    unit = struct.pack(">d", 1 / (2 * stride) ** 2).hex()
    assert f"0d{unit}" in ptx.lower()  # not the nearest float32
    assert "cvt.rn.f32.f64" in ptx


def test_a_kernel_that_spills_is_noticed(tmp_path: Path) -> None:
    constants = {"CELLS": 1024, "GROUP": 1, "PRECISE": False, "WITH_GRAD": True, "VOLUME": True}
    choice = Configuration(constants, warps=8)
    case = Case(masked_bce_upsampled, "masked_bce_upsampled_kernel", "fp32", choice)
    assert stack_bytes(compiled(case, 90), tmp_path) > 0


def test_every_kernel_is_compiled() -> None:
    modules = (
        *(counts, masked_bce, masked_bce_upsampled, scale_gradient, select_top_fraction),
        *(label_map_upsampled, pseudo_labels_upsampled),
    )
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert kernels == {case.kernel for case in CASES}
