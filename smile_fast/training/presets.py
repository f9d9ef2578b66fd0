"""Methods by name, for comparisons under one trainer: what each of them sets, and how long it trains."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from smile_fast.training.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """A method of a comparison.

    Attributes:
        settings: those of `TrainConfig` in which it differs from the others.
        as_long_as_smiler: its training has as many steps as that of SMILEr with all rounds.
        filled_by: the method whose network, of the same cell, labels the missing organs before the training; that
            network is there already, as in practice, and its steps are not counted.
        all_annotations: nothing is hidden from it, whatever the share of missing annotations is.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    as_long_as_smiler: bool = False
    all_annotations: bool = False
    filled_by: str = ""

    def config(self, options: Mapping[str, Any]) -> TrainConfig:
        """Settings of its training, by the options that all methods share.

        Raises:
            InputError: one of them cannot be used.
        """
        config = TrainConfig.from_options({**options, **self.settings})
        if not self.as_long_as_smiler:
            return config
        return replace(config, epochs=config.epochs * (1 + config.rounds * config.round_share))


NO_BRAKES: Mapping[str, Any] = {
    "margin": 0.0,
    "negatives": 0.0,
    "limit_volume": False,
    "one_component": False,
    "limit_slices": False,
    "stop": False,
    "score": "probability",
    "calibrate": False,
}

PRESETS = {
    "baseline": Preset({"method": "baseline"}),
    "marginal": Preset({"method": "marginal"}),
    "naive": Preset({"method": "smile", "policy": "naive"}),
    "channel-drop": Preset({"method": "smile", "policy": "channel-drop"}),
    "no-epsilon": Preset({"method": "smile", "policy": "no-epsilon"}),
    "smile": Preset({"method": "smile"}),
    "smile-long": Preset({"method": "smile"}, as_long_as_smiler=True),
    "smiler": Preset({"method": "smiler"}),
    "smiler-plain": Preset({"method": "smiler", **NO_BRAKES}),
    "fill": Preset({"method": "smile"}, as_long_as_smiler=True, filled_by="smile"),
    "full": Preset({"method": "smile"}, all_annotations=True),
    "full-long": Preset({"method": "smile"}, as_long_as_smiler=True, all_annotations=True),
}
"""Name -> method; tables and figures have them in this order."""
