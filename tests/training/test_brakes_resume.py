"""A round with brakes that was killed is finished with the same bits."""

from itertools import count

import pytest

from smile_fast.training import unfinished_round
from smile_fast.training.loop import train
from smile_fast.training.rounds import open_round, unfinished_rounds
from tests.trainings import CPU, CURRICULUM, assert_same_bits, new_run, overlays, trained, weights

BRAKES = {"negatives": 0.2, "one_component": True, "limit_volume": True, "limit_slices": True, "stop": True}


# While cases are relabelled, and while the pseudo-labels of organs that were stopped are dropped.
@pytest.mark.parametrize(("killed_at", "score"), [(1, "agreement"), (4, "agreement"), (1, "confidence")])
def test_a_round_with_brakes_that_was_killed_is_finished_alike(store, tmp_path, monkeypatch, killed_at, score):
    settings = {**CURRICULUM, **BRAKES, "score": score, "calibrate": score == "confidence"}
    expected = trained(tmp_path / "expected", store, **settings)
    run, adds, add = new_run(tmp_path / "run", store, **settings), count(), unfinished_round.UnfinishedRound.add

    def dies(*arguments):
        if next(adds) == killed_at:  # the round has three cases
            raise RuntimeError("killed")
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished_round.UnfinishedRound, "add", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(run, device=CPU)
    assert unfinished_rounds(run.rounds_path) == [1]
    train(run, device=CPU, resume=True)
    assert_same_bits(weights(run), weights(expected))
    assert overlays(run) == overlays(expected)
    assert open_round(run.rounds_path, 1).stopped == open_round(expected.rounds_path, 1).stopped != ()
