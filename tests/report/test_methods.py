"""Every method that can be trained is explained to a reader who knows none."""

from itertools import product

from smile_fast.report.methods import method_of, preset_sentence
from smile_fast.settings import declared
from smile_fast.training.config import TrainConfig
from smile_fast.training.presets import PRESETS


def test_every_method_and_policy_has_a_title_and_a_sentence():
    settings = declared(TrainConfig)
    with_policy = list(product(("smile", "smiler"), settings["policy"].choices))
    others = [(method, "smile") for method in settings["method"].choices if method not in ("smile", "smiler")]
    titles = {}
    for method, policy in with_policy + others:
        title, sentence = method_of(TrainConfig(method=method, policy=policy))
        assert sentence.endswith(".")
        titles[title] = sentence
    assert len(set(titles.values())) == len(titles) == len(with_policy) + len(others)


def test_presets_of_a_sweep_are_explained_and_an_unknown_one_says_so():
    unknown = preset_sentence("something else")
    sentences = [preset_sentence(name) for name in PRESETS]
    assert len(set(sentences)) == len(PRESETS)
    assert unknown not in sentences
    assert "Settings of its own" in unknown
