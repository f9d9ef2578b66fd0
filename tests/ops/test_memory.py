"""How much memory a call takes at its peak, measured in a process of its own."""

import subprocess
import sys

import pytest

from tests.ops.problems import IMPLEMENTATIONS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif("native" not in IMPLEMENTATIONS["masked_bce"], reason="the reference needs temporaries"),
]

MEGABYTE = 1 << 20
SLACK = 4 * MEGABYTE  # stacks, page tables, whatever torch allocates meanwhile

PROGRAM = """
import torch
from smile_fast.ops import masked_bce
from smile_fast.supervision import Policy, State, build_tables

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def peak(call):
    kept = call()  # the first call also loads what stays; its result is kept, so that no memory is used again
    open("/proc/self/clear_refs", "w").write("5")  # the peak is now what is resident
    before = resident("VmRSS")
    result = call()
    return resident("VmHWM") - before

torch.set_num_threads(2)
logits = torch.zeros(4, 13, 512, 512, requires_grad=True)  # 54.5 MB
labels = torch.zeros(4, 512, 512, dtype=torch.uint8)
table = build_tables([[State.ANNOTATED] * 13] * 4, Policy.SMILE)

class Made(torch.autograd.Function):
    @staticmethod
    def forward(ctx, leaf, made):
        return made

    @staticmethod
    def backward(ctx, grad):
        return grad, None
"""


def peak_bytes(call: str, before: str = "") -> int:
    """By how many bytes the resident memory grows at most while an expression is evaluated, `before` having run."""
    program = f"{PROGRAM}\n{before}\nprint(peak(lambda: {call}))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


LOGITS = 4 * 13 * 512 * 512 * 4


@pytest.mark.parametrize("factor", [1, 2])  # what arrives for the loss
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_masked_bce_allocates_its_gradient_and_nothing_else_of_its_size(dtype: str, factor: int) -> None:
    grown = peak_bytes(
        f"torch.autograd.grad({factor} * masked_bce(given, labels, table), given)",
        before=f"given = logits.detach().to(torch.{dtype}).requires_grad_()",
    )
    size = LOGITS if dtype == "float32" else LOGITS // 2
    assert size <= grown <= size + SLACK


def test_without_a_gradient_nothing_is_allocated() -> None:
    assert peak_bytes("masked_bce(logits.detach(), labels, table)") <= SLACK


def test_overwriting_the_logits_allocates_nothing() -> None:
    made = "torch.empty(4, 13, 512, 512).fill_(0)"
    plain = peak_bytes(f"Made.apply(logits, {made})")
    grown = peak_bytes(f"masked_bce(Made.apply(logits, {made}), labels, table, overwrite_logits=True).backward()")
    assert LOGITS <= plain
    # The gradient of the leaf is the memory that the logits had: no more than they took.
    assert grown <= plain + SLACK
