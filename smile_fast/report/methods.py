"""What each method does with a missing annotation, in one sentence for a reader who knows none of them."""

from smile_fast.training.config import TrainConfig

_METHODS = {
    "baseline": (
        "baseline (softmax, missing = background)",
        "One softmax over the organs and background; what nobody drew is taken for background, so the network learns "
        "wrong labels wherever an annotation is missing.",
    ),
    "marginal": (
        "marginal softmax",
        "One softmax in which background stands for “background or an organ that was not drawn here”, so a missing "
        "annotation teaches nothing wrong.",
    ),
    "smile": (
        "SMILE",
        "A yes-or-no decision for each organ, learned only where its label is certain: where it was drawn, and where "
        "the drawing of another organ proves that it is not there.",
    ),
    "smiler": (
        "SMILEr",
        "SMILE, and then rounds: the network's most confident findings become labels of the organs that nobody drew, "
        "and it trains on.",
    ),
}
_POLICIES = {
    "naive": (
        "naive",
        "A yes-or-no decision for each organ; what nobody drew is taken for “no”, so missing annotations are wrong "
        "labels, as with the baseline.",
    ),
    "channel-drop": (
        "channel-drop",
        "A yes-or-no decision for each organ; an organ that was not drawn in a scan is left out of the training on it.",
    ),
    "no-epsilon": (
        "SMILE without other organs' negatives",
        "SMILE, but the drawing of another organ is no proof that this one is not there.",
    ),
}
_PRESETS = {
    "smile-long": "SMILE, trained for as many steps as SMILEr with its rounds: what the rounds alone bring is the "
    "difference to it.",
    "smiler-plain": "SMILEr as it was published: rounds without anything that stops mistakes from growing.",
    "fill": "What many do today: a network that is there already (here SMILE's) labels all organs that nobody drew, "
    "once, and a new one is trained as if humans had drawn them.",
    "full": "SMILE trained with all annotations, whatever α is: what could be reached if nothing were missing.",
}


def method_of(config: TrainConfig) -> tuple[str, str]:
    """The name of a run's method, and what it does with missing annotations in one sentence."""
    title, sentence = _METHODS[config.method]
    if config.policy == "smile" or config.method not in ("smile", "smiler"):
        return title, sentence
    name, of_policy = _POLICIES[config.policy]
    if config.method == "smile":
        return name, of_policy
    return f"SMILEr, {name}", f"{of_policy} Then rounds, in which confident findings become labels."


def preset_sentence(name: str) -> str:
    """What a preset of a sweep does with missing annotations; a name that is not known says so."""
    if name in _PRESETS:
        return _PRESETS[name]
    if name.endswith("-long"):
        return f"The same as {name.removesuffix('-long')}, trained for as many steps as SMILEr with its rounds."
    _, sentence = {**_METHODS, **_POLICIES}.get(name, ("", "Settings of its own, see the folder of the sweep."))
    return sentence
