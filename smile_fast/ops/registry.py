"""Which implementations an op has, which of them run here, and how one is chosen.

An op has one default overload, which picks the best implementation per device through torch's dispatcher, and one
overload per usable implementation name (`torch.ops.smile_fast.masked_bce.reference`). All of them share the argument
check, the fake kernel and the autograd formula: a choice by name compiles and differentiates like the default, and
nobody's wrong shape reaches a pointer, whether the op was called by its public function or not.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from smile_fast.ops import reference as references

NAMESPACE = "smile_fast"
REFERENCE = "reference"
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
# Of the schema's arguments: the Python types, and what to call them. No bool is an int or a float here.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "Tensor": ((Tensor,), "a tensor"),
    "SymInt": ((int, torch.SymInt), "an int"),
    "int": ((int,), "an int"),
    "int[]": ((list, tuple), "a sequence of int"),
    "float": ((float, int), "a float"),
    "bool": ((bool,), "a bool"),
    "str": ((str,), "a str"),
}
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]

Refusal = Callable[..., str]
"""Called with the schema's arguments: why an implementation cannot take these; empty when it can."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of one op."""

    name: str
    """What a user asks for: reference, native, ..."""
    run: Callable[..., Any]
    """The kernel: takes the schema's arguments, returns its results, knows nothing of autograd."""
    devices: tuple[str, ...] = ()
    """The device types it runs on; () means any."""
    unusable: str = ""
    """Why it cannot run in this installation at all; empty when it can."""
    refusals: tuple[Refusal, ...] = ()
    """What it does not take."""
    on_request: tuple[str, ...] = ()
    """Further device types on which it runs when it is asked for by name, and only then."""

    def why_not_on(self, device: str) -> str:
        """Return why this implementation cannot run on a device type; empty when it can."""
        if self.devices and device not in self.devices + self.on_request:
            return f"it runs on {', '.join(self.devices)} only"
        return self.unusable

    def why_not(self, first: Tensor, *others: Any) -> str:
        """Return why this implementation cannot take the schema's arguments; empty when it can."""
        reason = self.why_not_on(first.device.type)
        for refusal in self.refusals:
            reason = reason or refusal(first, *others)
        return reason


class Formula(NamedTuple):
    """A gradient formula, see torch.library.register_autograd."""

    setup_context: Callable[..., None]
    """What the backward needs."""
    backward: Callable[..., Any]


def _no_gradient(inputs: int) -> Formula:
    """Return the formula of an op without a derivative: its results require none, whatever its inputs do."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))

    return Formula(setup_context, lambda ctx, *arriving: (None,) * inputs)


_IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {}  # of each op: by name, best first
_ARGUMENTS: dict[str, list[tuple[str, str]]] = {}  # of each op: (type, name) of the schema's arguments


def define(
    op: str,
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    differentiable: Formula | Literal[False] = False,
    native: Implementation | None = None,
    cuda: Implementation | None = None,
    triton: Implementation | None = None,
    further: Sequence[Implementation] = (),
    reference: Callable[..., Any] | None = None,
    slow_reference: bool = True,
) -> None:
    """Define an op with all its implementations.

    Args:
        op: its one noun, e.g. "masked_bce".
        schema: arguments and results, e.g. "(Tensor scores) -> Tensor"; the first argument is a tensor, which says the
            device.
        check: called with the schema's arguments before any implementation; raises TypeError or ValueError unless
            shapes, dtypes, devices and numbers fit together. Reads nothing that is on a device.
        fake: the shapes and dtypes of the results, for torch.compile.
        differentiable: the gradient formula. An op that writes to its inputs can have none.
        native: the C++ implementation, see `native.core.native`.
        cuda: the CUDA C++ implementation, see `native_cuda.core.cuda`.
        triton: the Triton implementation, see `triton_kernels.core.triton`.
        further: those of other names; worse than all of the above.
        reference: runs anywhere and takes anything; None for the function of `smile_fast.ops.reference` with the op's
            name.
        slow_reference: whether a GPU's user is warned where nothing but the reference runs.

    Raises:
        ValueError: the op has no reference.
    """
    if reference is None and not hasattr(references, op):
        raise ValueError(f"{op} needs a reference: a function of this name in {references.__file__}")
    last = Implementation(REFERENCE, reference or getattr(references, op))
    implementations = [one for one in (native, cuda, triton, *further, last) if one is not None]
    _IMPLEMENTATIONS[op] = {one.name: one for one in implementations}
    _ARGUMENTS[op] = re.findall(r"([\w\[\]]+)(?:\(a!\))? (\w+)(?=[,)])", schema.partition(" -> ")[0])
    formula = differentiable or _no_gradient(len(_ARGUMENTS[op]))
    by_name = {f"{op}.{one.name}": [one] for one in implementations if not one.unusable}
    for overload, candidates in {op: [last], **by_name}.items():
        _LIBRARY.define(overload + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{NAMESPACE}::{overload}", _checked(check, fake), lib=_LIBRARY)
        if "!)" not in schema:
            torch.library.register_autograd(
                f"{NAMESPACE}::{overload}", formula.backward, setup_context=formula.setup_context, lib=_LIBRARY
            )
        _LIBRARY.impl(overload, _checked(check, best_of(op, candidates)), "CompositeExplicitAutograd")
    for device, key in _DISPATCH_KEYS.items():
        candidates = [one for one in implementations if device in one.devices or not one.devices]
        _LIBRARY.impl(op, _checked(check, best_of(op, candidates, warns=slow_reference and device == "cuda")), key)


def _checked(check: Callable[..., None], run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that checks its arguments first."""

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return run(*arguments)

    return checked


def best_of(op: str, candidates: Sequence[Implementation], warns: bool = False) -> Callable[..., Any]:
    """Return a kernel that runs the first candidate that takes its arguments, or raises if none does.

    With `warns`, it says once why an op runs its reference: a GPU's user waits for more than a CPU's without compiler.
    """
    warned = not warns

    def run(*arguments: Any) -> Any:
        nonlocal warned
        reasons = []
        for candidate in candidates:
            reason = candidate.why_not(*arguments)
            if not reason:
                break
            reasons.append(f"{candidate.name}: {reason}")
        else:
            raise ValueError(f"implementation {candidates[-1].name!r} of {op} cannot be used: {reason}")
        if candidate.name == REFERENCE and not warned:
            warned = True
            device = arguments[0].device.type
            warnings.warn(
                f"{op} runs its slow reference on {device}. {'; '.join(reasons)}", RuntimeWarning, stacklevel=2
            )
        return candidate.run(*arguments)

    return run


def overload(op: str, implementation: str | None, *arguments: Any) -> OpOverload:
    """Return the overload of an implementation.

    Args:
        op: name of the op.
        implementation: None for the best one, or a name; a name never falls back.
        arguments: the schema's arguments, or the first ones. Their types are checked here, since the dispatcher's own
            sentences name no argument and it takes 1 for True; all else is checked when the overload is called.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the named implementation does not exist or cannot run in this installation.
    """
    for (kind, name), value in zip(_ARGUMENTS[op], arguments, strict=False):
        types, meaning = _TYPES[kind]
        if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
            raise TypeError(f"{name} must be {meaning}, got {type(value).__name__}")
        if kind == "int[]" and not all(type(item) is int for item in cast(Sequence[object], value)):
            raise TypeError(f"{name} must be {meaning}, got {value}")
    packet = getattr(torch.ops.smile_fast, op)
    if implementation is None:
        return packet.default  # type: ignore[no-any-return]
    by_name = _IMPLEMENTATIONS[op]
    if implementation not in by_name:
        raise ValueError(f"implementation of {op} must be None or one of {', '.join(by_name)}, got {implementation!r}")
    if reason := by_name[implementation].unusable:
        raise ValueError(f"implementation {implementation!r} of {op} cannot be used: {reason}")
    return getattr(packet, implementation)  # type: ignore[no-any-return]


def defined() -> tuple[str, ...]:
    """Return the names of all ops, in the order of their definition."""
    return tuple(_IMPLEMENTATIONS)


def available(op: str, device: str) -> list[tuple[str, bool, str]]:
    """Say which implementations an op has on a device; the first usable one is what the op runs there.

    Args:
        op: name of the op, see `smile_fast.ops.OPS`.
        device: device type, "cpu" or "cuda".

    Returns:
        (name, usable, reason) per implementation, best first; the reason says why it cannot be used and is empty
        when it can. An implementation that is usable may still refuse a dtype; the next one then runs.

    Raises:
        ValueError: unknown op.
    """
    if op not in _IMPLEMENTATIONS:
        raise ValueError(f"op must be one of {', '.join(_IMPLEMENTATIONS)}, got {op!r}")
    # What only runs on request stands last: the first usable row is what the op runs.
    rows = sorted(_IMPLEMENTATIONS[op].values(), key=lambda candidate: device in candidate.on_request)
    return [(one.name, not one.why_not_on(device), one.why_not_on(device)) for one in rows]
