import pytest
import torch

from smile_fast.training.config import TrainConfig
from smile_fast.training.schedule import Course, Pace, Position, default_epochs, learning_rate, step_seed
from tests.tolerances import WARM_UP_MIDDLE


def test_the_poly_schedule():
    config = TrainConfig(lr=0.1, warmup=0.0)
    for progress in (0.0, 0.25, 0.5, 0.9):
        assert learning_rate(config, progress) == pytest.approx(0.1 * (1 - progress) ** 0.9)
    assert learning_rate(config, 1.0) == 0


def test_warm_up_rises_to_the_schedule():
    config, plain = TrainConfig(lr=0.1, warmup=0.2), TrainConfig(lr=0.1, warmup=0.0)
    rates = [learning_rate(config, progress) for progress in (0.0, 0.05, 0.1, 0.15)]
    assert 0 < rates[0] < 0.01
    assert rates == sorted(rates)
    assert learning_rate(config, 0.1) == pytest.approx(0.5 * learning_rate(plain, 0.1), **WARM_UP_MIDDLE)
    for progress in (0.2, 0.6, 0.99):
        assert learning_rate(config, progress) == learning_rate(plain, progress)


def test_rounds_last_as_long_as_they_should():
    config = TrainConfig(method="smiler", epochs=2.5, round_share=0.4)
    assert [Pace(config, number, steps_per_epoch=9).steps for number in (0, 1, 2)] == [22, 9, 9]
    assert Pace(TrainConfig(epochs=0.001), 0, 9).steps == 1
    pace = Pace(config, 0, 9)
    assert pace.progress(Position(step=0)) == 0
    assert pace.progress(Position(step=11)) == 0.5
    assert pace.progress(Position(step=22)) == pace.progress(Position(step=30)) == 1


def test_a_budget_is_shared_among_the_rounds():
    config = TrainConfig(method="smiler", budget=90.0, rounds=2, round_share=0.4)
    assert [Pace(config, number, 9).seconds for number in (0, 1, 2)] == [pytest.approx(s) for s in (50.0, 20.0, 20.0)]
    assert Pace(TrainConfig(budget=90.0), 0, 9).seconds == 90
    assert Pace(config, 1, 9).progress(Position(round=1, step=1000, seconds=5.0)) == pytest.approx(0.25)


def test_the_course_of_all_rounds_in_steps():
    course = Course(TrainConfig(method="smiler", epochs=2.5, round_share=0.4), steps_per_epoch=9)
    assert course.length == 22 + 9 + 9
    assert course.done(Position(step=7, seconds=1000.0)) == 7
    assert course.done(Position(round=1)) == 22
    assert course.done(Position(round=2, step=4)) == 22 + 9 + 4
    assert Course(TrainConfig(epochs=2.5), 9).length == 22


def test_the_course_of_all_rounds_in_seconds():
    course = Course(TrainConfig(method="smiler", budget=90.0, rounds=2, round_share=0.4), steps_per_epoch=9)
    assert course.length == pytest.approx(90)
    assert course.done(Position(step=1000, seconds=49.0)) == 49
    assert course.done(Position(round=1, seconds=25.0)) == pytest.approx(70)  # of its 20 s no more than all are done
    assert course.done(Position(round=2, step=1)) == pytest.approx(70)


def test_the_epochs_that_a_training_has_by_default():
    assert default_epochs(TrainConfig(method="smile", epochs=3, rounds=5)) == 20
    assert default_epochs(TrainConfig(method="smiler", epochs=3, rounds=2, round_share=0.25)) == 30


def test_validation_comes_every_so_many_steps():
    pace = Pace(TrainConfig(validate_every=0.5), 0, steps_per_epoch=8)
    assert [step for step in range(1, 13) if pace.validates(Position(step=step))] == [4, 8, 12]
    assert not any(Pace(TrainConfig(), 0, 8).validates(Position(step=step)) for step in range(20))


def test_every_step_has_a_seed_of_its_own_that_torch_takes():
    seeds = [
        step_seed(seed, number, step)
        for seed in (0, 1, 20261231, 2**63 - 1)
        for number in range(3)
        for step in range(50)
    ]
    assert len(set(seeds)) == len(seeds)
    # Another rule would make another training of every recorded seed.
    assert [step_seed(*place) for place in ((0, 0, 7), (0, 2, 7), (3, 1, 0))] == [7, 2000013, 3000019000030]
    for seed in (min(seeds), max(seeds)):
        torch.Generator().manual_seed(seed)
