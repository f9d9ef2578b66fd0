"""Runs smile-fast in processes that are disturbed at a given moment.

    python -m tests.faults.server < JOBS

A line of JOBS is a JSON object: the fault (kind, number, folder), `commands`, lists of arguments that follow each other
in one process, and `cwd`. For each a line of JSON is printed: the exit status of the last command (-9 of a killed one),
what was said, and how many changes of which kind were made.

The processes are forks of this one, which has loaded everything and started no thread: a run takes some milliseconds.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
from typing import Any

from tests.faults.inject import Fault

_LOADED = (
    "smile_fast.cli.main",
    "smile_fast.data.importing.merge",
    "smile_fast.data.prepare",
    "smile_fast.evaluation.evaluate",
    "smile_fast.evaluation.predictions",
    "smile_fast.sweep.work",
    "smile_fast.training.loop",
    "smile_fast.training.relabel",
    "smile_fast.training.weights",
    "torch._dynamo",  # which torch would import when it makes the first optimizer, in seconds
)
_UNEXPECTED = 70


def run_disturbed(job: dict[str, Any]) -> dict[str, Any]:
    """Run commands in a fork until one does not end with 0."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as counts:
        child = os.fork()
        if child == 0:
            status = _UNEXPECTED
            try:
                for descriptor in (1, 2):
                    os.dup2(said.fileno(), descriptor)
                os.chdir(job["cwd"])
                status = _run(job, counts)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        counts.seek(0)
        return {"status": status, "said": said.read(), "seen": json.loads(counts.read() or "[]")}


def _run(job: dict[str, Any], counts: Any) -> int:
    import torch

    from smile_fast.cli.main import main
    from smile_fast.training import loop

    loop.CHECKPOINT_SECONDS = 0.0  # one after every step
    torch.set_num_threads(1)
    fault = Fault(job["kind"], job["number"], job["folder"])
    fault.install()
    status = 0
    for command in job["commands"]:
        status = main(command)
        if status:
            break
    counts.write(json.dumps(fault.seen))
    counts.flush()
    return status


if __name__ == "__main__":
    for name in _LOADED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run_disturbed(json.loads(line))), file=answers, flush=True)
