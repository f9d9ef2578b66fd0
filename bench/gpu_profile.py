"""Where the time of a workload goes that misses a goal: kernels by time, ncu's view of them, functions of the host.

python -m bench.gpu_profile WORKLOAD             # what `make gpu PART=profile,profile-commands` runs and keeps
python -m bench.gpu_profile WORKLOAD --once      # one run between two marks: what ncu looks at
"""

import argparse
import cProfile
import io
import pstats
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from bench import catalogue, machine
from bench.commands import cohort, training
from bench.commands.workloads import NAMES as COMMANDS
from bench.commands.workloads import WORKLOADS, Scoring, Training
from bench.comparison import CUDA, SMOKE, Conditions
from bench.gpu_goals import GOALS, MET, judge
from bench.gpu_steps import Steps, run
from bench.records import commit_of
from bench.timing import Timer
from smile_runtime.io.files import atomic_path

RUNS, WARMUPS, LINES = 10, 3, 25
SECONDS, NCU_SECONDS = 120, 60
NCU = ["ncu", "--profile-from-start", "off", "--target-processes", "all", "--launch-count", "8"]
NCU += [option for name in ("SpeedOfLight", "Occupancy", "LaunchStats") for option in ("--section", name)]
# What one reads first; the rest of ncu's tables is what one asks for when these are odd.
NCU_LINES = (
    "Duration",
    "DRAM Throughput",
    "Compute (SM) Throughput",
    "Registers Per Thread",
    "Grid Size",
    "Block Size",
    "Achieved Occupancy",
)


def ops(steps: Steps) -> None:
    """Profile the ops that miss a goal: torch's profiler, then ncu."""
    _profile(steps, [name for name in _missed(steps) if not _on_host(name)])


def commands(steps: Steps) -> None:
    """Profile the commands that miss a goal, and whole volumes: on the host, where most of their time goes."""
    _profile(steps, [name for name in _missed(steps) if _on_host(name)])


def _on_host(name: str) -> bool:
    return name in COMMANDS or name.startswith((catalogue.VOLUMES, catalogue.PREDICT))


def _missed(steps: Steps) -> list[str]:
    """Workloads of the goals that are not met, or that nobody has measured: their profile says why, or how far."""
    known = [*catalogue.names(CUDA), *COMMANDS]
    found: dict[str, None] = {}
    for goal in GOALS:
        verdict = judge(goal, steps.record.benchmarks)
        if verdict.state != MET:
            names = [verdict.workload] if verdict.workload else [n for n in known if fnmatch(n, goal.workload)]
            found |= dict.fromkeys(name for name in names if name in known)
    return list(found)


def _profile(steps: Steps, names: list[str]) -> None:
    paths = [path.with_name(f"{path.stem}-profile.txt") for path in steps.paths]
    for name in sorted(names, key=lambda name: name in sections(paths[0], steps.commit)):
        command = [sys.executable, "-m", "bench.gpu_profile", name]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "profile.txt"
            if not steps.step(f"profile of {name}", [*command, "--out", str(out)], SECONDS):
                continue
            text = out.read_text(encoding="utf-8")
        if not _on_host(name) and steps.seconds_left > NCU_SECONDS:
            passed, output = run([*NCU, *command, "--once"], NCU_SECONDS, {})
            text += "\n".join(["", *(ncu_lines(output) if passed else [f"ncu: {output.strip()[-300:]}"]), ""])
        put(paths[0], name, text, steps.commit)
        for path in paths[1:]:
            shutil.copyfile(paths[0], path)


def sections(path: Path, commit: dict[str, Any] | None = None) -> dict[str, str]:
    """The profiles that a file holds, by workload; of one commit, or of all."""
    if not path.exists():
        return {}
    found = {}
    for part in path.read_text(encoding="utf-8").split("## ")[1:]:
        head, _, text = part.partition("\n")
        name, _, at = head.partition(" at ")
        if commit is None or at == commit_of(commit):
            found[name] = f"{at}\n{text.strip()}\n"
    return found


def put(path: Path, name: str, text: str, commit: dict[str, Any]) -> None:
    """Write a profile into the file beside a record, in place of that workload's last one; the others stay."""
    found = sections(path) | {name: f"{commit_of(commit)}\n{text.strip()}\n"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        unfinished.write_text("\n".join(f"## {key} at {value}" for key, value in found.items()), encoding="utf-8")


def ncu_lines(output: str) -> Iterator[str]:
    """What of ncu's output is kept: the kernels, and a few lines of each."""
    yield "ncu:"
    for line in output.splitlines():
        text = " ".join(line.split())
        if ", Context " in text or text.startswith(NCU_LINES):
            yield f"  {text[:150]}"


def by_kernel(events: Iterable[tuple[str, float]], runs: int) -> list[str]:
    """Lines of a profile, the kernel with most time first.

    Args:
        events: name and microseconds of every kernel that ran. runs: how often the workload did.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in events:
        times[name].append(microseconds)
    total = sum(map(sum, times.values()))
    lines = [f"{total / runs:.1f} us of kernels a run, {sum(map(len, times.values())) / runs:.1f} launches"]
    for name, taken in sorted(times.items(), key=lambda item: -sum(item[1]))[:LINES]:
        share, a_run = sum(taken) / total, len(taken) / runs
        lines.append(f"{sum(taken) / runs:10.1f} us {share:6.1%} {a_run:6.1f} x {name[:110]}")
    return lines


def kernels(call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> list[str]:
    """Kernels of a call by time; `prepare` runs before each, and its kernels do not count. On a CPU operations."""
    on_gpu = torch.cuda.is_available()
    wait: Callable[[], object] = torch.cuda.synchronize if on_gpu else (lambda: None)
    kinds, device = torch.profiler.ProfilerActivity, torch.autograd.DeviceType
    activity, type_of = (kinds.CUDA, device.CUDA) if on_gpu else (kinds.CPU, device.CPU)
    for _ in range(WARMUPS):
        call()
    taken: list[tuple[str, float]] = []
    for _ in range(RUNS):
        prepare()
        wait()
        with torch.profiler.profile(activities=[activity]) as profiler:
            call()
            wait()
        taken += [
            (event.name, event.time_range.elapsed_us())
            for event in profiler.events() or []
            if event.device_type == type_of and not event.is_user_annotation
        ]
    return by_kernel(taken, RUNS)


def host(call: Callable[[], object]) -> list[str]:
    """Functions of the host by their own time."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(LINES)
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]


def of_workload(name: str, conditions: Conditions, folder: Path, timer: Timer | None, *, once: bool) -> list[str]:
    """Profile ours on a workload of the catalogue."""
    comparison = catalogue.comparison(name, conditions, folder)
    ours = comparison.ours[0]
    if _on_host(name):
        ours.run()
        return host(ours.run)
    if once:
        for _ in range(WARMUPS):
            ours.refresh()
            ours.run()
        torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
        ours.run()
        torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
        return []
    return kernels(ours.run, lambda: (ours.refresh(), timer and timer.prepare(comparison.warm)))


def of_command(name: str, folder: Path, device: str, cohorts: Path) -> list[str]:
    """Profile a whole command: a training's step by kernels, other commands by functions of the host."""
    workload = WORKLOADS[name.partition("/")[2]]
    of = workload.training if isinstance(workload, Scoring) else workload
    run_folder = training.train(short(of), folder / "run", device, cohorts)
    if isinstance(workload, Training):
        from smile_fast.training.one_batch import steps_on_one_batch
        from smile_fast.training.run import Run

        return kernels(steps_on_one_batch(Run.open(run_folder), torch.device(device)))
    from smile_fast.cli.main import main as smile_fast

    arguments = ["evaluate", str(run_folder), "--split", "validation", "--device", device]
    if name.endswith("export"):
        arguments = ["export", str(run_folder), str(folder / "model.onnx")]
    return host(lambda: smile_fast(arguments))


def short(workload: Training) -> Training:
    """The same for a moment: only its run is needed."""
    return replace(workload, epochs=min(workload.epochs, 0.2))


def main(arguments: list[str] | None = None) -> int:
    """Profile one workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*catalogue.names(CUDA), *COMMANDS], metavar="WORKLOAD")
    parser.add_argument("--out", type=Path, help="file to write (default: print)")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="small, on a CPU: whether it runs")
    given = parser.parse_args(arguments)
    conditions = replace(SMOKE, rehearsed=True) if given.rehearse else Conditions(CUDA)
    with tempfile.TemporaryDirectory() as folder:
        if given.name in COMMANDS:
            lines = of_command(given.name, Path(folder), conditions.device, cohort.FOLDER)
        else:
            timer = None if given.rehearse else catalogue.timer(given.name, CUDA)
            lines = of_workload(given.name, conditions, Path(folder), timer, once=given.once)
    text = "\n".join([f"{machine.describe_gpu()['gpu']}, {RUNS} runs", *lines, ""])
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
