import json
import math
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from smile_fast.cli.main import main
from smile_fast.models import ModelConfig
from smile_fast.settings import declared, option_of
from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.settings import Brakes
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
    ("pixel_mm", 0.0),
    ("pixel_mm", 1e308),
    ("pixel_size", "1e308"),
    ("pixel_size", "0.001"),
    ("pixel_size", "0"),
    ("pixel_size", "-1"),
    ("pixel_size", "inf"),
    ("pixel_size", "nan"),
    ("pixel_size", "median"),
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
    ("batch_norm", "plain"),
    ("clip_norm", -1.0),
    ("clip_norm", INF),
    ("clip_norm", NAN),
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
    ("margin", -1.0),
    ("margin", math.inf),
    ("negatives", -0.1),
    ("negatives", 1.1),
    ("growth", 1.0),
    ("growth", INF),
    ("score", "entropy"),
    ("stop_tolerance", 1.5),
]
# Without a rule beside their type.
SWITCHES = {"body_crop", "calibrate", "keep_rounds", "limit_slices", "limit_volume", "one_component"}
SWITCHES |= {"pseudo_negative", "stop", "tensorboard"}
# Settings that the store and the method decide.
FROM_THE_STORE = {"organs", "head", "pixel_mm"}


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_an_unusable_setting_is_refused_by_its_option(name, value):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_options({name: value})
    subject, given, remedy = str(caught.value).replace(" cannot be used; give ", ": ").split(": ")
    assert (subject, given) == (option_of(name), repr(value))
    assert remedy
    assert not remedy.endswith(".")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "many"),
        ("width", None),
        ("width", 8.0),
        ("batch_size", True),
        ("tensorboard", 1),
        ("rates", 6),
        ("rates", (1.5,)),
        ("window", "ab"),
        ("seed", "0"),
    ],
)
def test_a_setting_of_another_type_is_refused(name, value):
    with pytest.raises(InputError, match=rf"^{option_of(name)}: .* cannot be used; give "):
        TrainConfig.from_options({name: value})


def test_whole_numbers_are_numbers():
    assert TrainConfig(epochs=3, lr=None, budget=0).epochs == 3


def test_every_setting_with_a_rule_has_a_wrong_value_above():
    names = {field.name for cls in (TrainConfig, Brakes, ModelConfig) for field in fields(cls)} - {"model", "brakes"}
    assert {name for name, _ in WRONG} - FROM_THE_STORE == names - SWITCHES - FROM_THE_STORE


def test_every_setting_but_those_of_the_store_is_declared_with_help_and_a_group():
    groups = {name: entry.group for cls in (TrainConfig, Brakes, ModelConfig) for name, entry in declared(cls).items()}
    assert {name for name, group in groups.items() if group is None} == FROM_THE_STORE
    for cls in (TrainConfig, Brakes, ModelConfig):
        assert {field.name for field in fields(cls)} - {"model", "brakes"} == set(declared(cls))
        for name, entry in declared(cls).items():
            assert len(entry.help) > 10, name
            assert not entry.help.endswith(".")
            assert f"\n    {name}: {entry.help}.\n" in f"{cls.__doc__}\n"


def test_every_setting_is_an_option_that_help_shows(capsys):
    assert main(["train", "--help"]) == 0
    shown = " ".join(re.sub(r"-\n\s+", "-", capsys.readouterr().out).split())  # as if no line was broken
    for cls in (TrainConfig, Brakes, ModelConfig):
        for name, entry in declared(cls).items():
            choices = f"{{{','.join(map(str, entry.choices))}}} " if entry.choices else ""
            assert (f" {choices}{entry.help}" in shown) == (name not in FROM_THE_STORE), name
            assert bool(re.search(rf" {option_of(name)}[ ,]", shown)) == (name not in FROM_THE_STORE), name


def test_settings_are_read_without_torch():
    code = "import sys; import smile_fast.training.config; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_fold_needs_more_folds():
    assert TrainConfig(fold=2, folds=3).fold == 2
    with pytest.raises(InputError, match=r"^--fold: 3 cannot be used; give 0, or a number less than --folds$"):
        TrainConfig(fold=3, folds=3)


@pytest.mark.parametrize("method", ["baseline", "marginal"])
def test_a_softmax_has_no_policy(method):
    with pytest.raises(InputError, match=f"^--policy: 'naive' cannot be used, the {method} has none; leave it out$"):
        TrainConfig(method=method, policy="naive")


def test_settings_survive_json():
    config = TrainConfig(
        ModelConfig(rates=(1, 2), window=(-50.0, 60.0)), method="smiler", lr=0.1, pseudo_negative=True
    ).of_cohort(("liver", "spleen"), [(3.0, 0.8, 0.8)])
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_options_name_the_settings_of_the_network_too():
    config = TrainConfig.from_options({"width": 8, "lr": 0.5, "rates": [1, 2], "window": [-1.0, 1.0]})
    assert config == TrainConfig(ModelConfig(width=8, rates=(1, 2), window=(-1.0, 1.0)), lr=0.5)


@pytest.mark.parametrize("method", ["baseline", "marginal", "smile", "smiler"])
def test_a_store_completes_the_network(method):
    config = TrainConfig(ModelConfig(width=16), method=method).of_cohort(("liver",), [(3.0, 0.8, 0.8)])
    softmax = method in ("baseline", "marginal")
    head = "softmax" if softmax else "sigmoid"
    assert config.model == ModelConfig(("liver",), width=16, head=head, pixel_mm=0.8)
    other = "sigmoid" if softmax else "softmax"
    with pytest.raises(
        InputError, match=f"--method: '{method}' cannot be used; give one whose network ends in a {other}"
    ):
        replace(config, model=replace(config.model, head=other))


def test_records_of_another_version_are_refused():
    record = TrainConfig().to_json()
    for changed, message in (
        ({**record, "momentum": 0.9}, "settings: momentum is not known to this version; train again"),
        ({name: value for name, value in record.items() if name != "ema"}, "settings: ema is missing; train again"),
        ({**record, "model": {**record["model"], "depth": 3}}, "settings: depth is not known"),
        ({**record, "model": 3}, "settings: 3 is not an object; train again"),
        ([record], "is not an object; train again"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig.from_json(changed)


def test_the_curriculum_of_the_paper():
    """T = 2 and gamma_max = 0.66: a third of the candidates, then two thirds."""
    config = TrainConfig(method="smiler")
    assert (config.rounds, config.gamma_max, config.last_round) == (2, 0.66, 2)
    assert [config.gamma(t) for t in (1, 2)] == [pytest.approx(0.33), pytest.approx(0.66)]
    assert TrainConfig(method="smile").last_round == TrainConfig(method="baseline").last_round == 0
    assert TrainConfig(method="smiler", rounds=4).last_round == 4


def test_each_optimizer_has_its_own_learning_rate():
    assert TrainConfig().peak_lr == 1e-3
    assert TrainConfig(optimizer="sgd").peak_lr == 1e-2
    assert TrainConfig(optimizer="sgd", lr=0.5).peak_lr == 0.5
