"""One command for a machine with an NVIDIA GPU: builds, tests, sanitizes, measures. `make gpu`, or python -m bench.gpu.

Writes bench/results/<gpu>.json, and a copy to $OUT where OUT is set, anew after every step: whether the steps passed,
seconds, the last lines of their output, and the figures of the benchmarks, as on a CPU. At the end the goals stand
beside the figures.

Every step and every benchmark is a process of its own: one that fails, hangs or breaks the CUDA context stops none of
the others. It runs in parts, of which each ends within nine minutes: --part NAME,NAME runs some of them, --part list
says what they are; what other parts have found at the same commit stays in the file. The exit status is 1 if a step
failed or a part lacks something, 2 if there is no GPU or no such part.
"""

import argparse
import sys

from bench import gpu_goals, machine, records
from bench.gpu_parts import MOST_SECONDS, PARTS, chosen, listing
from bench.gpu_steps import Steps

LIST = "list"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 if a step of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="", metavar="NAME,NAME", help=f"{', '.join(PARTS)}, or list; default: all")
    wanted = parser.parse_args(arguments).part
    if wanted == LIST:
        print("\n".join(listing()))
        return 0
    try:
        parts = chosen(wanted)
        steps = _steps()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lacking = [name for name in parts if not _run(name, steps)]
    lines, _ = gpu_goals.report(steps.record)
    print("\n".join(["", *lines, ""]))
    failed = [name for name, step in steps.record.steps.items() if not step["passed"]]
    print(f"{len(steps.record.steps)} steps, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    if steps.left_out:
        print(f"for want of time left out: {', '.join(steps.left_out)}")
    print("\n".join(str(path) for path in steps.paths))
    return 1 if failed or lacking else 0


def _steps() -> Steps:
    """The record to go on with.

    Raises:
        ValueError: there is no GPU, no commit is known, or the record is broken.
    """
    found, commit = machine.describe_gpu(), machine.commit()
    if found["gpu"] == "none":
        raise ValueError("torch sees no CUDA device; make gpu needs one, and a torch that is built for it")
    if not commit["commit"]:
        raise ValueError("no commit is known: run it in a git checkout, or name the commit: COMMIT=abc make gpu")
    steps = Steps(found, commit, records.RESULTS)
    steps.save()
    return steps


def _run(name: str, steps: Steps) -> bool:
    """Run a part within its time; False where it lacks something."""
    part = PARTS[name]
    if reason := part.missing():
        print(f"error: {name} {reason}", file=sys.stderr, flush=True)
        return False
    print(f"== {name}: {part.what}, about {part.estimate / 60:.1f} minutes", flush=True)
    steps.begin(MOST_SECONDS)
    part.run(steps)
    steps.benchmarks(part.names)
    return True


if __name__ == "__main__":
    sys.exit(main())
