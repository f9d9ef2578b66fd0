"""What all commands share: help, version, exit statuses, one sentence for a mistake."""

import json
import os
import re
import subprocess
import sys

import pytest

import smile_fast
from smile_fast import ops
from smile_fast.cli.main import COMMANDS, main
from smile_fast.ops import OPS
from smile_runtime.errors import InputError

HEAVY = ("torch", "numpy", "scipy", "nibabel", "blosc2", "matplotlib", "jinja2", "PIL", "onnx", "onnxruntime")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: smile-fast {command} [-h]")
    assert "%(" not in out  # a forgotten format
    assert err == ""


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s", out, re.MULTILINE)


def test_help_of_every_command_loads_nothing_heavy():
    """A second of imports for a line of help would be a second too much."""
    code = f"""
import json, sys
from smile_fast.cli.main import COMMANDS, main
statuses = [main([]), main(["--help"]), main(["--version"]), *(main([command, "--help"]) for command in COMMANDS)]
print(json.dumps([statuses, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    statuses, heavy = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [2] + [0] * (len(COMMANDS) + 2)
    assert heavy == []


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, [None, "PASSIVE", "0"]),
        ({"OMP_NUM_THREADS": "3"}, ["3", "PASSIVE", "0"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [None, "ACTIVE", None]),
    ],
)
def test_a_command_sets_its_threads_before_torch_is_loaded(given, found):
    """What OpenMP finds when it is loaded, on one CPU of those that there are."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    code = f"""
import json, os, sys
class Watching:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy"):
            found.setdefault(name, [os.environ.get(key) for key in {names!r}])
found = {{}}
sys.meta_path.insert(0, Watching())
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from smile_fast.cli.main import main
status = main(["doctor"])
import torch
print(json.dumps([status, found, torch.get_num_threads()]))
"""
    environment = {name: text for name, text in os.environ.items() if name not in (*names, "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True)
    status, seen, threads = json.loads(done.stdout.splitlines()[-1])
    wanted = [found[0] or "1", *found[1:]]
    assert (status, seen) == (0, {"torch": wanted, "numpy": wanted})
    assert 1 <= threads <= int(wanted[0])  # MKL takes no more than there are cores


def test_version_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "smile_fast", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"smile-fast {smile_fast.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["train"], "STORE, RUN"),
        (["train", "store", "run", "--wings", "2"], "unrecognized arguments: --wings 2"),
        (["train", "store", "run", "--epochs", "many"], "argument --epochs: invalid float value: 'many'"),
        (["train", "store", "run", "--budget", "soon"], "'soon' is not a time such as 90s, 10m or 2h"),
        (["relabel", "run", "--scope", "cohort"], "argument --scope: invalid choice: 'cohort'"),
        (["evaluate", "run", "--split", "best"], "argument --split: invalid choice: 'best'"),
        (["report"], "RUN"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "see smile-fast" in err


def status_of(monkeypatch, outcome):
    def run(arguments):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("smile_fast.cli.doctor.run", run)
    return main(["doctor"])


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        (None, 0, ""),
        (143, 143, ""),
        (InputError("the disk is made of cheese"), 2, "error: the disk is made of cheese\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=str,
)
def test_exit_statuses(outcome, status, message, monkeypatch, capsys):
    assert status_of(monkeypatch, outcome) == status
    assert capsys.readouterr().err == message


def test_a_bug_is_not_hidden(monkeypatch):
    """Only a user's mistake becomes one sentence: of a defect we want the traceback."""
    with pytest.raises(ZeroDivisionError):
        status_of(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize("command", ["verify {}", "audit {}", "prepare {} store", "train {} run", "report {}"])
def test_a_name_that_no_file_can_have_is_one_sentence(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = 300 * "x"
    assert main(command.format(name).split()) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert name in error
    assert "(file name too long); " in error or "there is no such folder; " in error


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from smile_fast.cli.main import main; sys.exit(main(['train', '--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
    assert b"Traceback" not in err


def test_doctor_names_the_implementation_of_every_operation(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"smile-fast {smile_fast.__version__}, Python {sys.version.split()[0]}")
    on_cpu = out.split("\ncpu:\n")[1].split("\ncuda:")[0].splitlines()
    assert {line.split()[1] for line in on_cpu if line.strip().startswith("->")} == set(OPS)
    for op in OPS:
        lines = [line for line in on_cpu if f" {op} " in line]
        assert sum(line.strip().startswith("->") for line in lines) == 1
        assert any("reference" in line for line in lines)
    assert "\ncuda:" in out
    assert re.search(r"\nnative core: (instruction set (avx512|avx2|plain)|.*SMILE_FAST_BUILD=none.*)\n", out)


def test_doctor_says_why_the_better_implementation_is_not_used(capsys, monkeypatch):
    monkeypatch.setattr(
        ops, "available", lambda op, device: [("native", False, "it was not built"), ("reference", True, "")]
    )
    assert main(["doctor"]) == 0
    lines = [line.split(None, 3) for line in capsys.readouterr().out.splitlines() if "masked_bce " in line]
    assert ["masked_bce", "native", "it was not built"] in [[*line[:2], " ".join(line[2:])] for line in lines]
    assert ["->", "masked_bce", "reference"] in lines
