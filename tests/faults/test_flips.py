"""Single flipped bits in the files of a run, and JSON of another shape: an error that names the file, or no difference.

`verify` finds what is found; a training, an evaluation or an export opens the same files by the same functions.
"""

import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smile_fast.cli.main import main
from smile_fast.records import write_record
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.run import Run
from smile_fast.training.run_record import CONFIG, ENVIRONMENT, read_config, read_environment
from smile_runtime.errors import InputError
from tests.trainings import interrupted, new_run, tiny_store, trained

_SLOW = int(os.environ.get("SMILE_FAST_FLIPS", "1200"))
_QUICK = 240
FILES = ("checkpoint.safetensors", "checkpoint.previous.safetensors", "model.safetensors", CONFIG, ENVIRONMENT)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("flips")
    found = trained(folder / "run", tiny_store(folder / "store"), method="smiler", epochs=0.2, rounds=1, ema=0.9)
    torch.set_num_threads(threads)
    return found


def content(path: Path) -> Any:
    """What the program takes from a file, to be compared by its bytes."""
    if path.name == CONFIG:
        run = Run.open(path.parent)
        return run.config, run.store_path, run.splits, run.sources, read_config(path.parent).weights
    if path.name == ENVIRONMENT:
        return read_environment(path.parent)
    checkpoint = Checkpoint.load(path)
    return checkpoint.state, {
        f"{group}/{name}": (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for group, tensors in checkpoint.tensors.items()
        for name, tensor in tensors.items()
    }


def outcome(path: Path) -> Any:
    """The content, or the error of a file that says that it cannot be used."""
    try:
        return content(path)
    except InputError as error:
        return error


def flip(path: Path, draw: random.Random, count: int) -> int:
    """Flip bits of a file, one at a time; returns how many were detected, all others made no difference."""
    before, wanted, detected = path.read_bytes(), content(path), 0
    header = 8 + int.from_bytes(before[:8], "little") if path.suffix == ".safetensors" else len(before)
    try:
        for number in range(count):
            place = draw.randrange(header if number % 2 else len(before))  # half of them where the names stand
            changed = bytearray(before)
            changed[place] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            found = outcome(path)
            if isinstance(found, InputError):
                assert str(path) in str(found)
                detected += 1
            else:
                assert found == wanted, f"{path}: byte {place}"
    finally:
        path.write_bytes(before)
    return detected


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_detected_or_harmless(run, file):
    count = _QUICK // len(FILES)
    assert flip(run.path / file, random.Random(file), count) > 0.9 * count


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_many_flipped_bits_are_detected_or_harmless(run, file):
    count = _SLOW // len(FILES)
    assert flip(run.path / file, random.Random(f"many {file}"), count) > 0.9 * count


def test_nobody_works_with_a_flipped_bit(run, capsys):
    """Every command that reads the final weights says so, and so does verify."""
    before = run.model_path.read_bytes()
    run.model_path.write_bytes(before[:-9] + bytes([before[-9] ^ 4]) + before[-8:])
    try:
        for command in ("evaluate {} --device cpu", "relabel {} --gamma 0.5", "export {} {}/m.onnx", "verify {}"):
            assert main(command.replace("{}", str(run.path)).split()) == 2
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(said) == 1
            assert f"{run.model_path}: damaged, it cannot be read as a checkpoint (it has not the checksum" in said[0]
    finally:
        run.model_path.write_bytes(before)
    assert main(["verify", str(run.path)]) == 0


def test_a_training_goes_on_from_the_checkpoint_before(run, capsys, tmp_path):
    """With a warning, to the same bits; with both damaged it is one sentence."""
    store = tiny_store(tmp_path / "store")
    expected = trained(tmp_path / "expected", store, epochs=0.6, ema=0.9)
    stopped = new_run(tmp_path / "stopped", store, epochs=0.6, ema=0.9)
    interrupted(stopped, 2)
    interrupted(stopped, 2, resume=True)
    newest, before = stopped.checkpoint_path, stopped.previous_path
    assert [Checkpoint.load(path).state["total_steps"] for path in (newest, before)] == [4, 2]
    whole = before.read_bytes()
    newest.write_bytes(newest.read_bytes()[:-1])
    before.write_bytes(b"x" + whole[1:])
    command = ["train", str(store.path), str(stopped.path), "--resume", "--device", "cpu"]
    assert main(command) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "nor can checkpoint.previous.safetensors" in said
    before.write_bytes(whole)
    assert main(command) == 0
    assert f"warning: {newest}: damaged or missing; the training goes on from the one before" in capsys.readouterr().err
    assert stopped.model_path.read_bytes() == expected.model_path.read_bytes()


def positions(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands in a JSON object, all of them."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from positions(value, (*path, key))


WRONG: list[Any] = [None, True, -1, 0.5, 2**70, 1e300, "", "\x00\ud7ff", [], [[]], {}, {"": None}, [None, 1, "x"]]
NESTED = "[" * 400 + "]" * 400


def mutations(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value replaced by one of each other kind, or gone."""
    for path in positions(record):
        for wrong in (*WRONG, json.loads(NESTED), KeyError):
            changed = copy.deepcopy(record)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if wrong is KeyError:
                del parent[path[-1]]
            else:
                parent[path[-1]] = wrong
            yield f"{path}: {str(wrong)[:20]}", changed


VERIFY = ("verify {} --workers 1",)
READERS = {CONFIG: (*VERIFY, "evaluate {} --no-surface --workers 1 --device cpu"), ENVIRONMENT: VERIFY}


@pytest.mark.parametrize(("file", "count"), [(CONFIG, 160), (ENVIRONMENT, 120)])
def test_json_of_another_shape_is_one_sentence(run, file, count, capsys):
    check_mutations(run, file, count, capsys)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("file", [CONFIG, ENVIRONMENT])
def test_json_of_every_other_shape_is_one_sentence(run, file, capsys):
    check_mutations(run, file, None, capsys)


def check_mutations(run: Run, file: str, count: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Sealed again, as only a program could do it: the record is refused, or what it says can be used."""
    path = run.path / file
    before = path.read_bytes()
    record = json.loads(before)
    del record["sha256"]
    every = list(mutations(record))
    try:
        for label, changed in every if count is None else random.Random(file).sample(every, count):
            write_record(path, changed)
            for command in READERS[file]:
                status = main(command.format(run.path).split())
                said = capsys.readouterr()
                errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
                assert (status, len(errors)) in ((0, 0), (2, 1)), f"{label}: {command} {status} {errors}"
                assert "Traceback" not in said.err + said.out, label
    finally:
        path.write_bytes(before)
