"""A merge or an import that is killed, or whose disk fails, leaves the inputs as they are and nothing half-visible."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from smile_fast.cli.main import main
from tests.cohorts import annotate, make_cohort, tree
from tests.data.importing.layouts import write_case
from tests.data.importing.test_merge import reseed

# Of the slow test, over all places from the first to the last; a second or two each.
_KILLS = int(os.environ.get("SMILE_FAST_KILLS", "25"))

# The n-th call that changes a name or flushes is the last one: the kernel ends the process, as `kill -9` does.
_DRIVER = """
import os, signal, sys
from smile_fast.cli.main import main
left = int(sys.argv[1])
def watched(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
for name in ("replace", "rename", "link", "symlink", "fsync", "unlink", "mkdir"):
    setattr(os, name, watched(getattr(os, name)))
status = main(sys.argv[2:])
print("calls", int(sys.argv[1]) - left)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for shift, name in enumerate("ab"):
        part = make_cohort(folder / name, train=1, test=1, organs=("spleen", "liver")[: 1 + shift])
        reseed(part, shift)
        annotate(part, organs=("spleen", "liver")[: 1 + shift])
    write_case(folder / "masks", "p1")
    write_case(folder / "masks", "p2")
    return folder


def commands(inputs, out):
    options = ["--workers", "1"]
    return {
        "merge": ["merge", str(inputs / "b"), str(inputs / "a"), str(out), *options],
        "import": ["import", str(inputs / "masks"), str(out), *options],
    }


def killed(inputs, folder, command, place):
    arguments = [sys.executable, "-c", _DRIVER, str(place), *commands(inputs, folder / "out")[command]]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def check_kills(inputs, tmp_path, command, places):
    before = tree(inputs)
    whole = tmp_path / "whole" / "out"
    whole.parent.mkdir()
    assert main(commands(inputs, whole)[command]) == 0
    died = 0
    for place in places:
        folder = tmp_path / str(place)
        folder.mkdir()
        ended = killed(inputs, folder, command, place)
        died += ended.returncode == -signal.SIGKILL
        if (folder / "out").exists():
            assert tree(folder / "out") == tree(whole)
        assert main(commands(inputs, folder / "out")[command]) == 0
        assert tree(folder / "out") == tree(whole)
        assert [path.name for path in folder.iterdir()] == ["out"]
        assert tree(inputs) == before
        shutil.rmtree(folder)
    return died


@pytest.mark.parametrize("command", ["merge", "import"])
def test_killed_anywhere_the_same_command_goes_on(inputs, tmp_path, command):
    assert check_kills(inputs, tmp_path, command, (2, 5, 9, 14)) == 4


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("command", ["merge", "import"])
def test_killed_at_many_places(inputs, tmp_path, command):
    (tmp_path / "counted").mkdir()
    counted = killed(inputs, tmp_path / "counted", command, 10**6)
    calls = int(counted.stdout.split()[-1])
    assert calls > _KILLS
    places = sorted({round(number * calls / _KILLS) for number in range(1, _KILLS + 1)})
    assert check_kills(inputs, tmp_path, command, places) == len(places)


@pytest.mark.parametrize(("command", "code"), [("merge", errno.EIO), ("import", errno.ENOSPC)])
def test_a_disk_that_fails_at_any_write(inputs, tmp_path, command, code, monkeypatch, capsys):
    before = tree(inputs)
    real = os.fsync
    for place in range(1, 40):
        calls = 0

        def failing(descriptor, place=place):
            nonlocal calls
            calls += 1
            if calls == place:
                raise OSError(code, os.strerror(code))
            return real(descriptor)

        out = tmp_path / f"{place}"
        monkeypatch.setattr(os, "fsync", failing)
        status = main(commands(inputs, out)[command])
        monkeypatch.setattr(os, "fsync", real)
        error = capsys.readouterr().err
        if calls < place:
            assert status == 0
            break
        assert status == 2
        assert error.splitlines()[-1].startswith("error: ")
        if place % 5 == 1:
            assert main(commands(inputs, out)[command]) == 0
    assert place > 8
    assert tree(inputs) == before
