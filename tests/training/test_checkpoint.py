import os
import pickle
import stat
import struct

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from smile_fast.training import checkpoint as module
from smile_fast.training.checkpoint import Checkpoint
from smile_runtime.errors import InputError
from tests.trainings import assert_same_bits


def example():
    return Checkpoint(
        {
            "model": {
                "conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
                "bn.num_batches_tracked": torch.tensor(7),
                "a/b": torch.tensor([float("nan"), -0.0, float("inf")]),
            },
            "optimizer": {"0.exp_avg": torch.zeros(2, dtype=torch.bfloat16), "0.step": torch.tensor(3.0)},
        },
        {"round": 1, "step": 12, "seconds": 3.25},
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    example_ = example()
    example_.save(path)
    return path, example_


def test_round_trip(saved):
    path, expected = saved
    found = Checkpoint.load(path)
    assert found.state == expected.state
    assert set(found.tensors) == {"model", "optimizer"}
    for group, tensors in found.tensors.items():
        assert_same_bits(dict(sorted(tensors.items())), dict(sorted(expected.tensors[group].items())))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_the_file_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        example().save(tmp_path / "c.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c.safetensors").stat().st_mode) == mode


def test_an_empty_group_is_no_group(tmp_path):
    Checkpoint({"model": {"w": torch.ones(1)}, "optimizer": {}}).save(tmp_path / "c.safetensors")
    found = Checkpoint.load(tmp_path / "c.safetensors")
    assert set(found.tensors) == {"model"}
    assert found.state == {}


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 400, -1])
def test_a_file_that_was_cut_off_is_damaged(saved, keep):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="damaged, it cannot be read as a checkpoint"):
        Checkpoint.load(path)


def test_a_header_that_lies_is_damaged(saved):
    path, _ = saved
    content = path.read_bytes()
    for length in (2**62, 2**31, 3):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        with pytest.raises(InputError, match="damaged"):
            Checkpoint.load(path)


def test_a_state_that_is_no_json_is_damaged(tmp_path):
    path = tmp_path / "c.safetensors"
    header = {"format": "smile-fast-checkpoint-1"}
    for changes in ({"state": "{"}, {}):
        save_file({"model/w": torch.ones(1)}, path, metadata={**header, **changes})
        with pytest.raises(InputError, match="damaged"):
            Checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "smile-fast-checkpoint-2", "state": "{}"}])
def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path, metadata):
    path = tmp_path / "c.safetensors"
    save_file({"conv1.weight": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(InputError, match="not a smile-fast checkpoint"):
        Checkpoint.load(path)


class Bomb:
    """Unpickling it raises."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a checkpoint was unpickled')",)


def test_nothing_is_ever_unpickled(tmp_path, saved):
    path = tmp_path / "pickle.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="damaged"):
        Checkpoint.load(path)
    torch.save({"model": torch.ones(1)}, path)
    with pytest.raises(InputError, match="damaged"):
        Checkpoint.load(path)
    content = saved[0].read_bytes()
    assert b"\x80\x04" != content[:2]
    assert content[8:9] == b"{"  # eight bytes of length, then JSON


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_file(tmp_path, kind):
    path = tmp_path / "c.safetensors"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(InputError, match="does not exist" if kind == "missing" else "damaged"):
        Checkpoint.load(path)


def test_a_full_disk_leaves_the_last_checkpoint(saved, monkeypatch):
    path, expected = saved
    before = path.read_bytes()

    def full(flat, temporary, metadata):
        temporary.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(InputError, match="no space left on device"):
        expected.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        example().save(tmp_path / "nowhere" / "c.safetensors")


def test_a_disk_that_fills_up_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr("smile_fast.training.checkpoint.save_file", full)
    with pytest.raises(InputError, match=r"c\.safetensors: cannot be written \(.*No space left"):
        Checkpoint({"model": {"w": torch.zeros(2)}}).save(tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []
