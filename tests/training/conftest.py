"""Small cohorts and one finished training, which many tests look at and none changes."""

import pytest
import torch

from tests.trainings import CURRICULUM, tiny_store, trained


@pytest.fixture(autouse=True)
def _small_and_repeatable(one_thread):
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Three training cases with hidden and missing organs, one held-out case. Not to be written to."""
    return tiny_store(tmp_path_factory.mktemp("training") / "store")


@pytest.fixture(scope="session")
def smiler(store):
    """A SMILEr training of 9 + 4 + 4 steps without an interruption. Not to be written to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = trained(store.path.parent / "smiler", store, **CURRICULUM)
    torch.set_num_threads(threads)
    return run
