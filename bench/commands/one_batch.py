"""Steps a second of a run's own step on one batch, again and again: what is left when nothing has to be read.

python -m bench.commands.one_batch RUN --device cuda

On CUDA the step is the graph that `smile-fast train` captures, replayed on a batch that lies on the device.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.timing import rounded
from smile_fast.training.one_batch import steps_on_one_batch
from smile_fast.training.run import Run
from smile_runtime.errors import InputError

ROUNDS, WARMUPS = 11, 10  # of the warm-up the first steps run one by one, and one is captured


def rates(step: Callable[[], object], device: torch.device, steps: int) -> list[float]:
    """Steps a second of ROUNDS rounds of `steps` steps, after the warm-up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found = []
    for number in range(1 + ROUNDS):
        wait()
        started = time.perf_counter()
        for _ in range(steps if number else WARMUPS):
            step()
        wait()
        found.append(steps / (time.perf_counter() - started))
    return found[1:]


def main(arguments: list[str] | None = None) -> int:
    """Print one line of JSON; 2 if there is no such run, or its step cannot be captured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=30, help="of a round (default: %(default)s)")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    try:
        step = steps_on_one_batch(Run.open(given.run), device)
        found = rates(step, device, given.steps)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    loss = float(step().loss.detach())
    assert 0 <= loss < math.inf, f"a loss of {loss}"
    fastest, slowest = rounded(max(found)), rounded(min(found))
    print(json.dumps({"steps/s": rounded(statistics.median(found)), "slowest and fastest round": [slowest, fastest]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
