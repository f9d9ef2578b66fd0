"""The paper's Figure 3 in small: what missing annotations cost the baseline, and what SMILE and SMILEr win back."""

import csv
from pathlib import Path

import numpy as np
import pytest

from smile_fast.cli.main import main

TRAIN = (
    "--backbone resnet18 --width 16 --rates 3 6 9 --batch-size 8 --lr 0.003 --ema 0.98 --epochs 6 --round-share 0.6 "
    "--device cpu"
).split()


@pytest.mark.slow
def test_the_baseline_collapses_and_smile_and_smiler_do_not(tmp_path: Path) -> None:
    """The limits are those of the experiments on real label maps; a fold of 20 phantoms, some 240 steps a training."""
    cohort, store, out = (str(tmp_path / name) for name in ("cohort", "store", "sweep"))
    assert main(["phantom", cohort, "--train", "25", "--test", "0", "--size", "64", "--slices", "16"]) == 0
    assert main(["prepare", cohort, store]) == 0
    methods = ("--methods", "full,baseline,smile,smiler", "--alphas", ".7", "--folds", "1")
    assert main(["sweep", store, out, *methods, *TRAIN]) == 0
    dice: dict[str, list[float]] = {}
    with (tmp_path / "sweep" / "figure3.csv").open() as file:
        for row in csv.DictReader(file):
            dice.setdefault(row["method"], []).append(float(row["dice"]))
    full, baseline, smile, smiler = (
        100 * float(np.mean(dice[each])) for each in ("full", "baseline", "smile", "smiler")
    )
    assert baseline <= full - 25
    assert smile >= full - 10
    assert smiler >= full - 2
    assert smiler > smile
