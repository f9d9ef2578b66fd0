"""Two and four processes, each with a share of a batch, make the step of one that has the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from smile_fast.data.store import Store
from smile_fast.training.ranks import ALONE
from tests.tolerances import GRADIENT_OF_RANKS, NORMALISED_BY_RANKS, SUMS_OF_RANKS, WEIGHTS_OF_RANKS
from tests.training import rank_processes
from tests.training.one_rank import METHODS, gradient, normalised, plain_norm

Found = list[dict[str, Any]]
"""Of every rank: what one_rank.py has found, by name."""


def found_by(world: int, store: Store, folder: Path, methods: list[str]) -> Found:
    arguments = ["-m", "tests.training.one_rank", str(store.path), str(folder), *methods]
    rank_processes.successful(rank_processes.ended(rank_processes.start(world, arguments)))
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def two(store, tmp_path_factory):
    return found_by(2, store, tmp_path_factory.mktemp("two"), list(METHODS))


@pytest.fixture(scope="module")
def four(store, tmp_path_factory):
    return found_by(4, store, tmp_path_factory.mktemp("four"), ["smile", "baseline", "marginal"])


@pytest.fixture(params=["two", pytest.param("four", marks=pytest.mark.slow)])
def ranks(request):
    return request.getfixturevalue(request.param)


def distance(found, expected):
    """The largest difference of two gradients, relative to the largest gradient."""
    names = [name for name in expected if name.startswith("gradient/")]
    largest = max(expected[name].abs().max().item() for name in names)
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in names) / largest


def assert_same_step(store, ranks, method):
    expected = gradient(store, method, ALONE, len(ranks), exact=True)
    for of_rank in ranks:
        found = of_rank[method]
        assert distance(found, expected) < GRADIENT_OF_RANKS
        assert torch.equal(found["counts"], expected["counts"])
        torch.testing.assert_close(found["sums"].double(), expected["sums"].double(), **SUMS_OF_RANKS)
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=SUMS_OF_RANKS["rtol"])
        for name, tensor in expected.items():
            if name.startswith("weight/"):  # after the optimizer's step, with running statistics
                torch.testing.assert_close(found[name], tensor, **WEIGHTS_OF_RANKS)


@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_that_of_one_process(store, two, method):
    """One of the ranks knows nothing, the other has more images."""
    assert_same_step(store, two, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smile", "baseline", "marginal"])
def test_the_step_of_four_is_that_of_one_process(store, four, method):
    assert_same_step(store, four, method)


def test_in_float32_it_is_as_exact_as_that_of_one_process(store, ranks):
    exact = gradient(store, "smile", ALONE, len(ranks), exact=True)
    alone = gradient(store, "smile", ALONE, len(ranks), exact=False)
    assert distance(ranks[0]["float32"], exact) <= 2 * distance(alone, exact)


def test_all_ranks_have_the_same_weights_and_repeat_them_bit_for_bit(ranks):
    for of_rank in ranks:
        for name, tensor in ranks[0]["float32"].items():
            assert torch.equal(of_rank["float32"][name], tensor), name
            assert torch.equal(of_rank["again"][name], tensor), name


def test_the_mean_of_the_ranks_own_means_is_another_gradient(store, ranks):
    expected = gradient(store, "smile", ALONE, len(ranks), exact=True)
    means = {name: tensor / len(ranks) for name, tensor in ranks[0]["means"].items()}
    assert distance(means, expected) > 0.1


def test_a_batch_of_which_nothing_is_known_moves_nothing(ranks):
    for of_rank in ranks:
        found = of_rank["nothing"]
        assert found["loss"].item() == 0
        assert found["counts"].sum().item() == 0
        assert all(not tensor.any() for name, tensor in found.items() if name.startswith("gradient/"))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_a_batchnorm_over_ranks_is_that_of_the_joined_batch(ranks, kind):
    """Forward, backward and running statistics, where the mean is far from 0."""
    expected = normalised(plain_norm(), slice(None), kind)
    for rank, of_rank in enumerate(ranks):
        for name, tensor in expected.items():
            shown = tensor[rank :: len(ranks)] if name in ("y", "dx") else tensor
            torch.testing.assert_close(of_rank[str(kind)][name], shown, **NORMALISED_BY_RANKS[kind])
