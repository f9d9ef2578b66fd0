"""The commands behind `make bench`, `bench-check`, `bench-table`, `bench-goals` and `bench-smoke`.

Exit status: 0 well; 1 worse, missed or in disagreement; 2 bad arguments, or a broken record; 3 nothing is recorded
to compare with.
"""

import argparse
import sys
from collections.abc import Sequence

from bench import allocators, benchmark_table, catalogue, check, goals, gpu_goals, gpu_table, machine, records
from bench.comparison import CPU
from bench.data_path import prepare_scale
from bench.runner import DisagreementError, Settings, run, smoke

WORSE, BROKEN, NO_RECORD = 1, 2, 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "measure and record"),
        ("check", "measure again and compare with this machine's record"),
        ("smoke", "run every workload once, small: whether all runs and agrees"),
    ):
        command = commands.add_parser(name, help=text)
        # Threads that fight for a busy core only wait: a smoke run has one.
        command.add_argument("--threads", type=int, default=1 if name == "smoke" else records.THREADS)
        command.add_argument("--target", default=machine.instruction_set(), help="instruction set")
        command.add_argument("--allocator", choices=allocators.ALLOCATORS, default="default")
        if name != "smoke":
            command.add_argument("--select", default="", help="ops or patterns of op/workload, comma-separated")
        if name == "run":
            command.add_argument("--remark", default="", help="said of every figure: that others worked, too")
    commands.add_parser("table", help="write the README's tables from the newest records")
    commands.add_parser("goals", help="hold the newest record of a CPU, and those of all GPUs, against their goals")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    given = parser().parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except records.NoRecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_RECORD
    except records.BrokenRecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return BROKEN
    except DisagreementError as error:
        print(error, file=sys.stderr)
        return WORSE


def _settings(given: argparse.Namespace) -> Settings:
    return Settings(given.threads, given.allocator, given.target)


def _names(given: argparse.Namespace) -> list[str]:
    try:
        return records.selected(catalogue.names(CPU, long=bool(given.select)), given.select)
    except ValueError as error:
        parser().error(str(error))


def _run(given: argparse.Namespace) -> int:
    measured = run(_names(given), _settings(given))
    if measured is None:
        print("nothing was measured, nothing is recorded")
        return WORSE
    measured = measured.remarked(given.remark)
    print(f"recorded in {records.save(measured).relative_to(machine.ROOT)}")
    return 0


def _check(given: argparse.Namespace) -> int:
    settings, names = _settings(given), _names(given)
    path = records.path_of(settings.machine())
    recorded = records.read(path)  # before minutes are spent
    print(f"against {path.name}, {records.commits(recorded.benchmarks.values())}, {recorded.datetime}")
    for key, value in settings.machine().items():
        if recorded.machine.get(key) != value:
            print(f"note         {key} is now {value}, recorded with {recorded.machine.get(key)}")

    def measure(wanted: list[str]) -> dict[str, records.Figures]:
        measured = run(wanted, settings)
        return measured.benchmarks if measured else {}

    return 0 if check.gate(recorded.benchmarks, names, measure) else WORSE


def _smoke(given: argparse.Namespace) -> int:
    return smoke(_settings(given))


def _table(given: argparse.Namespace) -> int:
    benchmark_table.write(benchmark_table.tables())
    benchmark_table.write(gpu_table.tables(), begin=benchmark_table.GPU_BEGIN, end=benchmark_table.GPU_END)
    return 0


def _goals(given: argparse.Namespace) -> int:
    ranked = records.ranked(first=machine.cpu())
    if not ranked:
        raise records.NoRecordError("no run of two threads is recorded; make bench writes one")
    held = {name: record.benchmarks | prepare_scale.recorded() for name, record in ranked}
    lines, none_missed = goals.report(held)
    print("\n".join(lines))
    for name, record in ranked:
        measured = record.benchmarks.values()
        said = f"{records.commits(measured)}{records.remarks(measured)}, {record.datetime}"
        print(f"{name}, {said}; medians with the default allocator")
    for name, record in records.gpus().items():
        more, met = gpu_goals.report(record)
        print("\n".join(["", name, *more]))
        none_missed = none_missed and met
    return 0 if none_missed else WORSE


_COMMANDS = {"run": _run, "check": _check, "smoke": _smoke, "table": _table, "goals": _goals}

if __name__ == "__main__":
    sys.exit(main())
