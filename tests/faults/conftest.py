"""One server for all tests of a session: it loads torch once."""

import pytest

from tests.faults.scenarios import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    found = Bench(tmp_path_factory.mktemp("faults"))
    yield found
    found.close()
