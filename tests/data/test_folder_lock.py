"""One writer a folder, with real processes: the kernel holds the lock and lets go of it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from smile_fast.data import folder_lock
from smile_fast.data.folder_lock import LOCK, joined, leave_lock, locked, reading, shared
from smile_runtime.errors import InputError

HOLDER = """
    import sys
    from pathlib import Path
    from smile_fast.data.folder_lock import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
    print("released", flush=True)
"""


JOINER = """
    import sys
    from pathlib import Path
    from smile_fast.data.folder_lock import joined
    with joined(Path(sys.argv[1]), "work", sys.argv[2], "refused"):
        print("held", flush=True)
        sys.stdin.read()
    print("released", flush=True)
"""


@contextmanager
def another_process(folder: Path, script: str = HOLDER, *work: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder until its input ends."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), *work]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_so(tmp_path):
    with another_process(tmp_path) as process:
        for _ in range(2):  # the refusal takes nothing away
            with pytest.raises(InputError) as caught, locked(tmp_path):
                pytest.fail("both write")
            assert str(caught.value) == (
                f"{tmp_path}: another smile-fast process is at work there now; wait until it has ended, or give "
                "another folder"
            )
        process.stdin.close()
        assert process.stdout.readline() == "released\n"
        assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_never_in_the_way(tmp_path):
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert (tmp_path / LOCK).exists()
    with locked(tmp_path), pytest.raises(InputError, match="another smile-fast process"), locked(tmp_path):
        pytest.fail("both write")
    assert list(tmp_path.iterdir()) == []


def test_folders_have_locks_of_their_own(tmp_path):
    with ExitStack() as held:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            held.enter_context(locked(tmp_path / name))
        assert len(list(tmp_path.rglob(LOCK))) == 2


def test_the_lock_goes_when_the_work_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_removed_meanwhile_is_no_error(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / LOCK).unlink()
        (tmp_path / "run").rmdir()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_last_owner_removes_is_not_the_lock(tmp_path, monkeypatch):
    """Between opening and locking the last owner ends: the open file is locked then, but stands nowhere any more."""
    real, inodes = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        inodes.append(os.fstat(descriptor).st_ino)
        if len(inodes) == 1:
            (tmp_path / LOCK).unlink()
        if len(inodes) == 2:
            (tmp_path / LOCK).rename(tmp_path / "other")  # and once more, with a file of another in its place
            (tmp_path / LOCK).touch()

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(inodes) == 3
        assert (tmp_path / LOCK).stat().st_ino == inodes[2]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_does_without(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path), locked(tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_folder_that_cannot_be_written_says_so_itself(tmp_path, monkeypatch, number):
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with locked(tmp_path):
            assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_readers_who_cannot_write_share_the_lock_that_is_there(tmp_path, monkeypatch, number):
    real = os.open

    def refuse(path, flags, *mode):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *mode)

    def read_only(lock):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            return held.enter_context(lock)

    with ExitStack() as held:
        assert not read_only(shared(tmp_path))  # there is none, and none can be made
    leave_lock(tmp_path)
    with ExitStack() as held:
        assert read_only(shared(tmp_path))
        assert read_only(reading(tmp_path))
        with pytest.raises(InputError, match="another smile-fast process"), locked(tmp_path, stays=True):
            pytest.fail("it is swept while it is read")
        assert not read_only(locked(tmp_path))  # who wants it for himself has to be able to write
    assert (tmp_path / LOCK).exists()


def test_a_lock_that_stays(tmp_path):
    with locked(tmp_path, stays=True), pytest.raises(InputError, match="another smile-fast process"), shared(tmp_path):
        pytest.fail("both are at it")
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_readers_wait_for_a_sweep(tmp_path, monkeypatch):
    """Its lock is let go while the reader waits; each wait ends at once here."""
    naps = []
    with ExitStack() as sweep:
        sweep.enter_context(locked(tmp_path, stays=True))

        def sleep(seconds):
            naps.append(seconds)
            if len(naps) == 3:
                sweep.close()

        monkeypatch.setattr(time, "sleep", sleep)
        with reading(tmp_path) as there:
            assert there
            assert len(naps) == 3
            with pytest.raises(InputError, match="another smile-fast process"), locked(tmp_path):
                pytest.fail("it is swept while it is read")


def test_readers_do_not_wait_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.0)
    with locked(tmp_path), pytest.raises(InputError, match="another smile-fast process"), reading(tmp_path):
        pytest.fail("both are at it")


def test_processes_join_the_same_work_and_the_last_one_knows(tmp_path):
    with another_process(tmp_path, JOINER, "bake") as process:
        with joined(tmp_path, "work", "bake", "refused") as leave:
            assert (tmp_path / "work").read_text() == "bake"
            assert not leave()  # the other one is at it
        with pytest.raises(InputError, match=r"^refused$"), joined(tmp_path, "work", "cook", "refused"):
            pytest.fail("both work")
        process.stdin.close()
        assert process.stdout.readline() == "released\n"
    assert list(tmp_path.iterdir()) == []
    with joined(tmp_path, "work", "cook", "refused") as leave, joined(tmp_path, "work", "cook", "refused") as other:
        assert not other()
        assert leave()
        assert leave()
    assert list(tmp_path.iterdir()) == []


def test_work_of_a_killed_process_is_in_nobodys_way(tmp_path):
    with another_process(tmp_path, JOINER, "bake") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "work").read_text() == "bake"
    with joined(tmp_path, "work", "cook", "refused") as leave:
        assert (tmp_path / "work").read_text() == "cook"
        assert leave()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nobody_is_the_last(tmp_path, monkeypatch):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with joined(tmp_path, "work", "bake", "refused") as leave, joined(tmp_path, "work", "cook", "refused"):
        assert not leave()
    assert list(tmp_path.iterdir()) == []
