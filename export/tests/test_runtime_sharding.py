"""Shares of the work: together they are all of it, and what a scheduler says is understood or refused."""

import argparse

import pytest

from smile_runtime.errors import InputError
from smile_runtime.sharding import WHOLE, Shard, add_shard


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("items", [0, 1, 7, 10])
def test_every_item_is_in_one_share(count, items):
    shares = [Shard(number, count).of(range(items)) for number in range(1, count + 1)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert WHOLE.of(range(items)) == list(range(items))


def test_a_share_is_read_as_it_is_printed():
    assert Shard.parse("2/4") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"


@pytest.mark.parametrize(
    "text", ["", "2", "0/4", "5/4", "-1/4", "1/0", "1/4/2", "1.0/4", "a/b", "1 / 4", "1/4\n", "Auto"]
)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(InputError, match=r"^--shard: .* is no share of the work"):
        Shard.parse(text, {})


SLURM = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (SLURM | {"SLURM_ARRAY_TASK_ID": "0"}, Shard(1, 4)),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "3"}, Shard(4, 4)),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_STEP": "2"}, Shard(3, 4)),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "8"}, Shard(3, 8)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, Shard(1, 2)),
        # whoever started the process last
        (SLURM | {"SLURM_ARRAY_TASK_ID": "3", "RANK": "1", "WORLD_SIZE": "2"}, Shard(2, 2)),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "8", "RANK": "1", "WORLD_SIZE": "2"}, Shard(2, 2)),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "3", "WORLD_SIZE": "2"}, Shard(4, 4)),  # not what torchrun leaves
    ],
)
def test_a_scheduler_says_which_share(environment, shard):
    assert Shard.parse("auto", environment) == shard


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "none of RANK, SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX is set here"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "4"}, "task 4 of Slurm is none of 4 from 0 in steps of 1"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_STEP": "2"}, "task 1 of Slurm is none of 4"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is not set"),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of torchrun is none of 0 to 1"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK is 'a'"),
        ({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "3"}, "index 3 of Kubernetes is none of 0 to 2"),
    ],
)
def test_a_scheduler_that_says_too_little_is_told_so(environment, sentence):
    with pytest.raises(InputError) as caught:
        Shard.parse("auto", environment)
    assert sentence in str(caught.value)


def test_the_option(capsys):
    parser = argparse.ArgumentParser(prog="x")
    add_shard(parser, "cases")
    assert parser.parse_args([]).shard is None
    assert parser.parse_args(["--shard", "2/3"]).shard == Shard(2, 3)
    with pytest.raises(SystemExit):
        parser.parse_args(["--shard", "3/2"])
    assert "argument --shard: '3/2' is no share of the work; give I/N" in capsys.readouterr().err
