"""Which implementations an op has, which of them run here, and how one is chosen.

An op has one default overload, which picks the best implementation per device through torch's dispatcher, and one
overload per usable implementation name (`torch.ops.smile_fast.masked_bce.reference`). All of them share the fake
kernel and the autograd formula, so a choice by name compiles and differentiates like the default.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

NAMESPACE = "smile_fast"
REFERENCE = "reference"
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def _accepts_everything(*arguments: Any) -> str:
    return ""


@dataclass(frozen=True)
class Implementation:
    """One implementation of one op."""

    name: str
    """What a user asks for: reference, native, ..."""
    run: Callable[..., Any]
    """The kernel: takes the schema's arguments, returns its results, knows nothing of autograd."""
    devices: tuple[str, ...]
    """The device types it runs on; () means any."""
    unusable: str = ""
    """Why it cannot run in this installation at all; empty when it can."""
    refusal: Callable[..., str] = _accepts_everything
    """Called with the schema's arguments: why it cannot take these; empty when it can."""
    on_request: tuple[str, ...] = ()
    """Further device types on which it runs when it is asked for by name, and only then."""

    def why_not_on(self, device: str) -> str:
        """Return why this implementation cannot run on a device type; empty when it can."""
        if self.devices and device not in self.devices + self.on_request:
            return f"it runs on {', '.join(self.devices)} only"
        return self.unusable


_IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {}


def define(
    op: str,
    schema: str,
    implementations: Sequence[Implementation],
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define an op with all its implementations.

    Args:
        op: its one noun, e.g. "masked_bce".
        schema: arguments and results, e.g. "(Tensor scores) -> Tensor".
        implementations: best first; the last one is the reference, which runs anywhere and takes anything.
        fake: the shapes and dtypes of the results, for torch.compile.
        setup_context: what the backward needs, see torch.library.register_autograd.
        backward: the gradient formula, see torch.library.register_autograd; None for an op that writes to its inputs,
            which can have none.
    """
    if implementations[-1].name != REFERENCE:
        raise ValueError(f"the last implementation of {op} must be the reference")
    _IMPLEMENTATIONS[op] = tuple(implementations)
    usable = [implementation for implementation in implementations if not implementation.unusable]
    overloads = [op, *(f"{op}.{implementation.name}" for implementation in usable)]
    for overload in overloads:
        _LIBRARY.define(overload + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{NAMESPACE}::{overload}", fake, lib=_LIBRARY)
        if backward is not None:
            torch.library.register_autograd(
                f"{NAMESPACE}::{overload}", backward, setup_context=setup_context, lib=_LIBRARY
            )
    for implementation in usable:
        _LIBRARY.impl(f"{op}.{implementation.name}", implementation.run, "CompositeExplicitAutograd")

    _LIBRARY.impl(op, implementations[-1].run, "CompositeExplicitAutograd")
    for device, key in _DISPATCH_KEYS.items():
        candidates = [
            implementation
            for implementation in usable
            if not implementation.why_not_on(device) and device not in implementation.on_request
        ]
        if device == "cuda":  # a GPU's user waits for more than a CPU's who has no compiler
            told = _warning_of_reference(op, implementations, device)
            _LIBRARY.impl(op, _first_that_accepts(candidates, told), key)
        elif len(candidates) > 1:
            _LIBRARY.impl(op, _first_that_accepts(candidates), key)


def _first_that_accepts(
    candidates: Sequence[Implementation], before_reference: Callable[..., object] = _accepts_everything
) -> Callable[..., Any]:
    """Return a kernel that runs the best candidate for its arguments; the reference at the end takes anything."""

    def run(*arguments: Any) -> Any:
        for candidate in candidates:
            if not candidate.refusal(*arguments):
                break
        if candidate.name == REFERENCE:
            before_reference(*arguments)
        return candidate.run(*arguments)

    return run


def _warning_of_reference(op: str, implementations: Sequence[Implementation], device: str) -> Callable[..., None]:
    """Return what says, the first time that it is called, that an op runs its reference on a device, and why."""
    told = False

    def warn(*arguments: Any) -> None:
        nonlocal told
        if told:
            return
        told = True
        reasons = "; ".join(
            f"{candidate.name}: {candidate.why_not_on(device) or candidate.refusal(*arguments)}"
            for candidate in implementations
            if device in candidate.devices
        )
        warnings.warn(f"{op} runs its slow reference on {device}. {reasons}", RuntimeWarning, stacklevel=2)

    return warn


def overload(op: str, implementation: str | None, *arguments: Any) -> OpOverload:
    """Return the overload to call with these arguments.

    Args:
        op: name of the op.
        implementation: None for the best one, or a name; a name never falls back.
        arguments: the schema's arguments; the first one is a tensor and says the device.

    Raises:
        ValueError: the named implementation does not exist, or cannot run here or with these arguments.
    """
    packet = getattr(torch.ops.smile_fast, op)
    if implementation is None:
        return packet.default  # type: ignore[no-any-return]
    candidates = _IMPLEMENTATIONS[op]
    for candidate in candidates:
        if candidate.name == implementation:
            reason = candidate.why_not_on(arguments[0].device.type) or candidate.refusal(*arguments)
            if reason:
                raise ValueError(f"implementation {implementation!r} of {op} cannot be used: {reason}")
            return getattr(packet, implementation)  # type: ignore[no-any-return]
    names = ", ".join(candidate.name for candidate in candidates)
    raise ValueError(f"implementation of {op} must be None or one of {names}, got {implementation!r}")


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
    rows = []
    # What only runs on request stands last: the first usable row is what the op runs.
    for implementation in sorted(_IMPLEMENTATIONS[op], key=lambda candidate: device in candidate.on_request):
        reason = implementation.why_not_on(device)
        rows.append((implementation.name, not reason, reason))
    return rows
