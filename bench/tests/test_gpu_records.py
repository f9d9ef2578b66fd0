"""Records of GPUs: one JSON object, written line by line as a difference shows it, and checked when it is read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import BROKEN, main
from bench.comparison import OURS
from bench.ops.names import EAGER
from bench.records import BrokenRecordError, Record, commits, gpus, path_of, read, recorded, write
from bench.tests.synthetic import GPU, figures, record

STEP = {"passed": True, "seconds": 1.5, "tail": ["a line"], "commit": "abc", "dirty": False}


def gpu(**steps: dict[str, Any]) -> Record:
    one = figures("op/a", {OURS: {EAGER: (2, 3)}}) | {"costs": {"bytes": 3.0}}
    return replace(record(one, figures("op/b", {})), machine=GPU, steps=steps)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = path_of(GPU, tmp_path)
    assert path.name == "nvidia-some-gpu.json"
    for run in (gpu(build=STEP), gpu()):
        write(run, path)
        assert read(path) == run


def test_every_benchmark_has_a_line(tmp_path: Path) -> None:
    path = path_of(GPU, tmp_path)
    write(gpu(build=STEP, tests=STEP), path)
    lines = path.read_text().splitlines()
    for name in ("build", "tests", "op/a", "op/b"):
        assert sum(line.startswith(f'  "{name}": {{') for line in lines) == 1
    assert list(json.loads(path.read_text())) == ["format", "machine", "datetime", "steps", "benchmarks"]


def test_other_tables_beside_it_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"machine": {"cpu": "one"}}')
    write(gpu(), path_of(GPU, tmp_path))
    assert list(recorded(tmp_path)) == list(gpus(tmp_path)) == ["nvidia-some-gpu"]


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = json.loads(
        json.dumps(
            {
                "format": "GPU record, 1",
                "machine": GPU,
                "datetime": "2026-01-01T00:00:00+00:00",
                "steps": {"build": STEP},
                "benchmarks": gpu().benchmarks,
            }
        )
    )
    change(content)
    return content  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(format="GPU record, 2"), "is no record of the format 'GPU record, 1'"),
        (lambda content: content.pop("steps"), "steps is missing"),
        (lambda content: content["machine"].pop("gpu"), "machine does not name a GPU"),
        (lambda content: content.update(datetime="then"), "datetime 'then' is no date"),
        (lambda content: content["steps"]["build"].pop("passed"), "step 'build' does not say whether it passed"),
        (lambda content: content["benchmarks"]["op/a"].update(name="op/c"), "op/a: goes by another name"),
        (lambda content: content["benchmarks"]["op/a"].pop("errors"), "op/a: errors is missing"),
        (lambda content: content["benchmarks"]["op/b"].pop("commit"), "op/b: does not say at which commit"),
        (lambda content: content["benchmarks"]["op/a"]["milliseconds"][OURS].pop("median"), "time of 'ours' is no"),
        (lambda content: content["benchmarks"]["op/a"]["milliseconds"][OURS].update(median=0), "time of 'ours' is no"),
        (lambda content: content["benchmarks"]["op/a"]["milliseconds"].pop(EAGER), "'eager' has a ratio and no time"),
        (lambda content: content["benchmarks"]["op/a"]["costs"].update(bytes="3"), "'bytes' is no number"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(broken(lambda content: None)))
    read(path)
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(BrokenRecordError, match="take it from git again, or measure again") as raised:
        read(path)
    assert f"{path}: " in str(raised.value)
    assert said in str(raised.value)


def test_a_broken_record_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.records.ranked", lambda **_: [(path.stem, read(path))])
    for name, text in (("cut.json", '{"format": "GPU record'), ("cut.jsonl", '{"machine')):
        path = tmp_path / name
        path.write_text(text)
        assert main(["goals"]) == BROKEN
        assert f"error: {path}: is no JSON" in capsys.readouterr().err


def test_what_was_changed_since_the_commit_is_said() -> None:
    changed = figures("op/a", {}) | {"dirty": True, "changes": "two repairs"}
    assert commits([changed, figures("op/b", {})]) == "commit abc; commit abc, with two repairs"
