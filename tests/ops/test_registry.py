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
        "scale_gradient",
        "select_top_fraction",
    }
    for op in OPS:
        for device in ("cpu", "cuda", "meta"):
            names = [name for name, usable, _ in available(op, device) if usable]
            assert "reference" in names
            assert names[-1] == "reference" or device == "cpu"  # behind it: what runs there on request only


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
    module, reason = core.load("_native", core.NOT_BUILT)
    assert module is None
    assert "SMILE_FAST_BUILD=none" in reason


def test_core_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(importlib, "import_module", broken)
    module, reason = core.load("_native", core.NOT_BUILT)
    assert module is None
    assert reason == "the native core does not load: libgomp.so.1: cannot open shared object file"


def test_implementation_that_cannot_run_here_raises_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Implementation("native", lambda *_: None, devices=("cpu",), unusable="no compiler, no core")
    reference = registry._IMPLEMENTATIONS["masked_bce"][-1]
    monkeypatch.setitem(registry._IMPLEMENTATIONS, "masked_bce", (broken, reference))
    assert available("masked_bce", "cpu") == [("native", False, "no compiler, no core"), ("reference", True, "")]
    with pytest.raises(ValueError, match="'native' of masked_bce cannot be used: no compiler, no core"):
        registry.overload("masked_bce", "native")


def test_the_best_implementation_that_accepts_the_arguments_runs() -> None:
    calls: list[str] = []

    def named(name: str, refusal: str = "") -> Implementation:
        return Implementation(name, lambda *_: calls.append(name), (), refusal=lambda *_: refusal)

    registry._first_that_accepts([named("picky", "not this"), named("better"), named("reference")])(1, 2)
    registry._first_that_accepts([named("picky", "not this"), named("reference")])(1, 2)
    assert calls == ["better", "reference"]


def gpu_op(refusal: str) -> list[Implementation]:
    """What an op has on a machine without the CUDA core, whose Triton may refuse arguments."""
    return [
        Implementation("native", lambda *_: "native", ("cpu",)),
        Implementation("cuda", lambda *_: "cuda", ("cuda",), unusable="no nvcc"),
        Implementation("triton", lambda *_: "triton", ("cuda",), refusal=lambda dtype: refusal),
        Implementation("reference", lambda *_: "reference", ()),
    ]


def test_the_reference_on_a_gpu_warns_once_and_says_why() -> None:
    implementations = gpu_op("it takes no float64")
    run = registry._first_that_accepts(
        implementations[2:], registry._warning_of_reference("masked_bce", implementations, "cuda")
    )
    expected = r"^masked_bce runs its slow reference on cuda\. cuda: no nvcc; triton: it takes no float64$"
    with pytest.warns(RuntimeWarning, match=expected):
        assert run("float64") == "reference"
    assert run("float64") == "reference"  # a second warning would be an error


def test_what_a_kernel_takes_gives_no_warning() -> None:
    implementations = gpu_op("")
    told = registry._warning_of_reference("masked_bce", implementations, "cuda")
    assert registry._first_that_accepts(implementations[2:], told)("float32") == "triton"


def test_every_op_warns_of_its_reference_on_a_gpu_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: dict[tuple[str, str], object] = {}
    library = SimpleNamespace(
        define=lambda *_, **__: None, impl=lambda op, run, key: kernels.__setitem__((op, key), run)
    )
    for name in ("register_fake", "register_autograd"):
        monkeypatch.setattr(torch.library, name, lambda *_, **__: None)
    monkeypatch.setattr(registry, "_LIBRARY", library)
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", {})
    only_reference = [Implementation("triton", lambda *_: None, ("cuda",), unusable="absent"), gpu_op("")[-1]]
    registry.define("example", "(Tensor x) -> Tensor", only_reference, fake=lambda x: x)
    with pytest.warns(RuntimeWarning, match=r"example runs its slow reference on cuda\. triton: absent"):
        assert kernels["example", "CUDA"](1) == "reference"  # type: ignore[operator]
    assert ("example", "CPU") not in kernels
    assert kernels["example", "CompositeExplicitAutograd"](1) == "reference"  # type: ignore[operator]


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
