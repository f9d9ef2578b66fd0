"""`smile-fast verify RUN`: every file of a run is read, and a damaged one is named."""

import shutil

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.evaluation.verify import verify_run
from smile_runtime.label_map import PSEUDO_BIT
from tests.runs import add_metrics, add_round, make_run, make_store, truth

FILES = [
    "config.json",
    "environment.json",
    "annotations.csv",
    "metrics.jsonl",
    "evaluation.json",
    "model.safetensors",
    "rounds/1/round.json",
    "rounds/1/train_1-*.b2nd",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    store = make_store(folder / "store", dict.fromkeys(("train_0", "train_1", "test_0"), truth()))
    run = make_run(folder / "run", store, method="smiler")
    add_metrics(run)
    add_round(run, 1, {"train_1": np.where(truth() == 1, PSEUDO_BIT | 1, 0).astype(np.uint8)})
    assert main(["evaluate", str(run.path), "--no-surface", "--workers", "1"]) == 0
    return run.path


@pytest.fixture
def path(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_as_it_was_written(path, capsys):
    for name in (".tmp-0123.json", "rounds/1/.tmp-4.b2nd", ".evaluation.parts/0/.tmp-5.json", "rounds/.2.dropped/x"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    (path / "rounds" / ".3.unfinished" / "cases").mkdir(parents=True)
    assert main(["verify", str(path), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    left = ".evaluation.parts, .tmp-0123.json, rounds/.2.dropped, rounds/.3.unfinished, rounds/1/.tmp-4.b2nd"
    assert f"5 files that nothing names: {left}" in out
    assert out.endswith(": all as it was written\n")
    assert verify_run(path, workers=1).files == len(FILES) + 1  # and evaluation.csv


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(path, capsys, name):
    (file,) = path.glob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x80  # no letter, in a file of text
    file.write_bytes(content)
    assert main(["verify", str(path), "--workers", "1"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {file}")


def test_flipped_bits_of_what_carries_a_checksum(path):
    rng = np.random.default_rng(5)
    for name in [name for name in FILES if not name.endswith((".csv", ".jsonl"))]:
        (file,) = path.glob(name)
        content = file.read_bytes()
        for _ in range(10):
            flipped, position = bytearray(content), int(rng.integers(len(content)))
            flipped[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            assert [fault.partition(": ")[0] for fault in verify_run(path, workers=1).faults] == [str(file)], position
        file.write_bytes(content)
    assert verify_run(path, workers=1).faults == []


def test_an_overlay_that_is_gone_is_named(path):
    (file,) = path.glob("rounds/1/train_1-*.b2nd")
    file.unlink()
    assert verify_run(path, workers=1).faults == [f"{file}: there is no such file; run 'smile-fast relabel' again"]
