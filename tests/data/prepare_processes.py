"""Runs `smile-fast prepare` in processes that begin together, and end themselves at a given moment if they are told to.

    python prepare_processes.py < ROUNDS

ROUNDS is a JSON list of rounds, a round a list of [moment, arguments]: all processes of a round begin at once, and
each sends itself SIGKILL at its moment-th moment, never if that is 0. Moments lie in the middle of what is written to a
file, and before and after everything that makes something last: fsync, rename, unlink. Prints a JSON list of rounds, of
[exit status, number of moments, what it printed]; a killed process has the status -9 and no moments.

The processes are forks of this one, which has loaded everything and started no thread: a run takes some milliseconds.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import smile_fast.cli.prepare
import smile_fast.data.prepare  # noqa: F401  # loaded once, before the forks
from smile_fast.cli.main import main


class Moments:
    """Counts the moments of this process, and ends it at one of them."""

    def __init__(self, last):
        self.last, self.seen = last, 0

    def come(self):
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, real):
        def called(*arguments, **options):
            self.come()
            result = real(*arguments, **options)
            self.come()
            return result

        return called

    def install(self):
        def in_halves(path, data):
            with open(path, "wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                self.come()
                file.write(data[len(data) // 2 :])
            return len(data)

        Path.write_bytes = in_halves
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self.around(getattr(os, name)))


def run(moment, arguments, begin):
    """Start one process that waits for the others; its id, and the files that it prints to and counts in."""
    printed, counted = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    child = os.fork()
    if child:
        return child, printed, counted
    status = 70  # of an unexpected exception
    try:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        moments = Moments(moment)
        moments.install()
        os.read(begin, 1)
        status = main(["prepare", *arguments])
        sys.stdout.flush()
        counted.write(str(moments.seen))
        counted.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_round(jobs):
    """Run some processes together."""
    begin, go = os.pipe()
    children = [run(moment, arguments, begin) for moment, arguments in jobs]
    os.write(go, b"!" * len(children))
    results = []
    for child, printed, counted in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (printed, counted):
            file.seek(0)
        results.append([status, int(counted.read() or 0), printed.read()])
        printed.close()
        counted.close()
    os.close(begin)
    os.close(go)
    return results


if __name__ == "__main__":
    print(json.dumps([run_round(jobs) for jobs in json.load(sys.stdin)]))
