import json
import re
from dataclasses import fields

import pytest

from smile_fast.cli.main import main
from smile_fast.training.config import TrainConfig
from smile_runtime.errors import InputError

NAN, INF = float("nan"), float("inf")
WRONG = [
    ("method", "unet"),
    ("policy", "all"),
    ("backbone", "vgg16"),
    ("output_stride", 32),
    ("width", 20),
    ("width", 0),
    ("rates", (6, 0)),
    ("channels", 2),
    ("channels", 0),
    ("window", (240.0, -160.0)),
    ("window", (-INF, 240.0)),
    ("window", (NAN, 240.0)),
    ("window", (1.0, 2.0, 3.0)),
    ("crop_size", 40),
    ("crop_size", -32),
    ("batch_size", 1),
    ("epochs", 0.0),
    ("epochs", INF),
    ("epochs", NAN),
    ("budget", -1.0),
    ("budget", INF),
    ("optimizer", "lion"),
    ("lr", 0.0),
    ("lr", INF),
    ("lr", NAN),
    ("weight_decay", -0.1),
    ("weight_decay", NAN),
    ("warmup", 1.0),
    ("ema", 1.0),
    ("ema", -0.1),
    ("organ_share", 1.1),
    ("flip", -0.1),
    ("rotate", 181.0),
    ("scale", 1.0),
    ("translate", 1.0),
    ("intensity", 1.1),
    ("noise", -1.0),
    ("noise", INF),
    ("rounds", 0),
    ("gamma_max", 0.0),
    ("gamma_max", 1.01),
    ("gamma_max", NAN),
    ("scope", "cohort"),
    ("round_share", 0.0),
    ("round_share", INF),
    ("folds", 1),
    ("fold", 1),
    ("seed", -1),
    ("seed", 2**63),
    ("amp", "float16"),
    ("validate_every", -1.0),
    ("validate_every", INF),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_an_unusable_setting_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"^The setting {name} must be .*, but .* was given\.$"):
        TrainConfig(**{name: value})


def test_every_setting_but_a_switch_has_a_wrong_value_above():
    switches = {field.name for field in fields(TrainConfig) if field.type is bool}
    assert switches == {"body_crop", "pseudo_negative", "tensorboard"}
    assert {name for name, _ in WRONG} | switches == {field.name for field in fields(TrainConfig)}


def test_a_fold_needs_more_folds():
    assert TrainConfig(fold=2, folds=3).fold == 2
    with pytest.raises(InputError, match="setting fold"):
        TrainConfig(fold=3, folds=3)


def test_settings_survive_json():
    config = TrainConfig(method="smiler", rates=(1, 2), window=(-50.0, 60.0), lr=0.1, pseudo_negative=True)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_of_the_wrong_type_or_name_are_refused():
    with pytest.raises(InputError, match="name momentum, which this version does not know"):
        TrainConfig.from_json({"momentum": 0.9})
    with pytest.raises(InputError, match="wrong type"):
        TrainConfig.from_json({"epochs": "many"})
    with pytest.raises(InputError, match="wrong type"):
        TrainConfig.from_json({"width": None})


def test_the_curriculum_of_the_paper():
    """T = 2 and gamma_max = 0.66: a third of the candidates, then two thirds."""
    config = TrainConfig(method="smiler")
    assert (config.rounds, config.gamma_max, config.stages) == (2, 0.66, 3)
    assert [config.gamma(t) for t in (1, 2)] == [pytest.approx(0.33), pytest.approx(0.66)]
    assert TrainConfig(method="smile").stages == TrainConfig(method="baseline").stages == 1
    assert TrainConfig(method="smiler", rounds=4).stages == 5


def test_each_optimizer_has_its_own_learning_rate():
    assert TrainConfig().peak_lr == 1e-3
    assert TrainConfig(optimizer="sgd").peak_lr == 1e-2
    assert TrainConfig(optimizer="sgd", lr=0.5).peak_lr == 0.5


def test_every_setting_is_an_option(capsys):
    assert main(["train", "--help"]) == 0
    options = set(re.findall(r"^  (?:-h, )?--([a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    settings = {field.name.replace("_", "-") for field in fields(TrainConfig)}
    assert options == settings | {"help", "annotations", "weights", "resume", "device", "threads"}
