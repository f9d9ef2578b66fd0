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
        line: what the voxels of a missing organ teach under it, for tables.
        as_long_as_smiler: its training has as many steps as that of SMILEr with all rounds.
        filled_by: the method whose network, of the same cell, labels the missing organs before the training; that
            network is there already, as in practice, and its steps are not counted.
        all_annotations: nothing is hidden from it, whatever the share of missing annotations is.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""
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


def _and_as_long(name: str, preset: Preset) -> dict[str, Preset]:
    """A method without rounds, and the same for as many steps as SMILEr takes: they are compared at equal steps."""
    return {name: preset, f"{name}-long": replace(preset, as_long_as_smiler=True)}


PRESETS: Mapping[str, Preset] = {
    **_and_as_long("baseline", Preset({"method": "baseline"}, "K+1 softmax: they are background")),
    **_and_as_long(
        "marginal",
        Preset(
            {"method": "marginal"},
            "K+1 softmax: they are background or a missing organ; where others were drawn, that it is not there",
        ),
    ),
    **_and_as_long("naive", Preset({"method": "smile", "policy": "naive"}, "sigmoid heads: they are background")),
    **_and_as_long(
        "channel-drop", Preset({"method": "smile", "policy": "channel-drop"}, "sigmoid heads: nothing of that organ")
    ),
    **_and_as_long(
        "no-epsilon",
        Preset({"method": "smile", "policy": "no-epsilon"}, "sigmoid heads: nothing, unless it was drawn in part"),
    ),
    **_and_as_long(
        "smile", Preset({"method": "smile"}, "sigmoid heads: where other organs were drawn, that it is not there")
    ),
    "smiler": Preset({"method": "smiler"}, "as smile, and the most confident findings, from round to round"),
    "smiler-plain": Preset({"method": "smiler", **NO_BRAKES}, "as smiler was published: rounds without brakes"),
    "fill": Preset(
        {"method": "smile"},
        "before the training, all that another model finds is the organ, and all else its background",
        as_long_as_smiler=True,
        filled_by="smile",
    ),
    **_and_as_long(
        "full", Preset({"method": "smile"}, "they are annotated after all: what could be reached", all_annotations=True)
    ),
}
"""Name -> method; tables and figures have them in this order.

Each has what its source says of missing organs, under our network, cross-entropy and trainer: no Dice loss, no dynamic
head, no other architecture.

Source:
    baseline, smile, smiler-plain: Petit et al., "Handling Missing Annotations for Semantic Segmentation with Deep
        ConvNets", DLMIA 2018.
    marginal: Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", Medical
        Image Analysis 70, 2021.
    channel-drop: Zhang et al., "DoDNet: Learning to segment multi-organ and tumors from multiple partially labeled
        datasets", CVPR 2021; Ulrich et al., "MultiTalent: A Multi-Dataset Approach to Medical Image Segmentation",
        MICCAI 2023. In both the loss of an organ counts where the organ was annotated.
    naive, no-epsilon, fill, full: what is done in practice, and what shows the parts of SMILE.
"""
