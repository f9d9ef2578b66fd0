import json
import os
import pickle
import stat
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    for about in ({"state": "{", "sha256": ""}, {"state": 3, "sha256": 4}, {"state": "{}"}, {}):
        header = {"smile-fast": json.dumps({"format": "smile-fast-checkpoint-2", **about})}
        save_file({"model/w": torch.ones(1)}, path, metadata=header)
        with pytest.raises(InputError, match="damaged"):
            Checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "smile-fast-checkpoint-7", "state": "{}"}])
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

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left on device"):
        expected.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        example().save(tmp_path / "nowhere" / "c.safetensors")


def test_an_older_file_without_a_checksum_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"model/w": torch.ones(1)}, path, metadata={"format": "smile-fast-checkpoint-1", "state": "{}"})
    assert Checkpoint.is_one(path)
    with pytest.raises(InputError, match="by an older smile-fast, without a checksum; train again, or use the smile-"):
        Checkpoint.load(path)


def test_the_same_checkpoint_is_the_same_file_whatever_the_order(tmp_path):
    torch.manual_seed(3)
    one = example()
    other = Checkpoint(
        {group: dict(reversed(tensors.items())) for group, tensors in reversed(one.tensors.items())}, one.state
    )
    for name, checkpoint in (("one", one), ("other", other)):
        checkpoint.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    found = load_file(tmp_path / "one")  # any program that knows safetensors reads it
    wanted = {f"{group}/{name}": tensor for group, tensors in one.tensors.items() for name, tensor in tensors.items()}
    assert_same_bits(dict(sorted(found.items())), dict(sorted(wanted.items())))


def test_a_flipped_bit_is_noticed_wherever_it_is(saved):
    """Or is harmless: of the header some spaces may change, of which nothing depends."""
    path, expected = saved
    content = path.read_bytes()
    noticed = 0
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = Checkpoint.load(path)
        except InputError:
            noticed += 1
        else:
            assert found.state == expected.state
            for group, tensors in found.tensors.items():
                assert_same_bits(dict(sorted(tensors.items())), dict(sorted(expected.tensors[group].items())))
    assert noticed > 8 * len(content) * 0.97


@pytest.fixture
def kept(tmp_path):
    """Two checkpoints of one training, the second saved after the first."""
    paths = tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint.previous.safetensors"
    for step in (1, 2):
        Checkpoint({"model": {"w": torch.full((3,), step)}}, {"step": step}).save(paths[0], before=paths[1])
    return paths


def test_the_checkpoint_before_is_kept(kept):
    path, before = kept
    assert [Checkpoint.load(each).state for each in (path, before)] == [{"step": 2}, {"step": 1}]
    assert sorted(path.parent.iterdir()) == sorted(kept)
    assert Checkpoint.load_newest(path, before)[1] == path


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "foreign"])
def test_a_damaged_checkpoint_leaves_the_one_before(kept, damage):
    path, before = kept
    content = path.read_bytes()
    path.unlink()
    if damage == "foreign":
        save_file({"w": torch.ones(1)}, path)
    elif damage != "missing":
        path.write_bytes(content[:100] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    found, where = Checkpoint.load_newest(path, before)
    assert (found.state, where) == ({"step": 1}, before)
    before.write_bytes(before.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"checkpoint.safetensors: .* nor can checkpoint.previous.safetensors"):
        Checkpoint.load_newest(path, before)


def test_without_links_the_checkpoint_before_is_kept_as_well(kept, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    path, before = kept
    Checkpoint({"model": {"w": torch.ones(3)}}, {"step": 3}).save(path, before=before)
    assert [Checkpoint.load(each).state for each in (path, before)] == [{"step": 3}, {"step": 2}]
    assert sorted(path.parent.iterdir()) == sorted(kept)
