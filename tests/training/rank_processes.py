"""Trainings by several processes on this machine, started without torchrun's agent, which takes seconds to import."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 120  # after which a test that hangs fails


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment_of(world: int, rank: int, port: int = 1) -> dict[str, str]:
    """What torchrun sets for a process on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def start(world: int, arguments: Sequence[str], **environment: str) -> list[subprocess.Popen[str]]:
    """Start `python ARGUMENTS` once a rank, as torchrun would."""
    port = free_port()
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, **environment_of(world, rank, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of every rank."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def train(world: int, *arguments: object, **environment: str) -> list[tuple[int, str, str]]:
    """Run `smile-fast train` on the CPU by some ranks, to its end."""
    command = ["-m", "smile_fast", "train", *map(str, arguments), "--device", "cpu"]
    return ended(start(world, command, **environment))


def successful(results: Sequence[tuple[int, str, str]]) -> None:
    for rank, (status, output, errors) in enumerate(results):
        assert status == 0, f"rank {rank}: {status}\n{output}\n{errors}"
