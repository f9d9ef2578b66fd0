"""The demo calls the same commands that a user types, and keeps what they print."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.threads import default_threads, usable_cpus

# Every folder that a demo made carries this file: only such a folder is ever replaced.
_MARK = ".smile-fast-demo"


class CommandFailed(RuntimeError):
    """A command of the demo did not succeed."""


def fresh_folder(out: Path) -> Path:
    """An empty folder for the demo; one that an earlier demo wrote is replaced, any other is refused."""
    if out.exists() and not (out / _MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and was not written by the demo; move it away, or give another --out")
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / _MARK).touch()
        (out / "logs").mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)}); give another --out") from None
    return out


class Commands:
    """Runs `smile-fast` commands as processes of their own and takes their times.

    Args:
        out: the demo's folder; what a command prints goes to ``logs/<name>.log`` in it.

    Attributes:
        seconds: wall time by the name of the step.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}

    def smile_fast(self, name: str, *arguments: object, threads: int = 0, show: bool = False) -> None:
        """Run `smile-fast ARGUMENTS`; with `show` its output is printed as well as logged."""
        self._run(name, [sys.executable, "-m", "smile_fast", *map(str, arguments)], threads, show)

    def smile_predict(self, name: str, *arguments: object) -> None:
        """Run `smile-predict ARGUMENTS` where torch cannot be imported."""
        code = "import sys; sys.modules['torch'] = None; from smile_runtime.predict.cli import main; sys.exit(main())"
        self._run(name, [sys.executable, "-c", code, *map(str, arguments)], 0, False)

    def in_parallel(self, jobs: Mapping[str, Sequence[object]]) -> None:
        """Run several `smile-fast` commands at once, each on its share of the threads: small networks scale badly."""
        lanes = min(len(jobs), usable_cpus())
        share = max(1, default_threads() // lanes)
        with ThreadPoolExecutor(lanes) as pool:
            tasks = [pool.submit(self.smile_fast, name, *arguments, threads=share) for name, arguments in jobs.items()]
            for task in tasks:
                task.result()

    def _run(self, name: str, command: list[str], threads: int, show: bool) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        started = time.monotonic()
        log = self.out / "logs" / f"{name.replace(' ', '-')}.log"
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE if show else file,
                stderr=file,
                encoding="utf-8",
                env=environment,
                check=False,
            )
            if show:
                file.write(done.stdout)
                print(done.stdout, end="", flush=True)
        self.seconds[name] = round(time.monotonic() - started, 1)
        if done.returncode != 0:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing"])[
                -1
            ]
            raise CommandFailed(f"the step '{name}' ended with status {done.returncode}: {last} (see {log})")
        if not show:
            print(f"  {name:32} {self.seconds[name]:7.1f} s", flush=True)
