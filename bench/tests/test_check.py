import re

import pytest

from bench import __main__ as command
from bench import check
from bench.record import Figures, NoRecordError, read
from bench.tests.records import figures, record


def one(eager: tuple[float, float], copy: tuple[float, float] = (0.5, 0.5), name: str = "op/a") -> dict[str, Figures]:
    return {name: figures(name, {"ours": {"eager": eager, "copy": copy}})}


RECORDED = one((10.0, 10.0))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (one((10.0, 10.0)), []),
        (one((20.0, 20.0), (0.9, 0.9)), []),  # faster
        (one((8.1, 8.1), (0.41, 0.41)), []),  # 23% worse
        (one((7.9, 7.9), (0.39, 0.39)), ["op/a"]),  # 27% worse in all
        (one((7.0, 8.1), (0.35, 0.41)), []),  # the medians alone
        (one((8.1, 7.0), (0.41, 0.35)), []),  # the minima alone
        (one((7.0, 7.0), (0.5, 0.5)), []),  # eager got faster, and nobody else
        ({**one((1.0, 1.0), name="op/new")}, []),  # nothing to compare with
    ],
)
def test_worse_means_medians_and_minima_against_every_peer(measured: dict[str, Figures], expected: list[str]) -> None:
    assert check.worse(RECORDED, measured) == expected


def test_every_variant_of_ours_is_guarded() -> None:
    recorded = {"op/a": figures("op/a", {"ours": {"eager": (10, 10)}, "ours in place": {"eager": (20, 20)}})}
    measured = {"op/a": figures("op/a", {"ours": {"eager": (10, 10)}, "ours in place": {"eager": (10, 10)}})}
    assert check.worse(recorded, measured) == ["op/a"]


@pytest.mark.parametrize(("second", "passes"), [((10.0, 10.0), True), ((5.0, 5.0), False)])
def test_what_looks_worse_is_measured_once_more(second: tuple[float, float], passes: bool) -> None:
    runs = [one((5.0, 5.0), (0.2, 0.2)) | one((10.0, 10.0), name="op/b"), one(second, (second[0] / 20,) * 2)]
    asked: list[list[str]] = []

    def measure(names: list[str]) -> dict[str, Figures]:
        asked.append(names)
        return runs[len(asked) - 1]

    lines: list[str] = []
    recorded = RECORDED | one((10.0, 10.0), name="op/b")
    assert check.gate(recorded, ["op/a", "op/b", "op/c"], measure, lines.append) is passes
    assert asked == [["op/a", "op/b"], ["op/a"]]
    assert any(re.match("no record .*op/c", line) for line in lines)


def test_a_workload_that_cannot_be_measured_any_more_fails() -> None:
    assert not check.gate(RECORDED, ["op/a"], lambda names: {}, lambda line: None)


def test_nothing_recorded_has_its_own_exit_status(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.record, "path_of", lambda machine: tmp_path / "this-machine.json")  # type: ignore[operator]
    assert command.main(["check", "--select", "masked_bce"]) == command.NO_RECORD != command.WORSE
    assert "no record of this machine (this-machine.json): make bench writes it" in capsys.readouterr().err


def test_a_missing_file_is_no_record(tmp_path: object) -> None:
    with pytest.raises(NoRecordError):
        read(tmp_path / "none.json")  # type: ignore[operator]
    assert record()["benchmarks"] == []
