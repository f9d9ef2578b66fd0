"""How the Triton implementations are loaded, chosen and tuned; nothing here runs a kernel."""

import importlib
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from smile_fast.ops import OPS, available
from smile_fast.ops.triton_kernels import core
from smile_fast.ops.triton_kernels.core import Configuration

SLOW, FAST = Configuration({"BLOCK": 1}), Configuration({"BLOCK": 2}, warps=8, registers=64)


def test_every_op_has_triton_before_the_reference_on_a_gpu() -> None:
    for op in OPS:
        names = [name for name, _, _ in available(op, "cuda")]
        assert names.index("triton") < names.index("reference")
        assert ("triton", core.UNUSABLE == "", core.UNUSABLE) in available(op, "cuda")


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert core._unusable() == "Triton is not installed (pip install triton; there are packages for Linux)"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measurements that find larger blocks faster; the list of those that were measured."""
    blocks: list[int] = []

    def measure(run: Callable[[], int], **options: object) -> float:
        blocks.append(run())
        return 1.0 / blocks[-1]

    monkeypatch.setattr(core, "_CHOSEN", {})
    monkeypatch.setattr(core, "_may_wait", lambda: True)
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(do_bench=measure))
    return blocks


def run(configuration: Configuration) -> int:
    return int(configuration.constants["BLOCK"])


def test_the_fastest_configuration_is_measured_once(measured: list[int]) -> None:
    assert core.tuned(("op", 1), (SLOW, FAST), run) == 2
    assert core.tuned(("op", 1), (SLOW, FAST), run) == 2
    assert measured == [1, 2]
    assert core.tuned(("op", 2), (SLOW,), run) == 1  # nothing to choose from
    assert measured == [1, 2]


def test_nothing_is_measured_when_the_host_may_not_wait(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_may_wait", lambda: False)
    assert core.tuned(("op", 1), (SLOW, FAST), run) == 1
    monkeypatch.setattr(core, "_may_wait", lambda: True)
    assert core.tuned(("op", 1), (SLOW, FAST), run) == 2  # the guess was not kept
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert core.tuned(("op", 1), (SLOW, FAST), run) == 1


def test_what_a_measurement_overwrites_is_put_back(measured: list[int]) -> None:
    values = torch.tensor([1.0])
    core.tuned(("op", 1), (SLOW, FAST), lambda c: (values.mul_(2), run(c))[1], overwritten=values)
    assert values.item() == 2.0  # once, by the run that counts


@pytest.mark.parametrize(
    ("deterministic", "debug", "capturing", "waits"),
    [(False, 0, False, True), (True, 0, False, False), (False, 2, False, False), (False, 0, True, False)],
)
def test_when_the_host_may_wait(
    deterministic: bool, debug: int, capturing: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "INTERPRETED", False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: debug)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert core._may_wait() == waits


def test_launch_options() -> None:
    assert SLOW.launch_options == {"BLOCK": 1, "num_warps": 4, "enable_fp_fusion": False}
    assert FAST.launch_options == {"BLOCK": 2, "num_warps": 8, "maxnreg": 64, "enable_fp_fusion": False}


def test_sizes_within_a_factor_of_four_share_a_bucket() -> None:
    assert core.size_bucket(2**21) == core.size_bucket(2**23 - 1) != core.size_bucket(2**23)
