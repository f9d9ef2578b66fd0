"""`smile-fast train`, of which one rank gets a signal: `-m tests.training.spoiled_rank RANK STEP SIGNAL train ...`.

The signal comes while the step is computed, counted from 1 over all rounds; at step 0 it comes while a case is
relabelled, at step -1 while the validation cases are predicted.
"""

import os
import sys
from typing import Any

from smile_fast.cli.main import main
from smile_fast.training import loop
from smile_fast.training.loop import Trainer
from smile_fast.training.pseudo_labels import PseudoLabeller

_RANK, _STEP, _SIGNAL = map(int, sys.argv[1:4])


def _spoil() -> None:
    step, select, validate, done = Trainer.step, PseudoLabeller.__call__, loop.validate, 0

    def spoiled_step(self: Trainer, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == _STEP:
            os.kill(os.getpid(), _SIGNAL)
        return step(self, *arguments)

    def spoiled_selection(self: PseudoLabeller, *arguments: Any) -> Any:
        if _STEP == 0:
            os.kill(os.getpid(), _SIGNAL)
        return select(self, *arguments)

    def spoiled_validation(*arguments: Any) -> Any:
        if _STEP == -1:
            os.kill(os.getpid(), _SIGNAL)
        return validate(*arguments)

    loop.validate = spoiled_validation  # type: ignore[assignment]
    Trainer.step, PseudoLabeller.__call__ = spoiled_step, spoiled_selection  # type: ignore[method-assign]


if __name__ == "__main__":
    if int(os.environ["RANK"]) == _RANK:
        _spoil()
    sys.exit(main(sys.argv[4:]))
