"""Who may import whom. Every import counts, also one inside of a function: laziness is no exemption."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("smile_fast", "smile_runtime")
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
        "records",
        "report",
        "settings",
        "supervision",
        "sweep",
        "training",
    )
}
BELOW_TRAINING = {
    "smile_fast.data",
    "smile_fast.losses",
    "smile_fast.models",
    "smile_fast.ops",
    "smile_fast.records",
    "smile_fast.settings",
    "smile_fast.supervision",
    "smile_runtime",
}
BESIDE_TRAINING = BELOW_TRAINING | {"smile_fast.training", "smile_fast.evaluation"}
# Modules of the runtime outside of its rooms, for all rooms.
RUNTIME_GROUND = {
    f"smile_runtime.{module}"
    for module in ("arguments", "errors", "label_map", "memory", "names", "progress", "sharding", "terminal", "threads")
}

COMMON = {
    "smile_fast.pipeline",
    "smile_fast.text_table",
}  # need the standard library only, and every layer above the ops may use it

# Layer -> what it may import beside the standard library and itself; the longest matching layer decides.
ALLOWED: dict[str, set[str]] = {
    "smile_fast": set(),
    "smile_fast.__main__": {"smile_fast.cli"},
    "smile_fast.ops": {"torch", "triton", "smile_fast._native", "smile_fast._native_cuda", "smile_runtime.label_map"},
    "smile_fast.ops.reference": {"torch", "smile_runtime.label_map"},
    "smile_fast.losses": {"torch", "smile_fast.ops"},
    "smile_fast.supervision": {"numpy", "torch", "smile_runtime"},
    "smile_fast.settings": {"smile_runtime"},
    "smile_fast.records": {"msgspec", "smile_runtime"},
    "smile_fast.models": {"torch", "smile_fast.settings"},
    "smile_fast.models.config": {"smile_fast.settings", "smile_runtime.label_map", "smile_runtime.volume.pixel_size"},
    "smile_fast.data": {
        "blosc2",
        "msgspec",
        "nibabel",
        "numpy",
        "scipy",
        "smile_fast.records",
        "smile_fast.supervision",
        "smile_runtime",
    },
    "smile_fast.data.importing.formats": {
        "SimpleITK",
        "numpy",
        "smile_fast.data.importing.itk_headers",
        "smile_runtime",
    },
    "smile_fast.training": BELOW_TRAINING | {"msgspec", "numpy", "safetensors", "torch"},
    "smile_fast.training.curriculum": BELOW_TRAINING | {"numpy", "scipy", "smile_fast.training", "torch"},
    "smile_fast.training.curriculum.settings": {"smile_fast.settings"},
    "smile_fast.evaluation": BESIDE_TRAINING | {"msgspec", "numpy", "scipy", "surface_distance", "torch"},
    "smile_fast.exporter": BESIDE_TRAINING | {"numpy", "onnx", "onnxruntime", "onnxscript", "torch"},
    "smile_fast.report": BESIDE_TRAINING | {"PIL", "jinja2", "matplotlib", "numpy", "scipy", "smile_fast.sweep"},
    "smile_fast.sweep": BESIDE_TRAINING | {"matplotlib", "numpy", "scipy", "torch"},
    "smile_fast.cli": EVERYTHING | {"numpy", "smile_runtime", "torch"},
    "smile_fast.demo": EVERYTHING | {"nibabel", "numpy", "scipy", "smile_runtime", "torch"},
    "smile_runtime": set(),  # what stands outside of its rooms imports the standard library only
    "smile_runtime.__main__": {"smile_runtime.predict"},
    "smile_runtime.memory": {"smile_runtime.threads"},
    "smile_runtime.sharding": {"smile_runtime.errors"},
    "smile_runtime.io": RUNTIME_GROUND | {"nibabel", "numpy"},
    "smile_runtime.io.gzip": RUNTIME_GROUND | {"isal"},
    "smile_runtime.volume": RUNTIME_GROUND | {"nibabel", "numpy", "smile_runtime.io"},
    "smile_runtime.volume.pixel_size": set(),
    "smile_runtime.volume.components": RUNTIME_GROUND | {"numpy", "scipy"},
    "smile_runtime.model": RUNTIME_GROUND | {"numpy", "onnxruntime", "smile_runtime.io", "smile_runtime.volume"},
    "smile_runtime.predict": RUNTIME_GROUND
    | {"nibabel", "numpy", "onnxruntime", "smile_runtime.io", "smile_runtime.model", "smile_runtime.volume"},
}
# What may be imported before a command's help is printed; each of them imports only the standard library and its peers.
LIGHT = {
    "smile_fast.cli",
    "smile_fast.models.config",
    "smile_fast.settings",
    "smile_fast.training.config",
    "smile_fast.training.curriculum.settings",
    "smile_fast.training.presets",
    "smile_fast.training.execution",
    "smile_fast.training.launch",
    "smile_runtime.arguments",
    "smile_runtime.errors",
    "smile_runtime.io.files",
    "smile_runtime.predict.cli",
    "smile_runtime.label_map",
    "smile_runtime.sharding",
    "smile_runtime.volume.pixel_size",
    "smile_runtime.terminal",
    "smile_runtime.threads",
}
WITHOUT_COMMON = {"smile_fast.models", "smile_fast.ops", "smile_fast.ops.reference"}
# Layers that may not even import their siblings.
NO_SELF_IMPORT = {"smile_fast", "smile_fast.ops.reference", "smile_runtime"}


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
                submodule = node.module in PACKAGES and not alias.name.startswith("__")
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
        root = name in PACKAGES and belongs(module, name)  # holds the version and imports nothing
        common = name in COMMON and belongs(module, "smile_fast") and layer not in WITHOUT_COMMON
        standard = name.split(".")[0] in sys.stdlib_module_names
        if not (own or root or common or standard or layer_in(name, ALLOWED[layer])):
            found.append(f"{module}:{imported.line} imports {name}, which {layer} may not")
    return found


def heavy_imports(module: str, tree: ast.Module) -> list[str]:
    """Return the imports of a command that run before its help can be printed."""
    return [
        f"{module}:{imported.line} imports {imported.module} at module level"
        for imported in imports_of(tree)
        if not imported.lazy
        and imported.module.split(".")[0] not in sys.stdlib_module_names
        and imported.module not in PACKAGES
        and not layer_in(imported.module, LIGHT)
    ]


def modules() -> dict[str, ast.Module]:
    """Return every module of both packages by its dotted name."""
    found = {}
    for base in (ROOT, ROOT / "export"):
        for package in PACKAGES:
            for path in sorted((base / package).rglob("*.py")):
                name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
                found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def test_every_module_keeps_to_its_layer() -> None:
    found = modules()
    assert len(found) > 30
    assert [line for module, tree in found.items() for line in violations(module, tree)] == []


def cycles_of(found: dict[str, ast.Module]) -> list[str]:
    """Return the modules of a cycle of imports, [] without one; an import inside of a function counts too."""
    graph = {
        module: {name for imported in imports_of(tree) if (name := imported.module) in found and name not in PACKAGES}
        for module, tree in found.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_the_runtime_has_no_cycle_of_imports() -> None:
    found = {name: tree for name, tree in modules().items() if belongs(name, "smile_runtime")}
    rooms = {name.split(".")[1] for name, tree in found.items() if name.count(".") == 2}
    assert rooms == {"io", "model", "predict", "volume"}
    assert cycles_of(found) == []


def test_a_cycle_of_imports_is_found() -> None:
    sources = {"a": "import b", "b": "def f():\n    from c import x", "c": "import a\nimport numpy"}
    found = {name: ast.parse(source) for name, source in sources.items()}
    assert sorted(set(cycles_of(found))) == ["a", "b", "c"]
    found["c"] = ast.parse("import numpy")
    assert cycles_of(found) == []


def test_commands_import_nothing_heavy() -> None:
    packages = {
        "smile_fast",
        "smile_fast.models",
        "smile_fast.training",
        "smile_runtime",
        "smile_runtime.io",
        "smile_runtime.predict",
        "smile_runtime.predict.cli",
        "smile_runtime.__main__",
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
        ("smile_fast.ops.checks", "from smile_fast.text_table import text_table"),
        ("smile_runtime.predict.cli", "from smile_fast.text_table import text_table"),
        ("smile_fast.text_table", "import numpy"),
        ("smile_fast.ops.checks", "from smile_runtime.io.files import write_json"),
        ("smile_runtime.label_map", "import numpy"),
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
        ("smile_runtime.io.nifti", "from smile_runtime.volume.body import BodyRule"),
        ("smile_runtime.io.nifti", "import onnxruntime"),
        ("smile_runtime.io.files", "def f():\n    from smile_runtime.model.card import ModelCard"),
        ("smile_runtime.volume.body", "from smile_runtime.model.card import ModelCard"),
        ("smile_runtime.volume.body", "from smile_runtime import predict"),
        ("smile_runtime.volume.body", "import scipy"),
        ("smile_runtime.volume.components", "import nibabel"),
        ("smile_runtime.model.trust", "from smile_runtime.predict.predictor import Predictor"),
        ("smile_runtime.model.card", "import nibabel"),
        ("smile_runtime.predict.predictor", "import scipy"),
        ("smile_runtime.progress", "import numpy"),
        ("smile_runtime.arguments", "from smile_runtime.io.files import printable"),
        ("smile_runtime", "from smile_runtime.predict.predictor import Predictor"),
    ],
)
def test_the_rule_catches(module: str, source: str) -> None:
    assert len(violations(module, ast.parse(source))) == 1


def test_the_rule_allows_what_it_should() -> None:
    allowed = "import json\nimport torch\nfrom smile_fast import ops\nfrom smile_fast import __version__\n"
    assert violations("smile_fast.training.loop", ast.parse(allowed)) == []


def test_lazy_imports_of_a_command_are_distinguished() -> None:
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
    "tests/fuzz": (rf"{CORE_INCLUDES}|(tests/)?[a-z_]+\.h", SYSTEM),
    "tests/cuda_emulation": (r"emulation\.h|core/common/[a-z_]+\.h", SYSTEM + r"|sanitizer/[a-z_]+\.h"),
}

# Room of csrc/core -> the other rooms whose headers it may include; a room that is not named: common alone.
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "masked_bce_upsampled": {"common", "masked_bce"},
}


def sources_in(folder: str) -> list[Path]:
    """Return the C++ and CUDA files of a folder of csrc; those of csrc/core lie in its rooms."""
    pattern = "*/*" if folder == "core" else "*"
    paths = [path for path in (ROOT / "csrc" / folder).glob(pattern) if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    return sorted(paths)


def foreign_includes(folder: str, source: str) -> list[str]:
    """Return the #include lines that a folder of csrc may not have: only bindings/ sees Python, none sees torch."""
    quoted, bracketed = INCLUDES[folder]
    allowed = re.compile(rf'\s*#\s*include\s+("({quoted})"|<({bracketed})>)\s*(//.*)?')
    return [line for line in source.splitlines() if re.match(r"\s*#\s*include", line) and not allowed.fullmatch(line)]


def foreign_rooms(room: str, source: str) -> list[str]:
    """Return the rooms of csrc/core that a file of one of them includes and may not."""
    included = re.findall(r'^\s*#\s*include\s+[<"]core/([^/"]+)/', source, re.MULTILINE)
    return sorted(set(included) - ROOMS.get(room, {"common"}) - {room})


@pytest.mark.parametrize("folder", INCLUDES)
def test_native_sources_keep_to_their_layer(folder: str) -> None:
    sources = sources_in(folder)
    assert sources
    assert {path.name: lines for path in sources if (lines := foreign_includes(folder, path.read_text()))} == {}


def test_every_native_source_is_in_a_folder_with_a_rule() -> None:
    ruled = {path for folder in INCLUDES for path in sources_in(folder)}
    assert {path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")} == ruled


def test_rooms_of_the_core_include_only_what_they_may() -> None:
    sources = sources_in("core")
    assert {path.parent.name for path in sources} > set(ROOMS)
    assert {path.name: rooms for path in sources if (rooms := foreign_rooms(path.parent.name, path.read_text()))} == {}


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
        ("tests", '#include "../bindings/arguments.h"'),
        ("tests/fuzz", "#include <sanitizer/asan_interface.h>"),
        ("tests/cuda_emulation", '#include "core/masked_bce/masked_bce.h"'),
    ],
)
def test_the_include_rule_catches(folder: str, source: str) -> None:
    assert foreign_includes(folder, source) == [source]


@pytest.mark.parametrize(
    ("room", "included"),
    [
        ("common", "masked_bce"),
        ("masked_bce", "masked_bce_upsampled"),
        ("masked_bce", "select_top_fraction"),
        ("masked_bce_upsampled", "upsampled_labels"),
        ("select_top_fraction", "upsampled_labels"),
        ("upsampled_labels", "select_top_fraction"),
        ("upsampled_labels", "masked_bce"),
        ("common", "a_room_without_a_rule"),
    ],
)
def test_the_rule_of_the_rooms_catches(room: str, included: str) -> None:
    source = f'#include <vector>\n#include "core/{room}/own.h"\n#include "core/{included}/other.h"\n'
    assert foreign_rooms(room, source) == [included]
