"""The layer rule of the runtime: numpy, nibabel and onnxruntime, never torch and never the training package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from nifti_files import write

import smile_runtime

FOLDER = Path(smile_runtime.__file__).parent
ALLOWED = {"numpy", "nibabel", "onnxruntime", "smile_runtime"}
OPTIONAL = {
    "smile_runtime.volume.components": {"scipy"},  # inside of a function, for an option that says what it needs
    "smile_runtime.io.gzip": {"isal"},  # zlib takes its place
}
MODULES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(FOLDER.rglob("*.py"))
}

WITHOUT_TORCH = """
import importlib, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "smile_fast", "onnx", "scipy", "isal"):
            raise ImportError(f"{name} is forbidden here")

sys.meta_path.insert(0, Forbidden())
"""


def test_the_modules_of_all_rooms_are_looked_at():
    assert {"smile_runtime", "smile_runtime.errors", "smile_runtime.io", "smile_runtime.predict.cli"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports(module):
    tree = ast.parse(MODULES[module].read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) <= ALLOWED | OPTIONAL.get(module, set())


def run_without_torch(script, *args):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + script, *args], capture_output=True, text=True, check=False
    )


def test_the_import_hook_does_forbid():
    assert "torch is forbidden here" in run_without_torch("import torch").stderr


def test_every_module_imports_where_torch_cannot_be():
    imports = "\n".join(f"importlib.import_module('{module}')" for module in MODULES)
    done = run_without_torch(imports + "\nprint('torch' in sys.modules, 'smile_fast' in sys.modules)")
    assert (done.stdout, done.returncode) == ("False False\n", 0), done.stderr


def test_the_command_works_where_torch_cannot_be(tmp_path, threshold_model):
    scan = write(tmp_path / "scan.nii.gz")
    done = run_without_torch(
        "from smile_runtime.predict.cli import main; sys.exit(main(sys.argv[1:]))",
        *(str(threshold_model), str(scan), "-o", str(tmp_path / "labels.nii.gz")),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "labels.nii.gz").exists()
