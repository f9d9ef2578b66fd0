"""Methods by name: what a comparison trains under each."""

import pytest

from smile_fast.training.presets import PRESETS
from smile_fast.training.schedule import Course


def test_smile_as_long_as_smiler_has_its_number_of_steps() -> None:
    options = {"epochs": 7.0, "rounds": 3, "round_share": 0.4}
    lengths = {name: Course(PRESETS[name].config(options), 10).length for name in ("smile", "smile-long", "smiler")}
    assert lengths["smile-long"] == lengths["smiler"] == pytest.approx(2.2 * lengths["smile"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_what_all_methods_share(name: str) -> None:
    config = PRESETS[name].config({"seed": 5, "width": 16, "lr": 0.01})
    assert (config.seed, config.model.width, config.lr) == (5, 16, 0.01)


def test_policies_of_the_presets() -> None:
    policies = {name: preset.config({}).policy for name, preset in PRESETS.items()}
    assert [name for name, policy in policies.items() if policy == name] == [
        "naive",
        "channel-drop",
        "no-epsilon",
        "smile",
    ]
