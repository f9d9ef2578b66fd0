"""Builds the native core: hands over to CMake and ninja, nothing else. All metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
WITHOUT_COMPILER = "set SMILE_FAST_BUILD=none to install the pure Python package, which is slower"


def wants_native() -> bool:
    """Return whether the environment asks for the native core."""
    choice = os.environ.get("SMILE_FAST_BUILD", "")
    if choice not in ("", "none"):
        sys.exit(f"error: SMILE_FAST_BUILD must be unset or 'none', got {choice!r}")
    return choice == ""


def wants_cuda() -> str:
    """Return whether the environment asks for the CUDA kernels: ON, OFF, or AUTO, where they can be built."""
    choice = os.environ.get("SMILE_FAST_CUDA", "AUTO")
    if choice not in ("AUTO", "ON", "OFF"):
        sys.exit(f"error: SMILE_FAST_CUDA must be unset, AUTO, ON or OFF, got {choice!r}")
    return choice


def tool(name: str) -> str:
    """Return the path of cmake or ninja: on PATH, or beside the Python that builds."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    found = shutil.which(name, path=path)
    if found is None:
        raise CompileError(f"{name} was not found: pip install {name}, or {WITHOUT_COMPILER}")
    return found


class CMakeBuild(build_ext):
    """Builds every extension with one run of CMake."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build with CMake; the extension lands where setuptools expects it."""
        if ext.optional:  # the one CMake run has built it, where it can be built
            return
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
            raise CompileError(
                f"no C++ compiler ({', '.join(compilers)}) was found: install one, or {WITHOUT_COMPILER}"
            )
        cmake, ninja = tool("cmake"), tool("ninja")
        import pybind11  # after the checks, whose sentences help more than a failing import

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = (Path(self.build_temp) / ext.name).resolve()
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DSMILE_FAST_PYTHON=ON",
            f"-DSMILE_FAST_CUDA={wants_cuda()}",
        ]
        try:
            subprocess.run(configure, check=True)
            everything = subprocess.run([cmake, "--build", str(build)], check=wants_cuda() != "AUTO")
            if everything.returncode:
                print("the CUDA kernels do not build (the output is above): they are left out", file=sys.stderr)
                subprocess.run([cmake, "--build", str(build), "--target", "_native"], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(
                f"the native core does not build (its output is above; CMake exited with {error.returncode}): "
                f"repair the compiler, or {WITHOUT_COMPILER}"
            ) from None


if wants_native():
    native = Extension("smile_fast._native", sources=[])
    native_cuda = Extension("smile_fast._native_cuda", sources=[], optional=True)
    setup(ext_modules=[native, native_cuda], cmdclass={"build_ext": CMakeBuild})
else:
    setup()
