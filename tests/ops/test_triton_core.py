"""How the Triton implementations are loaded, chosen and tuned; nothing here runs a kernel."""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch

from smile_fast.ops import OPS, available
from smile_fast.ops.triton_kernels import core
from smile_fast.ops.triton_kernels.core import Configuration

SLOW, FAST = Configuration({"BLOCK": 1}), Configuration({"BLOCK": 2}, warps=8, registers=64)


# What the records say is fastest: one kernel an op is kept.
ON_A_GPU = {
    "masked_bce": "cuda",
    "masked_bce_in_place": "cuda",
    "masked_bce_upsampled": "triton",
    "scale_gradient": "cuda",
    "select_top_fraction": "cuda",
    "label_map_upsampled": "triton",
    "pseudo_labels_upsampled": "triton",
}


def test_every_op_has_one_compiled_implementation_on_a_gpu() -> None:
    compiled = {op: [name for name, *_ in available(op, "cuda") if name in ("cuda", "triton")] for op in OPS}
    assert compiled == {op: [name] for op, name in ON_A_GPU.items()}
    assert ("triton", core.UNUSABLE == "", core.UNUSABLE) in available("masked_bce_upsampled", "cuda")


def fresh_core() -> ModuleType:
    """The module as at its first import, with nothing chosen yet."""
    spec = importlib.util.spec_from_file_location("fresh_triton_core", core.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fresh_core().UNUSABLE == "Triton is not installed (pip install triton; there are packages for Linux)"


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`tuned` of a process with a GPU that has chosen nothing yet, and whose host may wait."""
    module = fresh_core()
    monkeypatch.setattr(module, "INTERPRETED", False)
    for query, answer in (("get_sync_debug_mode", 0), ("is_current_stream_capturing", False)):
        monkeypatch.setattr(torch.cuda, query, lambda answer=answer: answer)
    return module.tuned


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measurements that find larger blocks faster; the list of those that were measured."""
    blocks: list[int] = []

    def measure(run: Callable[[], int], **options: object) -> float:
        blocks.append(run())
        return 1.0 / blocks[-1]

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(do_bench=measure))
    return blocks


def run(configuration: Configuration) -> int:
    return int(configuration.constants["BLOCK"])


def test_the_fastest_configuration_is_measured_once(tuned: Callable[..., int], measured: list[int]) -> None:
    assert tuned(("op", 1), (SLOW, FAST), run) == 2
    assert tuned(("op", 1), (SLOW, FAST), run) == 2
    assert measured == [1, 2]
    assert tuned(("op", 2), (SLOW,), run) == 1  # nothing to choose from
    assert measured == [1, 2]


@pytest.mark.parametrize(
    ("module", "query", "answer"),
    [
        (torch, "are_deterministic_algorithms_enabled", True),
        (torch.cuda, "get_sync_debug_mode", 2),
        (torch.cuda, "is_current_stream_capturing", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_measured_when_the_host_may_not_wait(
    module: ModuleType,
    query: str,
    answer: object,
    tuned: Callable[..., int],
    measured: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, query, lambda: answer)
        assert tuned(("op", 1), (SLOW, FAST), run) == 1
        assert measured == []
    assert tuned(("op", 1), (SLOW, FAST), run) == 2  # the guess was not kept
    assert measured == [1, 2]


def test_deterministic_algorithms_take_the_first_configuration_whatever_was_measured(
    tuned: Callable[..., int], measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(("op", 1), (SLOW, FAST), run) == 2
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert tuned(("op", 1), (SLOW, FAST), run) == 1


def test_the_interpreter_measures_nothing(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    module = fresh_core()
    monkeypatch.setattr(module, "INTERPRETED", True)
    assert module.tuned(("op", 1), (SLOW, FAST), run) == 1
    assert measured == []


def test_launch_options() -> None:
    assert SLOW.launch_options == {"BLOCK": 1, "num_warps": 4, "enable_fp_fusion": False}
    assert FAST.launch_options == {"BLOCK": 2, "num_warps": 8, "maxnreg": 64, "enable_fp_fusion": False}


def test_sizes_within_a_factor_of_four_share_a_bucket() -> None:
    assert core.size_bucket(2**21) == core.size_bucket(2**23 - 1) != core.size_bucket(2**23)
