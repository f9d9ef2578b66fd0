"""A worker process that is killed or whose disk is full: the command says so, and repeated it goes through."""

import subprocess
import sys

import pytest

from tests.cohorts import annotate, make_cohort
from tests.faults.inject import ENOSPC, KILL, Fault, in_workers
from tests.faults.scenarios import digests


@pytest.mark.parametrize("kind", [KILL, pytest.param(ENOSPC, marks=pytest.mark.slow)])
def test_a_worker_that_is_cut_short(tmp_path, kind):
    annotate(make_cohort(tmp_path / "cohort", train=3))
    command = [sys.executable, "-m", "smile_fast", "prepare", "cohort", "store", "--workers", "2"]

    def run(number: int) -> subprocess.CompletedProcess[str]:
        environment = in_workers(Fault(kind, number, str(tmp_path)))
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run(9)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(said)) in ((2, 1), (-9, 0)), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store" / "index.json").exists()
    assert run(0).returncode == 0
    assert "index.json" in digests(tmp_path / "store")
