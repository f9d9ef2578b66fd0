import importlib
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from smile_fast.ops import OPS, available, registry
from smile_fast.ops.native import core
from smile_fast.ops.registry import Implementation


def test_every_op_has_its_reference_everywhere() -> None:
    assert set(OPS) == {
        "label_map_upsampled",
        "masked_bce",
        "masked_bce_in_place",
        "masked_bce_upsampled",
        "pseudo_labels_upsampled",
        "select_top_fraction",
    }
    for op in OPS:
        for device in ("cpu", "cuda", "meta"):
            assert available(op, device)[-1] == ("reference", True, "")


def test_what_cannot_be_used_says_why() -> None:
    for op in OPS:
        for device in ("cpu", "cuda"):
            for _, usable, reason in available(op, device):
                assert usable == (reason == "")
    assert ("native", False, "it runs on cpu only") in available("masked_bce", "cuda")


def test_unknown_op() -> None:
    with pytest.raises(ValueError, match=r"op must be one of .*masked_bce, .*, got 'conv'"):
        available("conv", "cpu")


def test_core_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module, reason = core._load()
    assert module is None
    assert "SMILE_FAST_BUILD=none" in reason


def test_core_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(importlib, "import_module", broken)
    module, reason = core._load()
    assert module is None
    assert reason == "the native core does not load: libgomp.so.1: cannot open shared object file"


def test_implementation_that_cannot_run_here_raises_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Implementation("native", lambda *_: None, devices=("cpu",), unusable="no compiler, no core")
    reference = registry._IMPLEMENTATIONS["masked_bce"][-1]
    monkeypatch.setitem(registry._IMPLEMENTATIONS, "masked_bce", (broken, reference))
    assert available("masked_bce", "cpu") == [("native", False, "no compiler, no core"), ("reference", True, "")]
    with pytest.raises(ValueError, match="'native' of masked_bce cannot be used: no compiler, no core"):
        registry.overload("masked_bce", "native", torch.ones(1))


def test_the_best_implementation_that_accepts_the_arguments_runs() -> None:
    calls: list[str] = []

    def named(name: str, refusal: str = "") -> Implementation:
        return Implementation(name, lambda *_: calls.append(name), (), refusal=lambda *_: refusal)

    registry._first_that_accepts([named("picky", "not this"), named("better"), named("reference")])(1, 2)
    registry._first_that_accepts([named("picky", "not this"), named("reference")])(1, 2)
    assert calls == ["better", "reference"]


def test_an_op_needs_a_reference() -> None:
    only = Implementation("native", lambda *_: None, devices=("cpu",))
    with pytest.raises(ValueError, match="the last implementation of nothing must be the reference"):
        registry.define(
            "nothing",
            "(Tensor x) -> Tensor",
            [only],
            fake=lambda x: x,
            setup_context=lambda ctx, inputs, output: None,
            backward=lambda ctx, grad: grad,
        )
