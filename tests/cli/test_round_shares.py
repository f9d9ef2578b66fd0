"""A round of a run by several commands: at once, in any order, beside others, and what is missing is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.data.folder_lock import locked, shared
from tests.cohorts import tree

ROUND = "relabel run --round 2 --gamma 0.5 --device cpu"
BUSY = "run: another smile-fast process is at work there now; wait until it has ended, or give another folder"


def started(command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "smile_fast", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The only sentence of a command that cannot do its work."""
    capsys.readouterr()
    assert main(command.split()) == 2, command
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return error.removeprefix("error: ")


@pytest.fixture
def expected(work):
    """The files of the round that one command writes; it is dropped again."""
    assert main(ROUND.split()) == 0
    found = tree(Path("run/rounds/2"))
    assert main("relabel run --undo 1".split()) == 0
    return found


def test_a_round_by_shares(work, expected, capsys):
    assert refused(f"{ROUND} --finish", capsys) == (
        "run/rounds/2: 3 of 3 cases of the round are missing (train_0, train_1, train_2); run 'smile-fast relabel' for "
        "their shards, or without --shard for all that is missing"
    )
    for share, cases in (("2/2", 1), ("1/2", 2), ("2/2", 0)):
        assert main([*ROUND.split(), "--shard", share]) == 0
        said = f"share {share} of round 2 is done, {cases} cases now; when all are: smile-fast relabel run --round 2 "
        assert f"{said}--finish" in capsys.readouterr().out
        assert not Path("run/rounds/2").exists()
    assert main("relabel run --round 2 --finish".split()) == 0  # gamma is that of the shares
    assert "wrote round 2 (gamma 0.5): run/rounds/2" in capsys.readouterr().out
    assert tree(Path("run/rounds/2")) == expected
    for late in (f"{ROUND} --shard 1/2", f"{ROUND} --finish"):
        assert main(late.split()) == 0
    assert "has a round 2 already" in refused(ROUND, capsys)
    assert "has a round 2 already" in refused("relabel run --round 2 --gamma 0.1 --shard 1/2", capsys)
    assert tree(Path("run/rounds/2")) == expected


def test_shares_and_ends_at_once(work, expected):
    """Real processes: three shares, one twice, then two ends, of which one may be told of the other."""
    processes = [started(f"{ROUND} --shard {share}") for share in ("1/3", "2/3", "3/3", "2/3")]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    ends = [started("relabel run --round 2 --finish") for _ in range(2)]
    said = [end.communicate(timeout=600)[1] for end in ends]
    assert 0 in [end.returncode for end in ends]
    for end, err in zip(ends, said, strict=True):
        assert end.returncode == 0 or (end.returncode == 2 and f"error: {BUSY}" in err)
    assert tree(Path("run/rounds/2")) == expected


def test_shares_are_refused_where_a_run_is_at_work_and_keep_others_out(work, capsys):
    with locked(Path("run")):
        assert refused(f"{ROUND} --shard 1/2", capsys) == BUSY
        for command in ("evaluate run --device cpu", "evaluate run --finish", f"{ROUND} --finish"):
            assert refused(command, capsys) == BUSY
    with shared(Path("run")):
        assert "cases of the round are missing" in refused(f"{ROUND} --finish", capsys)  # it waits for its own shares
        for command in (ROUND, "relabel run --undo 0", "train store run --resume --device cpu"):
            assert refused(command, capsys) == BUSY
        assert main([*ROUND.split(), "--shard", "1/2"]) == 0
        assert main("evaluate run --device cpu --no-surface --workers 1".split()) == 0


def test_what_is_unfinished_is_said_by_the_next_command(work, capsys):
    assert main("relabel run --round 7 --gamma 0.5 --device cpu --shard 1/2".split()) == 0
    said = "warning: run: round 7 is unfinished; 'smile-fast relabel run --round 7 --finish' says what it lacks"
    for command in (ROUND, "train store run --resume --device cpu"):
        capsys.readouterr()
        assert main(command.split()) == 0
        assert said in capsys.readouterr().err
    assert main("relabel run --undo 6".split()) == 0
    assert "dropped rounds: 7; human labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--shard 1/2", "--round: is not given, and shares of a round must be of the same one; give its number"),
        ("--finish", "--round: is not given, and shares of a round must be of the same one; give its number"),
        ("--round 2 --shard 1/2 --finish", "--finish: puts together what all shares did; leave --shard out"),
        ("--undo 0 --shard 1/2", "--undo: drops rounds, shares and all; leave --shard and --finish out"),
        ("--undo 0 --finish", "--undo: drops rounds, shares and all; leave --shard and --finish out"),
    ],
)
def test_options_that_do_not_go_together(work, capsys, options, why):
    assert refused(f"relabel run {options}", capsys) == why
