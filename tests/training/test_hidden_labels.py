"""No bit of a hidden label reaches training: whatever is written there, every result stays the same, bit for bit."""

import numpy as np
import pytest

from smile_fast.supervision import Policy, State
from smile_fast.training.batches import BatchSource
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round, open_round
from smile_fast.training.view import TrainingView
from tests.runs import ORGANS, make_store, truth
from tests.trainings import (
    CURRICULUM,
    STATES,
    assert_same_bits,
    differs,
    metrics,
    overlays,
    scramble_hidden,
    trained,
    weights,
)

TRAIN = ["train_0", "train_1", "train_2"]


@pytest.fixture(scope="module")
def scrambled(store):
    """The same cohort with noise wherever a hidden organ is, or could be."""
    return scramble_hidden(store.path.parent / "scrambled", store)


def views(store, scrambled, overlay=None):
    return [TrainingView(each, each.declarations(), TRAIN, overlay) for each in (store, scrambled)]


def test_the_noise_is_there(store, scrambled):
    changed = [(store.read_labels(case) != scrambled.read_labels(case)).sum() for case in TRAIN]
    assert changed[0] > 1000
    assert changed[1] == 0  # nothing is hidden in this case
    assert changed[2] > 1000


def test_a_view_shows_nothing_of_it(store, scrambled):
    one, other = views(store, scrambled)
    for case in TRAIN:
        np.testing.assert_array_equal(one.visible_labels(case), other.visible_labels(case))
        np.testing.assert_array_equal(one.labels(case), other.labels(case))
        np.testing.assert_array_equal(one.counts[case], other.counts[case])
    for missing_is_background in (False, True):
        assert one.prior(missing_is_background=missing_is_background) == other.prior(
            missing_is_background=missing_is_background
        )
    assert one.tables(Policy.SMILE).equal(other.tables(Policy.SMILE))


@pytest.mark.parametrize("with_overlay", [False, True])
def test_batches_show_nothing_of_it(store, scrambled, smiler, with_overlay):
    overlay = open_round(smiler.rounds_path, 2) if with_overlay else None
    sources = [
        BatchSource(view, channels=3, crop_size=32, batch_size=4, organ_share=0.7, seed=1, round_number=0)
        for view in views(store, scrambled, overlay)
    ]
    for step in range(20):
        one, other = (source.batch(step) for source in sources)
        np.testing.assert_array_equal(one.hu, other.hu)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.cases, other.cases)


def test_a_selection_shows_nothing_of_it(store, scrambled, smiler, tmp_path):
    folders = [
        relabel(smiler.load_model(), view, tmp_path / str(number), Round(1, 0.5, "slice")).folder
        for number, view in enumerate(views(store, scrambled))
    ]
    one, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert {name.partition("-")[0] for name in one} == {"round.json", *TRAIN}
    assert one == other


@pytest.mark.parametrize("method", ["smiler", "baseline"])
def test_a_whole_training_shows_nothing_of_it(store, scrambled, smiler, tmp_path, method):
    settings = {**CURRICULUM, "validate_every": 0.5, "folds": 3, "method": method}
    one, other = (trained(tmp_path / each.path.name, each, **settings) for each in (store, scrambled))
    assert_same_bits(weights(one), weights(other))
    assert metrics(one) == metrics(other)
    assert overlays(one) == overlays(other)
    assert any("validation" in line for line in metrics(one))


def test_hidden_by_the_run_is_hidden_too(store, tmp_path):
    """A store that knows every label, and a run whose annotations hide some."""
    labels = {case: truth() for case in TRAIN}
    drawn = make_store(tmp_path / "drawn", labels)
    declarations = drawn.declarations()
    for case, organ in (("train_0", "pancreas"), ("train_2", "liver"), ("train_2", "pancreas")):
        declarations[case][organ] = State.HIDDEN
    hidden = {pair: State.HIDDEN for pair, state in STATES.items() if state is State.HIDDEN}
    by_store = make_store(tmp_path / "hidden", labels, hidden)
    noise = scramble_hidden(tmp_path / "noise", by_store)
    by_run = TrainingView(drawn, declarations, TRAIN)
    for view in (TrainingView(by_store, by_store.declarations(), TRAIN), TrainingView(noise, declarations, TRAIN)):
        for case in TRAIN:
            np.testing.assert_array_equal(by_run.labels(case), view.labels(case))
            np.testing.assert_array_equal(by_run.counts[case], view.counts[case])
        assert by_run.prior(missing_is_background=False) == view.prior(missing_is_background=False)
        assert by_run.prior(missing_is_background=True) == view.prior(missing_is_background=True)


def test_visible_labels_do_matter(store, tmp_path):
    """The comparisons above can fail: a training notices one organ that is drawn elsewhere."""
    labels = {case: store.read_labels(case) for case in store.cases}
    labels["train_0"] = np.where(labels["train_0"] == 1, np.roll(labels["train_0"], 3, axis=1), labels["train_0"])
    states = {(case, organ): state for case in store.cases for organ, state in store.cases[case].states.items()}
    moved = make_store(tmp_path / "moved", labels, states, ORGANS)
    one, other = (trained(tmp_path / f"run {each.path.name}", each) for each in (store, moved))
    assert differs(weights(one), weights(other))
