"""The recipes of docs/cluster.md, run for real by local processes; what stands for a scheduler sets its variables."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from tests.cohorts import annotate, make_cohort, tree
from tests.exports import random_hu
from tests.trainings import CURRICULUM, tiny_store, trained

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "recipes"
SCRIPTS = sorted([*RECIPES.rglob("*.sh"), *RECIPES.rglob("*.sbatch")])
SHARES = 2

# Runs an array's tasks at once with what Slurm tells them, any other job alone; prints a number as --parsable does.
SBATCH = r"""#!/bin/bash
set -u
tasks=""
while [[ "$1" == --* ]]; do
    case "$1" in
    --array=1-*) tasks="${1#--array=1-}" ;;
    --parsable | --dependency=after*:4711) ;;
    *) echo "unknown option $1" >&2; exit 1 ;;
    esac
    shift
done
export SLURM_CPUS_PER_TASK=1
if [ -n "$tasks" ]; then
    for task in $(seq "$tasks"); do
        SLURM_ARRAY_TASK_ID="$task" SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT="$tasks" \
            bash "$@" >>log 2>&1 &
    done
    wait
else
    bash "$@" >>log 2>&1 || echo "failed: $?" >>log
fi
echo 4711
"""


def say(command: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def by_slurm(command: list[str], folder: Path) -> str:
    said = say([str(RECIPES / "slurm" / "submit.sh"), str(SHARES), *command], folder)
    assert said == f"4711\narray 4711: {' '.join(command)}\n"
    return (folder / "log").read_text()


def by_parallel(command: list[str], folder: Path) -> str:
    if shutil.which("parallel") is None:
        pytest.skip("GNU parallel is not installed")
    return say([str(RECIPES / "parallel.sh"), str(SHARES), *command], folder)


def by_loop(command: list[str], folder: Path) -> str:
    return say([str(RECIPES / "loop.sh"), str(SHARES), *command], folder)


def by_kubernetes(command: list[str], folder: Path) -> str:
    """The command lists of both Jobs, with another command before the option that makes it a share."""
    share, finish = (container(name) for name in ("share", "finish"))
    variables = {entry["name"]: entry["value"] for entry in share["env"]} | {"OMP_NUM_THREADS": "1"}
    said = [
        say([*command, *share["command"][-2:]], folder, JOB_COMPLETION_INDEX=str(index), **variables)
        for index in range(int(variables["JOB_COMPLETIONS"]))
    ]
    return "".join([*said, say([*command, *finish["command"][-1:]], folder)])


LAUNCHERS = [by_slurm, by_kubernetes, by_parallel, by_loop]


def manifest(name: str) -> dict[str, object]:
    return yaml.safe_load((RECIPES / "kubernetes" / f"{name}.yaml").read_text())


def container(name: str) -> dict[str, object]:
    (found,) = manifest(name)["spec"]["template"]["spec"]["containers"]
    return found


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Iterator[None]:
    """Both commands of this tree and `sbatch` in the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    modules = {"smile-fast": "smile_fast", "smile-predict": "smile_runtime"}
    texts = {name: f'#!/bin/bash\nexec "{sys.executable}" -m {module} "$@"\n' for name, module in modules.items()}
    for name, text in {**texts, "sbatch": SBATCH}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'export'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell_that_stops_at_errors(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    assert "set -euo pipefail" in script.read_text()
    assert script.suffix == ".sbatch" or os.access(script, os.X_OK)


WAITING = """#!/bin/bash
for last; do :; done
if [ "$last" = --finish ]; then touch finished; exit; fi
touch "begun-${last%/*}"
exec sleep 600
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("script", ["loop.sh", "parallel.sh"])
def test_a_recipe_that_is_stopped_stops_its_shares(tmp_path, script, number, status):
    """Nothing is left running, and the end does not follow; blanks in names pass."""
    if script == "parallel.sh" and shutil.which("parallel") is None:
        pytest.skip("GNU parallel is not installed")
    command = tmp_path / "a command"
    command.write_text(WAITING)
    command.chmod(0o755)
    recipe = subprocess.Popen([RECIPES / script, "2", command, "a name"], cwd=tmp_path, start_new_session=True)
    try:
        while len(list(tmp_path.glob("begun-*"))) < 2 and recipe.poll() is None:
            time.sleep(0.02)
        recipe.send_signal(number)
        assert recipe.wait(timeout=500) == status
        with pytest.raises(ProcessLookupError):  # there is none left
            os.killpg(recipe.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(recipe.pid, signal.SIGKILL)
    assert not (tmp_path / "finished").exists()


def test_manifests_hang_together():
    share, finish = manifest("share"), manifest("finish")
    assert {(job["apiVersion"], job["kind"]) for job in (share, finish)} == {("batch/v1", "Job")}
    assert (share["spec"]["completionMode"], share["spec"]["parallelism"]) == ("Indexed", share["spec"]["completions"])
    counted = {entry["name"]: entry["value"] for entry in container("share")["env"]}
    assert counted["JOB_COMPLETIONS"] == str(share["spec"]["completions"])
    assert container("share")["command"] == [*container("finish")["command"][:-1], "--shard", "auto"]
    assert container("finish")["command"][-1] == "--finish"
    for job in (share, finish):
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] in ("Never", "OnFailure")
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert f"job/{share['metadata']['name']}\n" in page


def test_the_page_names_what_there_is():
    page = (ROOT / "docs" / "cluster.md").read_text()
    for path in re.findall(r"\]\((recipes/[^)]*)\)", page) + re.findall(r"docs/(recipes/\S+\.(?:sh|yaml))", page):
        assert (ROOT / "docs" / path).exists()
    assert page.count("*Not run on") == 2


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("launch", LAUNCHERS)
def test_a_store_is_prepared_by_shares(tmp_path, launch):
    cohort = make_cohort(tmp_path / "cohort", train=3, test=1)
    annotate(cohort)
    assert main(["prepare", str(cohort), str(tmp_path / "whole"), "--workers", "1"]) == 0
    said = launch(["smile-fast", "prepare", str(cohort), str(tmp_path / "store")], tmp_path)
    assert "3 training and 1 held-out cases" in said
    assert tree(tmp_path / "store").keys() == tree(tmp_path / "whole").keys()
    assert Store.open(tmp_path / "store").cases == Store.open(tmp_path / "whole").cases


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A store, a run, its model, scans, and in "whole" what single processes make of them."""
    from tests.cohorts import write_nifti

    folder = tmp_path_factory.mktemp("cluster")
    run = trained(folder / "run", tiny_store(folder / "store"), **CURRICULUM)
    assert main(["relabel", str(run.path), "--undo", "0"]) == 0
    assert main(["export", str(run.path), str(folder / "model.onnx")]) == 0
    (folder / "scans").mkdir()
    for number in range(3):
        write_nifti(folder / "scans" / f"{number}.nii.gz", random_hu((40, 48, 6), 1, number)[:, 0].astype("int16"))
    return folder


def made(folder: Path) -> dict[str, bytes]:
    """What the commands write."""
    names = ("run/rounds", "labels")
    files = {f"{name}/{file}": content for name in names for file, content in tree(folder / name).items()}
    return files | {path.name: path.read_bytes() for path in (folder / "run").glob("evaluation*")}


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("launch", LAUNCHERS)
def test_every_command_is_shared_by_every_recipe(tmp_path, work, launch):
    """The same bytes as without shares: overlays and round.json, scores, label maps."""
    predict = ["smile-predict", str(work / "model.onnx"), str(work / "scans")]
    jobs: list[Callable[[Path], list[str]]] = [
        lambda folder: ["smile-fast", "relabel", str(folder / "run"), "--round", "1", "--device", "cpu"],
        lambda folder: ["smile-fast", "evaluate", str(folder / "run"), "--device", "cpu", "--split", "train"],
        lambda folder: [*predict, "-o", str(folder / "labels"), "--continue"],
    ]
    for folder in ("whole", "shared"):
        shutil.copytree(work / "run", tmp_path / folder / "run")
    for job in jobs:
        say(job(tmp_path / "whole"), tmp_path)
        launch(job(tmp_path / "shared"), tmp_path)
    expected = made(tmp_path / "whole")
    assert made(tmp_path / "shared") == expected
    assert len(expected) == 4 + 5 + 2
