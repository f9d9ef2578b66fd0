"""A run folder appears whole or not at all, and nobody removes what is another's."""

import os
import shutil
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.data import folder_lock
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.training import new_folder as module
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.new_folder import new_folder, remove_folder
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from tests.cohorts import tree
from tests.trainings import assert_same_bits, interrupted, new_run, tiny_store, trained, weights


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "a" / "new") as temporary:
        (temporary / "file").write_text("content")
        assert not (tmp_path / "a" / "new").exists()
        assert temporary.parent == tmp_path / "a"
    assert tree(tmp_path) == {"a/new/file": b"content"}


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fill():
        with new_folder(tmp_path / "new") as temporary:
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
    with new_folder(tmp_path / "new") as temporary:
        (temporary / "file").touch()
    assert tree(tmp_path) == {"real/file": b""}
    assert (tmp_path / "new").is_symlink()


def test_who_is_second_changes_nothing(tmp_path):
    """Two begin at once; the one that ends later finds the folder of the other."""

    def both():
        with new_folder(tmp_path / "new") as late:
            (late / "mine").touch()
            with new_folder(tmp_path / "new") as early:
                (early / "theirs").touch()

    with pytest.raises(InputError, match="new: another process has made it meanwhile; give a new folder"):
        both()
    assert tree(tmp_path) == {"new/theirs": b""}


def test_who_comes_while_another_writes_there_is_told_so(tmp_path):
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "new"), pytest.raises(InputError, match="another smile-fast process is at work there now"):
        with new_folder(tmp_path / "new"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path):
    child = os.fork()
    if child == 0:
        with new_folder(tmp_path / "new") as temporary:
            (temporary / "file").touch()
            os._exit(0)  # as a kill: nothing is tidied up
    os.waitpid(child, 0)
    assert len(hidden(tmp_path)) == 2  # the folder and its lock
    (tmp_path / ".other.new-0").mkdir()
    with new_folder(tmp_path / "new") as alive:
        (alive / "alive").touch()
        assert len(hidden(tmp_path)) == 3
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new"):
            raise KeyboardInterrupt
        assert (alive / "alive").exists()
    assert hidden(tmp_path) == [".other.new-0"]


def test_a_folder_goes_whole(tmp_path, monkeypatch):
    """Whoever is cut short in the removal leaves no half of it, and the next start tidies up."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with new_folder(tmp_path / "run"):
        pass
    assert tree(tmp_path) == {}
    assert hidden(tmp_path) == []


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
