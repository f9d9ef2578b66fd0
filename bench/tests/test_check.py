import re

import pytest

from bench import __main__ as command
from bench import check
from bench.records import Figures, NoRecordError, read
from bench.tests.synthetic import figures


def one(
    eager: tuple[float, float],
    copy: tuple[float, float] = (0.5, 0.5),
    compiled: tuple[float, float] = (4.0, 4.0),
    name: str = "op/a",
) -> dict[str, Figures]:
    return {name: figures(name, {"ours": {"eager": eager, "copy": copy, "compile": compiled}})}


RECORDED = one((10.0, 10.0))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (one((10.0, 10.0)), []),
        (one((20.0, 20.0), (0.9, 0.9), (7.0, 7.0)), []),  # faster
        (one((8.1, 8.1), (0.41, 0.41), (3.3, 3.3)), []),  # 23% worse
        (one((7.9, 7.9), (0.39, 0.39), (3.1, 3.1)), ["op/a"]),  # 27% worse in all
        (one((7.0, 8.1), (0.35, 0.41), (2.8, 3.3)), []),  # the medians alone
        (one((8.1, 7.0), (0.41, 0.35), (3.3, 2.8)), []),  # the minima alone
        (one((3.0, 3.0), (0.5, 0.5)), []),  # eager got much faster, and nothing else
        (one((7.0, 7.0), (0.35, 0.35), (9.0, 9.0)), ["op/a"]),  # a peer that got slower hides nothing
        (one((10.0, 10.0), (0.1, 0.1), (4.0, 1.0)), []),  # one peer is noise
        ({**one((1.0, 1.0), name="op/new")}, []),  # nothing to compare with
    ],
)
def test_worse_means_medians_and_minima_against_the_median_peer(
    measured: dict[str, Figures], expected: list[str]
) -> None:
    assert check.worse(RECORDED, measured) == expected


def test_every_variant_of_ours_is_guarded() -> None:
    recorded = {"op/a": figures("op/a", {"ours": {"eager": (10, 10)}, "ours in place": {"eager": (20, 20)}})}
    measured = {"op/a": figures("op/a", {"ours": {"eager": (10, 10)}, "ours in place": {"eager": (10, 10)}})}
    assert check.worse(recorded, measured) == ["op/a"]


@pytest.mark.parametrize(("second", "passes"), [((10.0, 10.0), True), ((5.0, 5.0), False)])
def test_what_looks_worse_is_measured_once_more(second: tuple[float, float], passes: bool) -> None:
    runs = [
        one((5.0, 5.0), (0.2, 0.2), (2.0, 2.0)) | one((10.0, 10.0), name="op/b"),
        one(second, (second[0] / 20,) * 2),
    ]
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


@pytest.mark.parametrize(
    "kept", [{"ours": {"eager": (10, 10)}}, {"ours": {"eager": (10, 10)}, "in place": {"b": (1, 1)}}]
)
def test_a_variant_that_cannot_be_compared_any_more_fails(kept: dict[str, dict[str, tuple[float, float]]]) -> None:
    recorded = {"op/a": figures("op/a", {"ours": {"eager": (10, 10)}, "in place": {"eager": (20, 20)}})}
    lines: list[str] = []
    assert not check.gate(recorded, ["op/a"], lambda names: {"op/a": figures("op/a", kept)}, lines.append)
    assert [line for line in lines if line.startswith("gone")] == [
        "gone         op/a, in place: recorded, but it cannot be measured any more"
    ]
    assert lines[-1] == "1 compared, 0 worse by more than 1.25, 1 gone"


def test_nothing_recorded_has_its_own_exit_status(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.records, "path_of", lambda machine: tmp_path / "this-machine.jsonl")  # type: ignore[operator]
    assert command.main(["check", "--select", "masked_bce"]) == command.NO_RECORD != command.WORSE
    assert (
        "error: this-machine.jsonl: there is no record of this machine; make bench writes it" in capsys.readouterr().err
    )


def test_a_missing_file_is_no_record(tmp_path: object) -> None:
    with pytest.raises(NoRecordError):
        read(tmp_path / "none.jsonl")  # type: ignore[operator]
