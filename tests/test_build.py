"""What setup.py and pyproject.toml decide; the wheels themselves are built and installed by .ci/run."""

import runpy
import shutil
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import setuptools
from setuptools.dist import Distribution
from setuptools.errors import CompileError

GPU = ("export/pyproject.toml", "gpu")
SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py hands to setuptools.setup, filled when it runs."""
    captured: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", captured.update)
    monkeypatch.delenv("SMILE_FAST_BUILD", raising=False)
    return captured


def test_native_core_is_built_by_default(setup_arguments: dict[str, Any]) -> None:
    runpy.run_path(str(SETUP))
    assert [extension.name for extension in setup_arguments["ext_modules"]] == [
        "smile_fast._native",
        "smile_fast._native_cuda",
    ]


def test_pure_python_on_request(setup_arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_FAST_BUILD", "none")
    runpy.run_path(str(SETUP))
    assert setup_arguments == {}  # no extension: the wheel is py3-none-any


@pytest.mark.parametrize("choice", ["cuda", "NONE", "1"])
def test_other_choices_are_refused(
    setup_arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setenv("SMILE_FAST_BUILD", choice)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SETUP))
    assert stop.value.code == f"error: SMILE_FAST_BUILD must be unset or 'none', got {choice!r}"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("c++ g++ clang++", r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\) was found: install one, or set "),
        ("cmake", "cmake was not found: pip install cmake, or set "),
        ("ninja", "ninja was not found: pip install ninja, or set "),
    ],
)
def test_missing_tool_is_named_with_the_way_out(
    setup_arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    missing: str,
    message: str,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    runpy.run_path(str(SETUP))
    command = setup_arguments["cmdclass"]["build_ext"](Distribution())
    command.build_lib, command.build_temp = str(tmp_path), str(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name in missing.split() else f"/bin/{name}")
    with pytest.raises(CompileError, match=message + "SMILE_FAST_BUILD=none"):
        command.build_extension(setup_arguments["ext_modules"][0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("project", ["pyproject.toml", "export/pyproject.toml"])
def test_only_the_extra_gpu_installs_a_second_onnxruntime(project: str) -> None:
    """onnxruntime-gpu holds the same files as onnxruntime: it belongs in its place, and pip has no way to say so.

    A marker like ``extra != "gpu"`` does not help: pip resolves the package without its extras beside the one with
    them. So the one extra that asks for it is called gpu, its README says what else to do, and the runtime tells when
    it finds both.
    """
    content = tomllib.loads((Path(__file__).parents[1] / project).read_text())["project"]
    groups = content.get("optional-dependencies", {})
    extras = [name for group, names in groups.items() if (project, group) != GPU for name in names]
    assert any(name.startswith("onnxruntime>") for name in content["dependencies"])
    assert [name for name in extras if name.startswith("onnxruntime")] == []
    if project == GPU[0]:
        assert [name.split(">")[0] for name in groups["gpu"]] == ["onnxruntime-gpu[cuda,cudnn]"]
        assert (
            "pip uninstall onnxruntime onnxruntime-gpu" in (Path(__file__).parents[1] / "export/README.md").read_text()
        )


def test_every_fuzzer_has_seeds() -> None:
    folder = Path(__file__).parents[1] / "csrc/tests/fuzz"
    fuzzers = {path.name.removesuffix("_fuzz.cpp") for path in folder.glob("*_fuzz.cpp")}
    archives = {path.name.removesuffix(".tar.gz"): path for path in (folder / "corpus").iterdir()}
    assert fuzzers == set(archives)
    for archive in archives.values():
        with tarfile.open(archive) as seeds:
            assert len(seeds.getnames()) >= 50
