"""The parts of `make gpu`: what each runs, how long that takes, and what it needs."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from bench import catalogue, gpu_profile
from bench.commands.workloads import NAMES as COMMANDS
from bench.comparison import CUDA, listed
from bench.gpu_steps import Steps
from bench.machine import ROOT, TOOLKIT
from smile_fast.ops import OPS

BUILD = ROOT / "build" / "gpu"
MOST_SECONDS = 540  # of a part: a machine that is lent for ten minutes has one left
BUILD_SECONDS, TEST_SECONDS, SANITIZER_SECONDS = 300, 400, 120
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
CORE = "smile_fast._native_cuda"
# Seconds of a workload, the start of its process and its agreement included, on 16 cores beside an H100; of its name,
# or else of its op. What compiles for longest takes longest.
SECONDS = {
    "memory": 10,
    "masked_bce": 30,
    "masked_bce_upsampled": 40,
    "select_top_fraction": 45,
    "label_map_upsampled": 40,
    "pseudo_labels_upsampled": 60,
    "training_step": 70,
    "whole_volume": 60,
    "predict/folder-fp16": 200,
    "predict/alone-fp16": 60,
    "commands/train-resnet50": 200,
    "commands/train-resnet18": 200,
    "commands/evaluate": 260,
    "commands/export": 200,
}
TORCH = ("numpy", "torch")
TESTS = (*TORCH, "pytest", "pytest_benchmark")
DATA = ("blosc2", "nibabel", "safetensors")


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        what: it does, in words.
        run: runs its steps, whatever becomes of them; before its workloads.
        seconds: that these steps take.
        workloads: patterns of the workloads that it measures.
        modules, programs: that it needs. core: whether it needs the CUDA core, built for this Python.
    """

    what: str
    run: Callable[[Steps], None] = lambda steps: None
    seconds: int = 0
    workloads: tuple[str, ...] = ()
    modules: tuple[str, ...] = TESTS
    programs: tuple[str, ...] = ()
    core: bool = True

    @property
    def names(self) -> list[str]:
        """The workloads that it measures."""
        found = [*catalogue.names(CUDA), *COMMANDS]
        return [name for name in found if any(fnmatch(name, pattern) for pattern in self.workloads)]

    @property
    def estimate(self) -> int:
        """Seconds of all of it."""
        return self.seconds + sum(SECONDS.get(name) or SECONDS[name.partition("/")[0]] for name in self.names)

    def missing(self) -> str:
        """What it needs and this machine has not, in one sentence; "" if nothing."""
        path = f"{os.environ.get('PATH', '')}:{TOOLKIT}"
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        programs = [name for name in self.programs if shutil.which(name, path=path) is None]
        if modules:
            return f"needs the Python packages {', '.join(modules)}: pip install {' '.join(map(package, modules))}"
        if programs:
            return f"needs {', '.join(programs)} on the path"
        if self.core and importlib.util.find_spec(CORE) is None:
            return "needs the CUDA core, which is not built for this Python: PART=build first, in the same command"
        return ""


def package(module: str) -> str:
    """What pip calls the package of a module."""
    return {"onnxruntime": "onnxruntime-gpu", "pytest_benchmark": "pytest-benchmark"}.get(module, module)


def build_commands() -> dict[str, list[str]]:
    """Return the commands that build both extension modules into this checkout, for the Python that runs."""
    configure = [
        *("cmake", "-S", ".", "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release"),
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
        *("-DSMILE_FAST_PYTHON=ON", "-DSMILE_FAST_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'smile_fast'}",
    ]
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    return {"configure": configure, "build": ["cmake", "--build", str(BUILD), "--parallel"]}


def test_command() -> list[str]:
    """Return how the tests on the device are run: warnings of newer versions are no failures."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "--tb=short", "tests/gpu"]


def sanitizer_command(tool: str, implementation: str) -> list[str]:
    """Return how compute-sanitizer runs the ragged shapes."""
    options = ["--tool", tool, "--error-exitcode", "1", "--print-limit", "10"]
    return ["compute-sanitizer", *options, sys.executable, "-m", "bench.ragged_shapes", implementation]


def sanitized() -> list[str]:
    """The implementations that have kernels of ours: every name that an op lists for a GPU, but plain torch."""
    found = dict.fromkeys(name for op in OPS for name in listed(op, CUDA))
    return [name for name in found if name != "torch"]


def _build(steps: Steps) -> None:
    for name, command in build_commands().items():
        steps.step(name, command, BUILD_SECONDS)


def _test(steps: Steps) -> None:
    steps.step("tests", test_command(), TEST_SECONDS, {"SMILE_FAST_GPU": "1"})


def _sanitize(steps: Steps) -> None:
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation of its own: its ends are seen
    for implementation in sanitized():
        for tool in SANITIZERS:
            command = sanitizer_command(tool, implementation)
            steps.step(f"compute-sanitizer {tool}, {implementation}", command, SANITIZER_SECONDS, alone)


PARTS = {
    "build": Part(
        "both extension modules, into this checkout",
        _build,
        40,
        modules=("pybind11",),
        programs=("cmake", "nvcc"),
        core=False,
    ),
    "test": Part("tests/gpu", _test, 120, modules=(*TESTS, "triton")),
    "sanitize": Part("compute-sanitizer on ragged shapes", _sanitize, 240, programs=("compute-sanitizer",)),
    "losses": Part(
        "masked_bce, masked_bce_upsampled, and what the memory reaches",
        workloads=("memory/*", "masked_bce/*", "masked_bce_upsampled/*"),
    ),
    "selection": Part("select_top_fraction", workloads=("select_top_fraction/*",), programs=("nvcc",)),
    "labels": Part("label maps and pseudo-labels", workloads=("label_map_upsampled/*", "pseudo_labels_upsampled/*")),
    "step": Part("a training step with our loss, and of the network alone", workloads=("training_step/*",)),
    "training": Part(
        "smile-fast train, and its step replayed on one batch",
        workloads=("commands/train-*",),
        modules=(*TORCH, *DATA),
    ),
    "evaluation": Part(
        "smile-fast evaluate and export",
        workloads=("commands/evaluate", "commands/export"),
        modules=(*TORCH, *DATA, "onnx", "onnxruntime"),
    ),
    "predict": Part(
        "smile-predict, a folder and one volume of it, against a loop by hand",
        workloads=("predict/*",),
        modules=(*TESTS, "nibabel", "onnx", "onnxruntime"),
    ),
    "volumes": Part(
        "the runtime on one small volume, against its bare session and loops by hand",
        workloads=("whole_volume/*",),
        modules=(*TESTS, "nibabel", "onnx", "onnxruntime"),
    ),
    "profile": Part("kernels by time, of the ops that miss a goal", gpu_profile.ops, 480),
    "profile-commands": Part(
        "the same of training, evaluation, export and smile-predict",
        gpu_profile.commands,
        480,
        modules=(*TESTS, *DATA, "onnx", "onnxruntime"),
    ),
}


def chosen(text: str) -> list[str]:
    """Parts that a comma-separated list names, in the order of PARTS; "" names all.

    Raises:
        ValueError: there is no such part.
    """
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if not names or name in names]


def listing() -> Sequence[str]:
    """A line a part: name, expected minutes, what it does."""
    return [f"{name:17} {part.estimate / 60:4.1f} min  {part.what}" for name, part in PARTS.items()]
