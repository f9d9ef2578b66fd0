import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverloadPacket

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


def toy(*implementations: Implementation, op: str, **options: Any) -> OpOverloadPacket:
    """Define an op that returns its input, by implementations of its own."""
    slots = {"native": None, "cuda": None, "triton": None} | {one.name: one for one in implementations}
    registry.define(
        op,
        "(Tensor x) -> Tensor",
        check=options.get("check", lambda x: None),
        fake=torch.empty_like,
        reference=lambda x: x.clone(),
        native=slots["native"],
        cuda=slots["cuda"],
        triton=slots["triton"],
    )
    return getattr(torch.ops.smile_fast, op)


def adds(number: int, name: str, *devices: str, **options: Any) -> Implementation:
    return Implementation(name, lambda x: x + number, devices, **options)


def test_implementation_that_cannot_run_here_raises_with_its_reason() -> None:
    toy(adds(1, "native", "cpu", unusable="no compiler, no core"), op="toy_unusable")
    assert available("toy_unusable", "cpu") == [("native", False, "no compiler, no core"), ("reference", True, "")]
    with pytest.raises(ValueError, match="'native' of toy_unusable cannot be used: no compiler, no core"):
        registry.overload("toy_unusable", "native")
    assert torch.equal(torch.ops.smile_fast.toy_unusable(torch.ones(1)), torch.ones(1))


def test_the_best_implementation_that_accepts_the_arguments_runs() -> None:
    def small(x: Tensor) -> str:
        return "not this" if x.numel() > 1 else ""

    op = toy(adds(1, "native", "cpu", refusals=(small,)), adds(2, "triton", "cuda", on_request=("cpu",)), op="toy_best")
    assert op(torch.zeros(1)).tolist() == [1]
    assert op(torch.zeros(2)).tolist() == [0, 0]
    assert op.triton(torch.zeros(1)).tolist() == [2]  # never the default on the CPU, but there by name
    assert available("toy_best", "cpu") == [("native", True, ""), ("reference", True, ""), ("triton", True, "")]
    assert available("toy_best", "cuda")[1:] == [("triton", True, ""), ("reference", True, "")]
    with pytest.raises(ValueError, match="implementation 'native' of toy_best cannot be used: not this"):
        op.native(torch.zeros(2))


def test_check_runs_once_whoever_calls_and_before_every_implementation() -> None:
    calls: list[int] = []

    def check(x: Tensor) -> None:
        calls.append(x.numel())
        if x.numel() == 3:
            raise ValueError("x must not have 3 numbers")

    op = toy(adds(1, "native", "cpu"), op="toy_checked", check=check)
    kernels = (op, op.default, op.native, op.reference, registry.overload("toy_checked", None))
    for number, kernel in enumerate(kernels):
        kernel(torch.ones(1))
        assert len(calls) == number + 1
    for kernel in kernels:
        with pytest.raises(ValueError, match="x must not have 3 numbers"):
            kernel(torch.ones(3))
        with pytest.raises(ValueError, match="x must not have 3 numbers"):
            kernel(torch.ones(3, device="meta"))  # what torch.compile runs


def test_an_op_that_is_not_differentiable_gives_results_that_require_no_gradient() -> None:
    op = toy(op="toy_constant")
    assert not op(torch.ones(2, requires_grad=True)).requires_grad
    torch.library.opcheck(op.default, (torch.ones(2, requires_grad=True),))


def on_gpu(dtype: str) -> Any:
    """A stand-in for a tensor on a GPU, which there is none of."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype)


def gpu_candidates(refusal: str) -> list[Implementation]:
    """What an op has for CUDA on a machine without the CUDA core, whose Triton may refuse arguments."""
    return [
        Implementation("cuda", lambda *_: "cuda", ("cuda",), unusable="no nvcc"),
        Implementation("triton", lambda *_: "triton", ("cuda",), refusals=(lambda x: refusal,)),
        Implementation("reference", lambda *_: "reference"),
    ]


def test_the_reference_on_a_gpu_warns_once_and_says_why() -> None:
    run = registry.best_of("masked_bce", gpu_candidates("it takes no float64"), warns=True)
    expected = r"^masked_bce runs its slow reference on cuda\. cuda: no nvcc; triton: it takes no float64$"
    with pytest.warns(RuntimeWarning, match=expected):
        assert run(on_gpu("float64")) == "reference"
    assert run(on_gpu("float64")) == "reference"  # a second warning would be an error


def test_what_a_kernel_takes_gives_no_warning() -> None:
    assert registry.best_of("masked_bce", gpu_candidates(""), warns=True)(on_gpu("float32")) == "triton"


def test_on_a_cpu_the_reference_gives_no_warning() -> None:
    only_reference = [adds(1, "native", "cpu", unusable="no core"), gpu_candidates("")[-1]]
    assert registry.best_of("masked_bce", only_reference)(torch.ones(1)) == "reference"


def test_an_op_needs_a_reference() -> None:
    with pytest.raises(ValueError, match=r"nothing needs a reference: a function of this name in .*reference\.py"):
        registry.define("nothing", "(Tensor x) -> Tensor", check=lambda x: None, fake=torch.empty_like)
