"""Methods by name: what a comparison trains under each."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from smile_fast.cli.main import main
from smile_fast.training.presets import PRESETS
from smile_fast.training.schedule import Course

README = Path(__file__).parents[2] / "README.md"


def test_smile_as_long_as_smiler_has_its_number_of_steps() -> None:
    options = {"epochs": 7.0, "rounds": 3, "round_share": 0.4}
    lengths = {
        name: Course(PRESETS[name].config(options), 10).length
        for name in ("smile", "smile-long", "smiler", "smiler-plain", "fill")
    }
    once = lengths.pop("smile")
    assert list(lengths.values()) == pytest.approx([2.2 * once] * 4)


def test_published_smiler_has_no_brakes() -> None:
    """Whatever brakes there are, and whatever the options of the comparison say of them."""
    options = {"negatives": 0.5, "limit_volume": True, "one_component": True, "limit_slices": True, "stop": True}
    options |= {"score": "confidence", "calibrate": True}
    brakes = asdict(PRESETS["smiler-plain"].config(options).brakes)
    del brakes["growth"], brakes["stop_tolerance"]  # of the warning alone without a stop, and of the stop
    assert brakes.pop("score") == "probability"
    assert not any(brakes.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_what_all_methods_share(name: str) -> None:
    brakes = {"stop": True, "score": "confidence"}  # of methods with rounds, and yet all methods are given them
    config = PRESETS[name].config({"seed": 5, "width": 16, "lr": 0.01, **brakes})
    assert (config.seed, config.model.width, config.lr) == (5, 16, 0.01)


def test_policies_of_the_presets() -> None:
    policies = {name: preset.config({}).policy for name, preset in PRESETS.items()}
    assert [name for name, policy in policies.items() if policy == name] == [
        "naive",
        "channel-drop",
        "no-epsilon",
        "smile",
    ]


def test_every_method_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line of the sweep's help and of the README; the longer training of a method stands beside it."""
    assert main(["sweep", "--help"]) == 0
    said, readme = capsys.readouterr().out.splitlines(), README.read_text(encoding="utf-8")
    lines = {each.line: [name for name in PRESETS if PRESETS[name].line == each.line] for each in PRESETS.values()}
    assert all(set(names) <= {names[0], f"{names[0]}-long"} for names in lines.values())
    for line, names in lines.items():
        assert [each.split("  ")[1] for each in said if each.endswith(f"  {line}")] == [", ".join(names)]
        assert f"| {', '.join(f'`{name}`' for name in names)} | {line} |\n" in readme


def test_methods_are_compared_at_equal_steps() -> None:
    """Every method without rounds has a twin that differs from it by its length alone."""
    options = {"epochs": 10.0, "rounds": 3, "round_share": 0.4}
    for name in ("baseline", "marginal", "naive", "channel-drop", "no-epsilon", "smile", "full"):
        short, long = (PRESETS[each].config(options) for each in (name, f"{name}-long"))
        assert replace(short, epochs=22.0) == long
        assert PRESETS[name].all_annotations == PRESETS[f"{name}-long"].all_annotations
