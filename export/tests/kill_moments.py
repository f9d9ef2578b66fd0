"""Runs smile-predict in processes that kill themselves at a given moment of their work.

    python kill_moments.py < JOBS

JOBS is a JSON list of [moment, number, arguments]: the run with these arguments sends itself SIGKILL when the moment
comes for the number-th time, never if the number is 0. Prints a JSON list of [exit status, {moment: how often it
came}]; a killed process has the status -9 and no counts. No clock decides which moment it is: one thread does all the
writing, so the moments of a kind come in the same order in every run.

The processes are forks of this one, which has loaded everything and started no thread: a run takes some milliseconds.
"""

import builtins
import io
import json
import os
import signal
import stat
import sys
import tempfile
import traceback
from collections import Counter

import smile_runtime.predict.commands  # noqa: F401  # loaded once, before the forks
from smile_runtime.model.exported import Model
from smile_runtime.predict.cli import main

INFERENCE = "inference of a batch"
HALF_WRITTEN = "half of a file is written"
BEFORE_FILE, AFTER_FILE = "before fsync of a file", "after fsync of a file"
BEFORE_RENAME, AFTER_RENAME = "before a rename", "after a rename"
BEFORE_FOLDER, AFTER_FOLDER = "before fsync of the folder", "after fsync of the folder"
UNFINISHED = (HALF_WRITTEN, BEFORE_FILE, AFTER_FILE, BEFORE_RENAME)  # a file has its temporary name yet
FINISHED = (AFTER_RENAME, BEFORE_FOLDER, AFTER_FOLDER)


class Moments:
    """Counts the moments of this process, and ends it at one of them."""

    def __init__(self, name, number):
        self.last, self.seen = (name, number), Counter()

    def at(self, name):
        self.seen[name] += 1
        if (name, self.seen[name]) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, real, before, after):
        def called(*arguments):
            self.at(before(*arguments))
            result = real(*arguments)
            self.at(after(*arguments))
            return result

        return called

    def install(self):
        def fsync_of(file, folder):
            return lambda descriptor: folder if stat.S_ISDIR(os.fstat(descriptor).st_mode) else file

        def labels(model, hu, pixel_spacing):
            self.at(INFERENCE)
            return real_labels(model, hu, pixel_spacing)

        real_labels, Model.labels = Model.labels, labels
        os.fsync = self.around(os.fsync, fsync_of(BEFORE_FILE, BEFORE_FOLDER), fsync_of(AFTER_FILE, AFTER_FOLDER))
        os.replace = self.around(os.replace, lambda *_: BEFORE_RENAME, lambda *_: AFTER_RENAME)
        builtins.open = io.open = self.opener(io.open)

    def opener(self, real):
        """`open`, whose files under temporary names get their first half, then a moment, then the rest."""

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
            is_temporary = not isinstance(file, int) and os.path.basename(os.fspath(file)).startswith(".tmp-")
            if not is_temporary or "w" not in mode:
                return real(file, mode, buffering, encoding, errors, newline, **options)
            halves = _Halves(real(file, "wb", buffering=0), self)
            return halves if "b" in mode else io.TextIOWrapper(halves, encoding, errors, newline)

        return opened


class _Halves(io.BytesIO):
    """Keeps what is written, and writes it in two halves when it is closed."""

    def __init__(self, file, moments):
        super().__init__()
        self.file, self.moments = file, moments

    def close(self):
        if not self.closed:
            content = self.getvalue()
            with self.file as file:
                file.write(content[: len(content) // 2])
                self.moments.at(HALF_WRITTEN)
                file.write(content[len(content) // 2 :])
        super().close()


def run_and_die(name, number, arguments):
    """Run smile-predict in a fork; its exit status, and how often each moment came."""
    with tempfile.TemporaryFile("w+") as counts:
        child = os.fork()
        if child == 0:
            status = 70  # of an unexpected exception
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                moments = Moments(name, number)
                moments.install()
                status = main(arguments)
                json.dump(moments.seen, counts)
                counts.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        counts.seek(0)
        return status, json.loads(counts.read() or "{}")


if __name__ == "__main__":
    print(json.dumps([run_and_die(*job) for job in json.load(sys.stdin)]))
