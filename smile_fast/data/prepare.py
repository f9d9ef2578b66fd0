"""From a raw dataset to the fast store: check every case, convert it, quarantine what is broken.

Any number of calls may be at work in one folder; they share the cases. Whatever one of them does appears whole: an
array under the name of its content, then case.json that vouches for it, and when all are there, the index. The index
before stays what it was until then, with every file that it names.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from smile_fast.data.annotations import FILE_NAME
from smile_fast.data.case_info import CaseInfo
from smile_fast.data.dataset import RawDataset
from smile_fast.data.preparing.case_record import CaseRecord, Wanted, read_broken, read_case
from smile_fast.data.preparing.cohort_work import CohortWork, convert_all
from smile_fast.data.preparing.conversion import refuse_shortage
from smile_fast.data.preparing.disk_need import check_room
from smile_fast.data.preparing.one_case import Outcome, current, looks_done, needs_room
from smile_fast.data.preparing.sweep import sweep
from smile_fast.data.processes import worker_number
from smile_fast.data.store import BROKEN_FILE, CASES, INDEX, QUARANTINE, SCHEMA, Store, write_index
from smile_fast.records import write_record
from smile_fast.supervision.states import State
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.progress import progress
from smile_runtime.sharding import WHOLE, Shard


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        store: the finished store.
        converted: cases converted by this call.
        kept: cases that were up to date, or that another call has converted meanwhile.
        quarantined: case -> one sentence.
        empty: organ -> cases in which it is declared annotated but has no voxel.
        doubted: warning -> cases whose values are hardly Hounsfield units, or whose header says too little or too much.
        padded: cases with padding that was read as air.
        unseen: organs of which no training case shows a voxel that training may see.
    """

    store: Store
    converted: int
    kept: int
    quarantined: dict[str, str]
    empty: dict[str, list[str]]
    doubted: dict[str, list[str]]
    padded: list[str]
    unseen: list[str]


@dataclass(frozen=True)
class ShardDone:
    """What `prepare_shard` did.

    Attributes:
        converted: cases converted by this call.
        kept: cases that were up to date.
        broken: case -> one sentence.
        missing: cases of the whole cohort that are neither converted nor known to be broken.
        cases: number of cases of the whole cohort.
    """

    converted: int
    kept: int
    broken: dict[str, str]
    missing: list[str]
    cases: int


def prepare(
    dataset: RawDataset,
    out: Path,
    *,
    annotations: Path | None = None,
    workers: int | None = None,
    force: bool = False,
    rehash: bool = False,
    strict: bool = False,
    report: Callable[[str], None] = print,
    note: Callable[[str], None] = print,
) -> Prepared:
    """Check and convert every case of a dataset.

    A case whose sources, declaration and stored arrays are unchanged is kept, so an interrupted call is continued by
    the same call, and calls at the same time share the work. A store of an old schema that was made from the same
    dataset is converted again as a whole.

    Args:
        dataset: the cohort.
        out: the store's folder; made if it is not there.
        annotations: annotations.csv; by default the dataset's.
        workers: processes; by default one a CPU. 1 stays in this process.
        force: convert every case again, and take over a folder that holds the store of another cohort: of other
            organs, or made from none of this cohort's files.
        rehash: read all sources and stored arrays again. Otherwise a source of the same size, times and inode is
            taken for unchanged, and an array for whole if it is there and of its size.
        strict: finish the store only if no case is broken.
        report: gets one sentence for every broken case, in the end.
        note: gets what the work will take on disk before it begins, and whether it waits for others.

    Raises:
        InputError: unusable annotations; an unwritable or foreign `out`, or one where other data are being prepared;
            too little room, memory or the like; no training case is left, or none of them shows an organ; or cases are
            broken and `strict` is true. A store that was there stays as it was, and whatever was converted stays for
            the next call.
    """
    processes = worker_number(workers)
    work = CohortWork.plan(dataset, Path(out), annotations)
    with work.joined() as leave:
        work.claim(force)
        outcomes = _convert(work, WHOLE, processes, force, rehash, note)
        return _finish(work, outcomes, strict, report, leave)


def prepare_shard(
    dataset: RawDataset,
    out: Path,
    shard: Shard,
    *,
    annotations: Path | None = None,
    workers: int | None = None,
    force: bool = False,
    rehash: bool = False,
    strict: bool = False,
    report: Callable[[str], None] = print,
    note: Callable[[str], None] = print,
) -> ShardDone:
    """Check and convert a share of the cases; writes no index, see `finish`. Arguments and errors as of `prepare`."""
    processes = worker_number(workers)
    work = CohortWork.plan(dataset, Path(out), annotations)
    with work.joined():
        work.claim(force)
        outcomes = _convert(work, shard, processes, force, rehash, note)
        broken = {name: outcome.problem for name, outcome in sorted(outcomes.items()) if outcome.kind == "broken"}
        for sentence in broken.values():
            report(sentence)
        if broken and strict:
            raise InputError(f"{out}: {len(broken)} of {len(outcomes)} cases of shard {shard} are broken; repair them")
        missing = [name for name, wanted in work.wanted.items() if name not in outcomes and not _is_decided(wanted)]
        converted = sum(outcome.kind == "converted" for outcome in outcomes.values())
        kept = len(outcomes) - converted - len(broken)
        return ShardDone(converted, kept, broken, missing, len(work.wanted))


def finish(
    dataset: RawDataset,
    out: Path,
    *,
    annotations: Path | None = None,
    strict: bool = False,
    report: Callable[[str], None] = print,
) -> Prepared:
    """Write the index of a store whose cases are all converted or known to be broken. Arguments as of `prepare`.

    Raises:
        InputError: cases are missing or not up to date; and as `prepare`.
    """
    work = CohortWork.plan(dataset, Path(out), annotations)
    if not (work.out / CASES).is_dir():
        raise InputError(f"{out}: no store, none of its cases is converted; make one with 'smile-fast prepare'")
    with work.joined() as leave:
        work.claim(force=False)
        outcomes, missing = dict[str, Outcome](), list[str]()
        for name, wanted in work.wanted.items():
            outcome = current(wanted)
            if outcome is None and (problem := read_broken(wanted)) is not None:
                outcome = Outcome(name, "broken", problem)
            if outcome is None:
                missing.append(name)
            else:
                outcomes[name] = outcome
        if missing:
            raise InputError(
                f"{out}: {len(missing)} of {len(work.wanted)} cases are missing or not up to date ({listed(missing)}); "
                "convert them with 'smile-fast prepare', whole or by shards"
            )
        return _finish(work, outcomes, strict, report, leave)


def _convert(
    work: CohortWork, shard: Shard, processes: int, force: bool, rehash: bool, note: Callable[[str], None]
) -> dict[str, Outcome]:
    """Do a share of the cases; what became of each, the kept ones too."""
    cases = shard.of(sorted(work.dataset.cases, key=lambda case: case.name))
    jobs, kept = work.to_do(cases, force=force, rehash=rehash)
    outcomes = {outcome.case: outcome for outcome in kept}
    if jobs:
        if new := [job.wanted.case for job in jobs if needs_room(job)]:
            note(check_room(work.out, new))
        done = convert_all(jobs, processes, note)
        for outcome in progress(done, total=len(jobs), label="preparing cases"):
            outcomes[outcome.case] = outcome
    return outcomes


def _is_decided(wanted: Wanted) -> bool:
    """Whether a case is converted, or known to be broken, as far as can be told without reading its sources."""
    return looks_done(wanted) or read_broken(wanted, by_looks=True) is not None


def _finish(
    work: CohortWork,
    outcomes: Mapping[str, Outcome],
    strict: bool,
    report: Callable[[str], None],
    leave: Callable[[], bool],
) -> Prepared:
    """Write the index of all cases that are not broken, which are up to date."""
    out, organs = work.out, work.dataset.organs
    broken = {name: outcomes[name].problem for name in work.wanted if outcomes[name].kind == "broken"}
    _write_quarantine(out / QUARANTINE, broken)
    for sentence in broken.values():
        report(sentence)
    if broken and strict:
        left = "the store stays as it was" if (out / INDEX).exists() else "the store is not finished"
        raise InputError(
            f"{out}: {left}, {len(broken)} of {len(work.wanted)} cases are broken, see {out / QUARANTINE}; repair them "
            "and run again, or leave --strict out to go on without them"
        )
    infos: list[CaseInfo] = []
    empty: dict[str, list[str]] = {}
    doubted: dict[str, list[str]] = {}
    padded: list[str] = []
    for name in (name for name in work.wanted if name not in broken):
        record = _record(work, outcomes[name])
        infos.append(replace(record.case, source=work.source(name)))
        for organ in _empty(record.case):
            empty.setdefault(organ, []).append(name)
        for warning in record.warnings:
            doubted.setdefault(warning, []).append(name)
        if record.padding is not None:
            padded.append(name)
    unseen = _unseen(work, infos)
    try:
        write_index(out, organs, infos)
    except InputError as error:
        refuse_shortage(error, out)
        raise
    del infos  # of thousands of cases, twice is too often
    store = Store.open(out)
    if leave():
        sweep(store, work.wanted)
    converted = sum(outcome.kind == "converted" for outcome in outcomes.values())
    return Prepared(store, converted, len(store.cases) - converted, broken, empty, doubted, padded, unseen)


def _unseen(work: CohortWork, infos: list[CaseInfo]) -> list[str]:
    """The organs of which no training case shows a voxel that training may see.

    Raises:
        InputError: all of them, or there is no training case.
    """
    out, organs = work.out, work.dataset.organs
    training = [info for info in infos if info.split == "train"]
    if not training:
        raise InputError(f"{out}: every training case is broken, see {out / QUARANTINE}; nothing can be trained")
    unseen = [organ for organ in organs if not any(organ in info.runs for info in training)]
    if len(unseen) == len(organs):
        raise InputError(
            f"{out}: nothing is annotated, no training case shows a voxel of an organ that training may see; correct "
            f"{FILE_NAME} or the label maps, and run again"
        )
    return unseen


def _record(work: CohortWork, outcome: Outcome) -> CaseRecord:
    """What case.json says of a case that was converted or kept; that it was broken once is forgotten."""
    wanted = work.wanted[outcome.case]
    record = read_case(wanted)
    if record is None or record.case.sources != outcome.sources:
        raise InputError(f"{wanted.folder}: was changed while the store was made; run 'prepare' again")
    with suppress(OSError):
        (wanted.folder / BROKEN_FILE).unlink(missing_ok=True)
    return record


def _empty(info: CaseInfo) -> list[str]:
    return [organ for organ, state in info.states.items() if state is State.ANNOTATED and organ not in info.runs]


def _write_quarantine(path: Path, broken: dict[str, str]) -> None:
    try:
        if broken:
            write_record(path, {"schema": SCHEMA, "cases": broken})
        else:
            path.unlink(missing_ok=True)
    except InputError as error:
        refuse_shortage(error, path)
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be removed ({reason(error)}); make its folder writable") from error
