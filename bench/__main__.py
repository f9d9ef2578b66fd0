"""The commands behind `make bench`, `bench-check`, `bench-table`, `bench-goals` and `bench-smoke`.

Exit status: 0 well; 1 worse, missed or in disagreement; 2 bad arguments; 3 nothing is recorded to compare with.
"""

import argparse
import sys
from collections.abc import Sequence

from bench import check, goals, heap, machine, record, table
from bench.ops import NAMES
from bench.run import DisagreementError, Settings, run, smoke
from bench.whole_volume import workloads

WORSE, NO_RECORD = 1, 3


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
        command.add_argument("--threads", type=int, default=1 if name == "smoke" else record.THREADS)
        command.add_argument("--target", default=machine.instruction_set(), help="instruction set")
        command.add_argument("--allocator", choices=heap.ALLOCATORS, default="default")
        if name != "smoke":
            command.add_argument("--select", default="", help="ops or patterns of op/workload, comma-separated")
    commands.add_parser("table", help="write the README's table from the newest record")
    commands.add_parser("goals", help="hold the newest record against the goals")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    given = parser().parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except record.NoRecordError as error:
        print(f"no record: {error}", file=sys.stderr)
        return NO_RECORD
    except DisagreementError as error:
        print(error, file=sys.stderr)
        return WORSE


def _settings(given: argparse.Namespace) -> Settings:
    return Settings(given.threads, given.allocator, given.target)


def _names(given: argparse.Namespace) -> list[str]:
    long = workloads.LONG_NAMES if given.select else []  # by name only
    try:
        return record.selected([*NAMES, *workloads.NAMES, *long], given.select)
    except ValueError as error:
        parser().error(str(error))


def _run(given: argparse.Namespace) -> int:
    measured = run(_names(given), _settings(given))
    if not measured:
        print("nothing was measured, nothing is recorded")
        return WORSE
    print(f"recorded in {record.save(measured).relative_to(machine.ROOT)}")
    return 0


def _check(given: argparse.Namespace) -> int:
    settings, names = _settings(given), _names(given)
    path = record.path_of(settings.machine())
    recorded = record.read(path)  # before minutes are spent
    print(f"against {path.name}, {record.commits(record.figures(recorded))}, {recorded['datetime']}")
    for key, value in settings.machine().items():
        if recorded["machine_info"].get(key) != value:
            print(f"note         {key} is now {value}, recorded with {recorded['machine_info'].get(key)}")

    def measure(wanted: list[str]) -> dict[str, record.Figures]:
        measured = run(wanted, settings)
        return record.figures(measured) if measured else {}

    return 0 if check.gate(record.figures(recorded), names, measure) else WORSE


def _smoke(given: argparse.Namespace) -> int:
    return smoke(_settings(given))


def _table(given: argparse.Namespace) -> int:
    table.write(table.tables(record.RESULTS))
    return 0


def _goals(given: argparse.Namespace) -> int:
    name, newest = record.newest()
    measured = record.figures(newest)
    lines, none_missed = goals.report(measured)
    print("\n".join(lines))
    print(f"{name}, {record.commits(measured)}, {newest['datetime']}; medians with the default allocator")
    return 0 if none_missed else WORSE


_COMMANDS = {"run": _run, "check": _check, "smoke": _smoke, "table": _table, "goals": _goals}

if __name__ == "__main__":
    sys.exit(main())
