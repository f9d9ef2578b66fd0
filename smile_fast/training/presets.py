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
        one_round: it has one round, which is as long as all of SMILEr's together.
        all_annotations: nothing is hidden from it, whatever the share of missing annotations is.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    as_long_as_smiler: bool = False
    all_annotations: bool = False
    one_round: bool = False

    def config(self, options: Mapping[str, Any]) -> TrainConfig:
        """Settings of its training, by the options that all methods share.

        Raises:
            InputError: one of them cannot be used.
        """
        config = TrainConfig.from_options({**options, **self.settings})
        if self.one_round:
            return replace(config, rounds=1, round_share=config.rounds * config.round_share)
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
    "fill": Preset({"method": "smiler", **NO_BRAKES, "gamma_max": 1.0, "negatives": 1.0}, one_round=True),
    "full": Preset({"method": "smile"}, all_annotations=True),
    "full-long": Preset({"method": "smile"}, as_long_as_smiler=True, all_annotations=True),
}
"""Name -> method; tables and figures have them in this order."""
