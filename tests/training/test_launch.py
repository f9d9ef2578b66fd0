"""What torchrun says of a process."""

import sys
from dataclasses import replace

import pytest

from smile_fast.training.launch import Launch, quiet_unless_first
from smile_runtime.errors import InputError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_what_torchrun_sets_is_read():
    assert Launch.of_environment(TORCHRUN) == Launch(5, 8, 1, 4, 2)


@pytest.mark.parametrize("environment", [{}, {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "3"}], ids=str)
def test_a_process_is_alone_without_it(environment):
    assert replace(Launch.of_environment(environment), attempt=0) == Launch()


def test_who_is_alone_knows_that_he_was_started_again():
    assert Launch.of_environment({**TORCHRUN, "WORLD_SIZE": "1"}).attempt == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE: it is 'many'"),
        ({"RANK": "8"}, "RANK: 8 is none of 8 processes"),
        ({"RANK": None}, "RANK: it is not set"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK: it is '-1'"),
        ({"MASTER_PORT": ""}, "MASTER_PORT: it is ''"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: it is not set"),
    ],
    ids=str,
)
def test_half_a_launch_is_refused(changes, sentence):
    environment = {name: text for name, text in {**TORCHRUN, **changes}.items() if text is not None}
    with pytest.raises(InputError) as error:
        Launch.of_environment(environment)
    assert sentence in str(error.value)


def test_every_process_has_a_gpu_of_its_own():
    launch = Launch(5, 8, 1, 4)
    assert [launch.device(name) for name in ("cpu", "cuda", "auto")] == ["cpu", "cuda:1", "auto:1"]
    assert Launch().device("cuda:3") == "cuda:3"
    with pytest.raises(InputError, match="cuda:0 is one device for 8 processes"):
        launch.device("cuda:0")


@pytest.mark.parametrize(("rank", "printed"), [("0", "out"), ("1", "")])
def test_only_the_first_prints(capfd, rank, printed):
    with quiet_unless_first({"RANK": rank, "WORLD_SIZE": "2"}):
        print("out")
        print("err", file=sys.stderr)
    seen = capfd.readouterr()
    assert seen.out.strip() == printed
    assert bool(seen.err) == bool(printed)
