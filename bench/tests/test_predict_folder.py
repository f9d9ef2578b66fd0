import json

import pytest

from bench.machine import ROOT
from bench.whole_volume.folder import CASES, GOAL, RECORD, measure, phantoms, same_bytes, summary, tiny_model, verdict
from bench.whole_volume.folder_process import STAGES
from smile_fast.data.phantom import PhantomOptions


def test_a_folder_is_measured_stage_by_stage_and_its_bytes_are_compared(tmp_path):
    scans = phantoms(tmp_path / "phantoms", PhantomOptions(train=3, test=0, size=64, slices=8))
    assert phantoms(tmp_path / "phantoms", PhantomOptions()) == scans  # made once
    seconds = measure(scans, tiny_model(tmp_path / "m.onnx"), tmp_path / "out", against=ROOT, rounds=1)
    assert set(seconds) == {"before", "after"} == {path.name for path in (tmp_path / "out").iterdir()}
    for found in seconds.values():
        assert {*STAGES, "folder", "folder, CPU", "inflate", "one volume alone", "labels to grid"} <= set(found)
        assert found["folder"]["median"] > 0
    alone = sorted((tmp_path / "out" / "after" / "alone").iterdir())
    assert len(alone) == 3
    assert same_bytes(tmp_path / "out" / "after")
    alone[0].write_bytes(alone[1].read_bytes())
    assert not same_bytes(tmp_path / "out" / "after")


def test_the_summary_is_median_and_minimum():
    rounds = [{"read": seconds} for seconds in (0.3, 0.1, 0.2)]
    assert summary(rounds) == {"read": {"median": 0.2, "minimum": 0.1}}


@pytest.mark.parametrize(
    ("wall", "cpu", "load", "expected"),
    [(0.2, 0.4, 9.0, "met"), (0.21, 0.3, 0.1, "missed"), (0.21, 0.3, 4.0, "not quiet"), (0.21, 0.41, 4.0, "missed")],
)
def test_the_verdict(wall, cpu, load, expected):
    after = {"folder": {"median": wall}, "folder, CPU": {"median": cpu}}
    assert verdict({"seconds a volume": {"after": after}, "load average before": load}) == expected


def test_the_record_does_not_miss_the_goal():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["scans"] == [CASES, 512, 512, 60]
    assert record["machine"]["threads"] == 2
    assert GOAL == pytest.approx(0.2)
    assert verdict(record) != "missed"
