"""What the ops launch on a GPU, found out without one: the ops run, and each launch is noted instead of made."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction

from smile_fast import ops
from smile_fast.ops import registry, triton_kernels
from smile_fast.ops.triton_kernels import core
from smile_fast.supervision import Policy, State, build_tables

POINTERS = {
    **{torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"},
    **{torch.uint8: "*u8", torch.bool: "*u8", torch.int32: "*i32", torch.int64: "*i64"},
}
LAUNCH_OPTIONS = ("num_warps", "maxnreg", "enable_fp_fusion")
LARGE = ("voxels",)
"""Arguments that may exceed 2^31; all others are numbers of organs, axes of an image or programs."""
EITHER, ONE, MULTIPLE_OF_16 = "neither", "one", "multiple of 16"


@dataclass(frozen=True)
class Launch:
    """One kernel as a launch would have it compiled."""

    kernel: Any
    types: tuple[tuple[str, str], ...]  # of the arguments that are no constants
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]
    special: tuple[tuple[str, str], ...] = ()  # integers of which something is known

    def __str__(self) -> str:
        values = [f"{name}={value}" for name, value in (*self.constants, *self.options) if name != "enable_fp_fusion"]
        pointers = [kind for _, kind in self.types if kind.startswith("*")]
        return "-".join([self.kernel.__name__, pointers[0], *values, *("=".join(pair) for pair in self.special)])

    @property
    def variant(self) -> tuple[object, ...]:
        """The kernel and its switches: what decides which of its lines are compiled."""
        return self.kernel.__name__, *(pair for pair in self.constants if isinstance(pair[1], bool))

    @property
    def integers(self) -> list[str]:
        """The integer arguments about which Triton may know something when it compiles."""
        free = {p.name for p in self.kernel.params if not p.do_not_specialize}
        return [name for name, kind in self.types if kind in ("i32", "i64") and name in free]

    def where(self, names: Iterable[str], known: str) -> "Launch":
        return replace(self, special=tuple((name, known) for name in names))

    def with_large(self) -> "Launch":
        return replace(self, types=tuple((name, "i64" if name in LARGE else kind) for name, kind in self.types))

    def source(self) -> ASTSource:
        special, types = dict(self.special), dict(self.types)
        ones = {name: 1 for name, known in self.special if known == ONE}
        constants = dict(self.constants) | ones
        signature = {name: "constexpr" if name in constants else types[name] for name in self.kernel.arg_names}
        aligned = {
            (index,): [["tt.divisibility", 16]]
            for index, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or special.get(name) == MULTIPLE_OF_16
        }
        return ASTSource(self.kernel, signature, constants, aligned)

    def compiled(self, architecture: int) -> CompiledKernel:
        return triton.compile(self.source(), GPUTarget("cuda", architecture, 32), dict(self.options))

    def check_types(self, architecture: int) -> None:
        """Translate the kernel to Triton's first language, where a wrong type shows; a fraction of compiling it."""
        target, language = GPUTarget("cuda", architecture, 32), importlib.import_module("triton._C.libtriton").ir
        backend, context, source = make_backend(target), language.context(), self.source()
        options = backend.parse_options(dict(self.options))
        language.load_dialects(context)
        backend.load_dialects(context)
        source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)


def _noted(kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Launch:
    options = {name: keywords.pop(name) for name in LAUNCH_OPTIONS if name in keywords}
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
    constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    constants, types = {}, {}
    for name in kernel.arg_names:
        value = given[name]
        if name in constexprs or value is None:
            constants[name] = value
        elif isinstance(value, Tensor):
            types[name] = POINTERS[value.dtype]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
    return Launch(kernel, *(tuple(part.items()) for part in (types, constants, options)))


@contextmanager
def noting() -> Iterator[list[Launch]]:
    """Note launches, of every configuration that a GPU may choose, instead of making them."""
    launches: list[Launch] = []

    def note(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        launch = _noted(kernel, arguments, keywords)
        if launch not in launches:
            launches.append(launch)

    def all_of(configurations: Any, run: Any) -> Any:
        for configuration in configurations:
            run(configuration)
        return configurations[0]

    with (
        mock.patch.object(JITFunction, "run", note),
        mock.patch.object(registry.Implementation, "why_not_on", autospec=True, return_value=""),
        mock.patch.object(core, "_may_wait", return_value=True),
        mock.patch.object(core, "_fastest", all_of),
    ):
        yield launches


def _losses(size: tuple[int, ...], low: tuple[int, ...]) -> None:
    for dtype, organs in ((torch.float32, 13), (torch.bfloat16, 13), (torch.float32, 1)):
        labels = torch.zeros((2, *size), dtype=torch.uint8)
        table = build_tables([[State.ANNOTATED] * organs] * 2, Policy.SMILE)
        for with_gradient in (True, False):
            logits = torch.zeros((2, organs, *low), dtype=dtype, requires_grad=with_gradient)
            ops.masked_bce_upsampled(logits, labels, table, implementation="triton")


def _label_maps() -> None:
    for dtype, stride in ((torch.float32, 8), (torch.bfloat16, 8), (torch.float32, 3), (torch.float32, 16)):
        for softmax in (False, True):
            logits = torch.zeros((1, 3, 2, 2), dtype=dtype)
            ops.label_map_upsampled(logits, 2 * stride, 2 * stride, stride, softmax, implementation="triton")


def _pseudo_labels() -> None:
    for dtype, stride in ((torch.float32, 8), (torch.bfloat16, 8), (torch.float32, 3), (torch.float32, 16)):
        logits, labels = torch.zeros((2, 3, 2, 2), dtype=dtype), torch.zeros((2, 2 * stride, 2 * stride)).byte()
        ops.pseudo_labels_upsampled(logits, labels, [0, 2], 0.5, stride, implementation="triton")


def _upsampled() -> None:
    _losses((16, 24), (2, 3))
    _losses((8, 16, 24), (2, 2, 3))


EXAMPLES = {
    "masked_bce_upsampled": _upsampled,
    "label_map_upsampled": _label_maps,
    "pseudo_labels_upsampled": _pseudo_labels,
}
"""Calls of every op with a Triton kernel, of each kind that has kernels of its own."""


def ops_with_kernels() -> list[str]:
    return [op for op in ops.OPS if any(name == "triton" for name, *_ in ops.available(op, "cuda"))]


def launches() -> list[Launch]:
    """All launches of all ops, each as one compilation."""
    with noting() as noted:
        for op in ops_with_kernels():
            if op in EXAMPLES:  # a test tells which are missing
                EXAMPLES[op]()
    return noted


def kernels_of_the_package() -> set[str]:
    """The names of all Triton functions that are meant to be launched."""
    names = set()
    for module in pkgutil.iter_modules(triton_kernels.__path__):
        functions = vars(importlib.import_module(f"{triton_kernels.__name__}.{module.name}"))
        names |= {
            name for name, value in functions.items() if isinstance(value, JITFunction) and name.endswith("_kernel")
        }
    return names
