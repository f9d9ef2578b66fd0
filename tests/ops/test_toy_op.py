"""An operator is added by exactly the steps of CONTRIBUTING.md, in a copy of the tree: how many files does it take?

The copy is a package of its own, in a process of its own. Its core is a stand-in that works on the addresses which the
launcher hands over, since building the C++ core takes minutes; that it would be built and bound is tested beside it.
"""

import fnmatch
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_FILES, MOST_FOLDERS = 8, 4

REFERENCE = '''

def toy(values: Tensor, factor: float) -> Tensor:
    """Kernel of `smile_fast::toy`: [N] float times a factor."""
    return values * factor
'''

OP = '''"""toy: [N] times a factor."""

from typing import cast

import torch
from torch import Tensor

from smile_fast.ops.checks import FLOATS, check_dtype
from smile_fast.ops.native.core import Core, native
from smile_fast.ops.registry import define, overload


def _check(values: Tensor, factor: float) -> None:
    check_dtype("values", values, *FLOATS)
    if values.ndim != 1:
        raise ValueError(f"values must have shape [N], got {list(values.shape)}")


def _launch(core: Core, values: Tensor, factor: float) -> Tensor:
    products = core.empty(values.shape, values)
    core.run("toy", values.dtype, values=values, length=values.shape[0], factor=factor, products=products)
    return products


define(
    "toy",
    "(Tensor values, float factor) -> Tensor",
    check=_check,
    fake=lambda values, factor: values.new_empty(values.shape),
    native=native(_launch),
)


def toy(values: Tensor, factor: float, *, implementation: str | None = None) -> Tensor:
    """Multiply [N] by a factor."""
    return cast(Tensor, overload("toy", implementation, values, factor)(values, factor))
'''

EXPORT = """
from smile_fast.ops.toy import toy

OPS = defined()
__all__ += ["toy"]
"""

HEADER = """// toy: [N] times a factor.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

struct ToyArguments {
  DType dtype;
  const void* values;  // [length]
  std::int64_t length;
  double factor;
  void* products;  // [length], written
};

void toy_cpu(const ToyArguments& arguments, int threads);

}  // namespace smile_fast
"""

KERNEL = """#include "core/toy/toy.h"

namespace smile_fast {

void toy_cpu(const ToyArguments& arguments, int) {
  for (std::int64_t i = 0; i < arguments.length; ++i)
    static_cast<float*>(arguments.products)[i] =
        static_cast<float>(static_cast<const float*>(arguments.values)[i] * arguments.factor);
}

}  // namespace smile_fast
"""

TEST = """
import ctypes
from types import SimpleNamespace

import numpy as np
import torch
from smile_fast.ops.native import core


def stand_in(*, dtype, values, length, factor, products, threads):
    assert dtype == "float32" and threads == torch.get_num_threads()
    source, target = (
        np.ctypeslib.as_array((ctypes.c_float * length).from_address(address)) for address in (values, products)
    )
    target[:] = source * np.float32(factor)


core.CORE, core.UNUSABLE = SimpleNamespace(toy=stand_in, Memory=core.CORE and core.CORE.Memory), ""

from smile_fast.ops import OPS, available, toy

assert "toy" in OPS
assert [name for name, usable, _ in available("toy", "cpu") if usable] == ["native", "reference"]
values = torch.randn(7, 2)[:, 0]  # not contiguous
op = torch.ops.smile_fast.toy
assert torch.equal(toy(values, 2.5, implementation="native"), toy(values, 2.5, implementation="reference"))
assert torch.equal(toy(values, 2.5), values * 2.5)
for kernel in (op.default, op.native, op.reference):
    torch.library.opcheck(kernel, (values, 2.5))
    torch.library.opcheck(kernel, (values.clone().requires_grad_(), 2.5))
compiled = torch.compile(lambda x: toy(x, 2.5), fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(values), values * 2.5)


def refused(kernel, *arguments):
    try:
        kernel(*arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError(f"{kernel} took {arguments}")


for kernel in (toy, op, op.default, op.native, op.reference):
    assert refused(kernel, values[None], 2.5) == "values must have shape [N], got [1, 7]"
    assert refused(kernel, values.int(), 2.5).startswith("values must have dtype torch.float32")
assert refused(toy, [1.0], 2.5) == "values must be a tensor, got list"
assert refused(toy, values, True) == "factor must be a float, got bool"
assert "cannot be used: it computes in float32" in refused(op.native, values.double(), 2.5)
print("toy works")
"""

FILES = {
    "smile_fast/ops/reference.py": REFERENCE,
    "smile_fast/ops/<op>.py": OP,
    "smile_fast/ops/__init__.py": EXPORT,
    "csrc/core/<op>/<op>.h": HEADER,
    "csrc/core/<op>/<op>_cpu.cpp": KERNEL,
    "csrc/bindings/native.cpp": "",  # bound() says how
    "tests/ops/test_<op>.py": TEST,
}


def bound(source: str) -> str:
    """Bind the toy in native.cpp: its header, the names of its fields, and one line."""
    pool = '#include "core/common/memory_pool.h"\n'
    source = source.replace(pool, pool + '#include "core/toy/toy.h"\n')
    fields = 'constexpr std::array kToy{"dtype", "values", "length", "factor", "products"};\n'
    source = source.replace(
        "constexpr std::array kLabelMapUpsampled", fields + "constexpr std::array kLabelMapUpsampled"
    )
    first = '  bind_op(module, "label_map_upsampled"'
    return source.replace(first, '  bind_op(module, "toy", kToy, &toy_cpu);\n' + first)


def steps() -> list[str]:
    """Return the numbered steps of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Add an operator")[1].split("\n## ")[0].split("\n\nWhat a kernel needs")[0]
    return re.split(r"\n\d\. ", section)[1:]


def test_an_op_touches_at_most_eight_files_in_four_folders() -> None:
    named = [
        path for step in steps() for path in re.findall(r"`((?:smile_fast|csrc|tests)/[^`]+\.(?:py|h|cpp))`", step)
    ]
    assert set(named) == set(FILES)
    assert len(set(named)) <= MOST_FILES
    assert len({Path(path).parent for path in FILES}) <= MOST_FOLDERS


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the steps change, with the toy in it."""
    shutil.copytree(
        ROOT / "smile_fast" / "ops", tmp_path / "smile_fast" / "ops", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(
        ROOT / "export" / "smile_runtime", tmp_path / "smile_runtime", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "smile_fast" / "__init__.py").write_text("")
    for folder in ("core", "bindings"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / "csrc" / folder)
    for pattern, addition in FILES.items():
        path = tmp_path / pattern.replace("<op>", "toy")
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(bound(before) if path.name == "native.cpp" else before + addition, encoding="utf-8")
    return tmp_path


def test_the_toy_works_like_every_op(tree: Path) -> None:
    command = [sys.executable, str(tree / "tests" / "ops" / "test_toy.py")]
    environment = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("toy works\n"), done.stderr


def test_the_toys_kernel_is_found_by_the_build() -> None:
    patterns = re.findall(r"file\(GLOB \w+ CONFIGURE_DEPENDS (\S+?)\)", (ROOT / "CMakeLists.txt").read_text())
    assert any(fnmatch.fnmatch("csrc/core/toy/toy_cpu.cpp", pattern) for pattern in patterns)


@pytest.mark.skipif(
    not (shutil.which("g++") and importlib.util.find_spec("pybind11")), reason="needs a compiler and pybind11"
)
def test_the_toys_struct_fits_its_binding(tree: Path) -> None:
    includes = subprocess.run(
        [sys.executable, "-m", "pybind11", "--includes"], check=True, capture_output=True, text=True
    )
    for source in ("bindings/native.cpp", "core/toy/toy_cpu.cpp"):
        command = ["g++", "-std=c++20", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
        done = subprocess.run(
            [*command, *includes.stdout.split(), f"csrc/{source}"], cwd=tree, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
