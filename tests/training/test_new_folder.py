"""A run folder appears whole or not at all, and nobody removes what is another's."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.data import folder_lock
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.training import new_folder as module
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.new_folder import is_unused, new_folder, remove_folder
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from tests.cohorts import tree
from tests.trainings import assert_same_bits, interrupted, new_run, tiny_store, trained, weights

LAST = "last"


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "a" / "new", LAST) as temporary:
        (temporary / "file").write_text("content")
        assert not (tmp_path / "a" / "new").exists()
        assert temporary.parent == tmp_path / "a"
    assert tree(tmp_path) == {"a/new/file": b"content"}


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fill():
        with new_folder(tmp_path / "new", LAST) as temporary:
            (temporary / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["nothing in it", "a lock that was left"])
def test_an_empty_folder_is_taken(tmp_path, there):
    (tmp_path / "real").mkdir()
    (tmp_path / "new").symlink_to("real")
    if there == "a lock that was left":
        (tmp_path / "real" / LOCK).touch()
    with new_folder(tmp_path / "new", LAST) as temporary:
        (temporary / "file").touch()
    assert tree(tmp_path) == {"real/file": b""}
    assert (tmp_path / "new").is_symlink()


def test_who_is_second_changes_nothing(tmp_path):
    """Two begin at once; the one that ends later finds the folder of the other."""

    def both():
        with new_folder(tmp_path / "new", LAST) as late:
            (late / "mine").touch()
            with new_folder(tmp_path / "new", LAST) as early:
                (early / "theirs").touch()

    with pytest.raises(InputError, match="new: another process has made it meanwhile; give a new folder"):
        both()
    assert tree(tmp_path) == {"new/theirs": b""}


def test_who_comes_while_another_writes_there_is_told_so(tmp_path):
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "new"), pytest.raises(InputError, match="another smile-fast process is at work there now"):
        with new_folder(tmp_path / "new", LAST):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path):
    child = os.fork()
    if child == 0:
        with new_folder(tmp_path / "new", LAST) as temporary:
            (temporary / "file").touch()
            os._exit(0)  # as a kill: nothing is tidied up
    os.waitpid(child, 0)
    assert len(hidden(tmp_path)) == 2  # the folder and its lock
    others = [".new.new-notes", f".other.new-{'0' * 16}"]
    for name in others:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "new", LAST) as alive:
        (alive / "alive").touch()
        assert len(hidden(tmp_path)) == 4
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new", LAST):
            raise KeyboardInterrupt
        assert (alive / "alive").exists()
    assert sorted(hidden(tmp_path)) == others


def test_a_folder_goes_whole(tmp_path, monkeypatch):
    """Whoever is cut short in the removal leaves no half of it, and the next start tidies up."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "run", LAST)
    assert not (tmp_path / "run").exists()
    with new_folder(tmp_path / "run", LAST):
        pass
    assert tree(tmp_path) == {}
    assert hidden(tmp_path) == []


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """A folder that stands for a mount point: nothing can be renamed to it, nor it to anything."""
    folder, rename = tmp_path / "mount", os.rename
    folder.mkdir()

    def refused(source, target):
        if folder in (Path(source), Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", refused)
    return folder


def test_a_mount_point_is_filled_in_place(mount):
    with new_folder(mount, LAST) as temporary:
        assert temporary.parent == mount
        (temporary / "file").write_text("content")
        (temporary / LAST).touch()
        assert len(list(mount.iterdir())) == 2  # hidden: that folder, and the lock
    assert tree(mount) == {"file": b"content", LAST: b""}
    assert hidden(mount) == []
    remove_folder(mount, LAST)
    assert list(mount.iterdir()) == []


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_what_a_kill_leaves_in_a_mount_point_is_nothing_and_goes(mount, moves):
    child = os.fork()
    if child == 0:
        rename, done = os.rename, []

        def killed(source, target):
            if Path(target).parent == mount and len(done) == moves:
                os._exit(0)
            rename(source, target)
            done.extend([1] * (Path(target).parent == mount))

        module.os.rename = killed
        with new_folder(mount, LAST) as temporary:
            for name in ("a", "b", LAST):
                (temporary / name).write_text("old")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert not (mount / LAST).exists()
    assert len([path for path in mount.iterdir() if path.name in ("a", "b")]) == moves
    assert is_unused(mount, LAST)
    (mount / "notes").touch()
    assert not is_unused(mount, LAST)
    (mount / "notes").unlink()
    with new_folder(mount, LAST) as temporary:
        (temporary / LAST).write_text("new")
    assert tree(mount) == {LAST: b"new"}
    assert hidden(mount) == []


def test_a_block_that_fails_leaves_nothing_in_a_mount_point(mount):
    def fill():
        with new_folder(mount, LAST) as temporary:
            (temporary / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(mount.iterdir()) == []


def test_a_run_in_a_mount_point_is_trained(tmp_path, mount):
    store = tiny_store(tmp_path / "store")
    run = trained(mount, store, epochs=0.2)
    assert_same_bits(weights(run), weights(trained(tmp_path / "other", store, epochs=0.2)))


def test_the_folder_that_one_is_in_is_filled_in_place(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path(), LAST) as temporary:
        (temporary / LAST).touch()
    assert [path.name for path in Path().iterdir()] == [LAST]


def test_a_run_with_start_weights_has_them_when_it_appears(tmp_path):
    store = tiny_store(tmp_path / "store")
    source = trained(tmp_path / "source", store, epochs=0.2, seed=4)
    run = new_run(tmp_path / "run", store, source.path, epochs=0.3, ema=0.9)
    start = Checkpoint.load(run.checkpoint_path)
    assert start.state["total_steps"] == 0
    for group in ("model", "average"):
        assert_same_bits(dict(sorted(start.tensors[group].items())), dict(sorted(weights(source).items())))
    assert not run.has_learned
    interrupted(run, 1, resume=True)
    assert run.has_learned
    assert Run.open(run.path).has_checkpoint


def test_bad_start_weights_leave_nothing_and_are_named(tmp_path):
    store = tiny_store(tmp_path / "store")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"w\.safetensors: cannot be read as a safetensors file"):
        new_run(tmp_path / "runs" / "run", store, tmp_path / "w.safetensors")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_second_train_into_one_folder_leaves_the_first_alone(tmp_path, capsys):
    """Whatever ends it: it is told so before it has made anything of its own."""
    store = tiny_store(tmp_path / "store")
    run = new_run(tmp_path / "run", store, epochs=0.2)  # and killed before its first step
    before = tree(run.path)
    assert main(["train", str(store.path), str(run.path), "--epochs", "0.2", "--device", "cpu"]) == 2
    assert f"error: {run.path}: holds a run already; give a new folder, or --resume to go on in it\n" == (
        capsys.readouterr().err
    )
    assert tree(run.path) == before
    assert main(["train", str(store.path), str(run.path), "--resume", "--device", "cpu"]) == 0


def test_a_prepare_waits_for_those_who_read_the_store(tmp_path, capsys, monkeypatch):
    """Also one on a disk that cannot be written, which knows no locks."""
    store = tiny_store(tmp_path / "store")
    run = trained(tmp_path / "run", store, epochs=0.2)
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.0)  # they wait for it, too
    with locked(store.path):
        assert main(["audit", str(store.path)]) == 2
        assert f"{store.path}: another smile-fast process is at work there now" in capsys.readouterr().err
        for command in ("evaluate {} --no-surface", "relabel {} --gamma 0.5", "export {} m.onnx", "report {}"):
            assert main(command.replace("{}", str(run.path)).split()) == 2
            assert f"{store.path}: another smile-fast process is at work there now" in capsys.readouterr().err
        assert main(["train", str(store.path), str(tmp_path / "new"), "--epochs", "0.1"]) == 2
        assert not (tmp_path / "new").exists()
    shutil.copytree(store.path, tmp_path / "moved")
    (tmp_path / "moved" / LOCK).mkdir()  # stands for a mount without locks: it cannot be opened for writing
    assert main(["evaluate", str(run.path), "--no-surface", "--store", str(tmp_path / "moved")]) == 0
