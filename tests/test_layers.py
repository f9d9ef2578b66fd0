"""Who may import whom. Every import counts, also one inside of a function: laziness is no exemption."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
EVERYTHING = {
    f"smile_fast.{layer}"
    for layer in (
        "cli",
        "data",
        "demo",
        "evaluation",
        "exporter",
        "losses",
        "models",
        "ops",
        "report",
        "supervision",
        "training",
    )
}
BELOW_TRAINING = {"smile_fast.data", "smile_fast.models", "smile_fast.ops", "smile_fast.supervision", "smile_runtime"}
BESIDE_TRAINING = BELOW_TRAINING | {"smile_fast.training", "smile_fast.evaluation"}

# Layer -> what it may import beside the standard library and itself; the longest matching layer decides.
ALLOWED: dict[str, set[str]] = {
    "smile_fast": set(),
    "smile_fast.__main__": {"smile_fast.cli"},
    "smile_fast.ops": {"torch", "triton", "smile_fast._native", "smile_fast._native_cuda"},
    "smile_fast.ops.reference": {"torch"},
    "smile_fast.losses": {"torch", "smile_fast.ops"},
    "smile_fast.supervision": {"numpy", "torch", "smile_runtime"},
    "smile_fast.models": {"torch"},
    "smile_fast.data": {"blosc2", "nibabel", "numpy", "scipy", "smile_fast.supervision", "smile_runtime"},
    "smile_fast.training": BELOW_TRAINING | {"numpy", "safetensors", "torch"},
    "smile_fast.evaluation": BESIDE_TRAINING | {"numpy", "scipy", "surface_distance", "torch"},
    "smile_fast.exporter": BESIDE_TRAINING | {"numpy", "onnx", "onnxruntime", "onnxscript", "torch"},
    "smile_fast.report": BESIDE_TRAINING | {"PIL", "jinja2", "matplotlib", "numpy", "scipy"},
    "smile_fast.cli": EVERYTHING | {"numpy", "smile_runtime", "torch"},
    "smile_fast.demo": EVERYTHING | {"nibabel", "numpy", "scipy", "smile_runtime", "torch"},
    "smile_runtime": {"nibabel", "numpy", "onnxruntime"},
    "smile_runtime.volume.components": {"numpy", "scipy", "smile_runtime"},
}
# What may be imported before a command's help is printed; each of them imports only the standard library and its peers.
LIGHT = {
    "smile_fast.cli",
    "smile_fast.training.config",
    "smile_runtime.predict.arguments",
    "smile_runtime.errors",
    "smile_runtime.io.files",
}
NO_SELF_IMPORT = {"smile_fast", "smile_fast.ops.reference"}  # layers that may not even import their siblings


class Import(NamedTuple):
    module: str  # dotted name of what is imported
    line: int
    lazy: bool  # inside of a function, or for type checkers only


def imports_of(tree: ast.Module) -> Iterator[Import]:
    """Yield every import of a module, wherever it stands."""
    eager: set[ast.AST] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        eager.add(node)
        functions = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not functions and not type_checking:
            pending.extend(ast.iter_child_nodes(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node not in eager)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            for alias in node.names:
                submodule = node.module == "smile_fast" and not alias.name.startswith("__")
                name = f"{node.module}.{alias.name}" if submodule else str(node.module)
                yield Import(name, node.lineno, node not in eager)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
                yield Import(str(node.args[0].value), node.lineno, node not in eager)


def belongs(module: str, layer: str) -> bool:
    return module == layer or module.startswith(layer + ".")


def layer_in(module: str, layers: set[str]) -> bool:
    return any(belongs(module, layer) for layer in layers)


def layer_of(module: str) -> str:
    return max((layer for layer in ALLOWED if belongs(module, layer)), key=len)


def violations(module: str, tree: ast.Module) -> list[str]:
    """Return the imports of a module that its layer forbids."""
    layer = layer_of(module)
    found = []
    for imported in imports_of(tree):
        name = imported.module
        own = belongs(name, layer) and layer not in NO_SELF_IMPORT
        root = name == "smile_fast" and belongs(module, "smile_fast")  # holds the version and imports nothing
        standard = name.split(".")[0] in sys.stdlib_module_names
        if not (own or root or standard or layer_in(name, ALLOWED[layer])):
            found.append(f"{module}:{imported.line} imports {name}, which {layer} may not")
    return found


def heavy_imports(module: str, tree: ast.Module) -> list[str]:
    """Return the imports of a command that run before its help can be printed."""
    return [
        f"{module}:{imported.line} imports {imported.module} at module level"
        for imported in imports_of(tree)
        if not imported.lazy
        and imported.module.split(".")[0] not in sys.stdlib_module_names
        and imported.module != "smile_fast"
        and not layer_in(imported.module, LIGHT)
    ]


def modules() -> dict[str, ast.Module]:
    """Return every module of both packages by its dotted name."""
    found = {}
    for base in (ROOT, ROOT / "export"):
        for package in ("smile_fast", "smile_runtime"):
            for path in sorted((base / package).rglob("*.py")):
                name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
                found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def test_every_module_keeps_to_its_layer() -> None:
    found = modules()
    assert len(found) > 30
    assert [line for module, tree in found.items() for line in violations(module, tree)] == []


def test_commands_import_nothing_heavy() -> None:
    packages = {
        "smile_fast",
        "smile_fast.training",
        "smile_runtime",
        "smile_runtime.io",
        "smile_runtime.predict",
    }  # importing a module runs its packages first
    commands = {name: tree for name, tree in modules().items() if name in packages or layer_in(name, LIGHT)}
    assert len(commands) > 10
    assert [line for module, tree in commands.items() for line in heavy_imports(module, tree)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("smile_runtime.model.exported", "import torch"),
        ("smile_runtime.model.exported", "def f():\n    import smile_fast.data"),
        ("smile_fast.ops.reference", "from smile_fast.ops import native"),
        ("smile_fast.ops.masked_bce", "from smile_fast.supervision import State"),
        ("smile_fast.losses", "from smile_fast.supervision import build_tables"),
        ("smile_fast.models.deeplab", "from smile_fast import ops"),
        ("smile_fast.models.deeplab", "import torchvision"),
        ("smile_fast.data.store", "def f():\n    import torch"),
        ("smile_fast.data.store", "if TYPE_CHECKING:\n    from smile_fast.training.run import Run"),
        ("smile_fast.training.loop", "import importlib\nimportlib.import_module('smile_fast.report')"),
        ("smile_fast.training.loop", "from smile_fast.evaluation import evaluate"),
        ("smile_fast.report.builder", "import bench"),
        ("smile_fast.training.loop", "from tests.runs import tiny"),
        ("smile_fast", "from smile_fast.ops import masked_bce"),
    ],
)
def test_the_rule_catches(module: str, source: str) -> None:
    assert len(violations(module, ast.parse(source))) == 1


def test_the_rule_allows_what_it_should() -> None:
    allowed = "import json\nimport torch\nfrom smile_fast import ops\nfrom smile_fast import __version__\n"
    assert violations("smile_fast.training.loop", ast.parse(allowed)) == []


def test_lazy_imports_of_a_command_are_told_apart() -> None:
    source = (
        "import torch\ndef run():\n import numpy\nif TYPE_CHECKING:\n import blosc2\ntry:\n import scipy\nfinally: 1"
    )
    found = heavy_imports("smile_fast.cli.train", ast.parse(source))
    assert [line.split()[2] for line in found] == ["torch", "scipy"]


CORE_INCLUDES = r"core/[a-z0-9_]+/[a-z0-9_]+\.(h|cuh)"
SIBLINGS = r"([a-z_]+/)?[a-z_]+\.h"
SYSTEM = r"(sys/)?[a-z_]+(\.h)?|cuda_(runtime|fp16|bf16)\.h"
INCLUDES = {
    "core": (CORE_INCLUDES, SYSTEM),
    "bindings": (f"{CORE_INCLUDES}|{SIBLINGS}", SYSTEM + r"|pybind11/[a-z0-9_]+\.h"),
    "tests": (f"{CORE_INCLUDES}|{SIBLINGS}", SYSTEM),
}


def foreign_includes(folder: str, source: str) -> list[str]:
    """Return the #include lines that a folder of csrc may not have: nobody but bindings/ sees Python, nobody torch."""
    quoted, bracketed = INCLUDES[folder]
    allowed = re.compile(rf'\s*#\s*include\s+("({quoted})"|<({bracketed})>)\s*(//.*)?')
    return [line for line in source.splitlines() if re.match(r"\s*#\s*include", line) and not allowed.fullmatch(line)]


@pytest.mark.parametrize("folder", INCLUDES)
def test_native_sources_keep_to_their_layer(folder: str) -> None:
    sources = [path for path in (ROOT / "csrc" / folder).rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert sources
    assert {path.name: lines for path in sources if (lines := foreign_includes(folder, path.read_text()))} == {}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("core", "#include <torch/extension.h>"),
        ("core", "#include <ATen/ATen.h>"),
        ("core", "# include <Python.h>"),
        ("core", "#include <pybind11/pybind11.h>"),
        ("core", '#include "bindings/native.h"'),
        ("core", '#include "../tests/check.h"'),
        ("bindings", "#include <torch/torch.h>"),
        ("tests", "#include <pybind11/pybind11.h>"),
    ],
)
def test_the_include_rule_catches(folder: str, source: str) -> None:
    assert foreign_includes(folder, source) == [source]
