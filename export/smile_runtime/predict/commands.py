"""What ``smile-predict`` does with its arguments."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import check_json, check_results, printable
from smile_runtime.io.organ_tables import check_table, write_table
from smile_runtime.io.scan_files import SUFFIXES
from smile_runtime.predict.folder import list_jobs, note_finished, output_folder, predict_folder, shared_folder
from smile_runtime.predict.pipeline import Job
from smile_runtime.predict.predictor import Predictor, check_outputs
from smile_runtime.predict.preview import picture_path
from smile_runtime.predict.run_report import FAILED, KEPT, RunReport, of_share
from smile_runtime.volume.organ_volumes import check_volumes, write_volumes

_SHOWN = 3  # names of scans in a sentence
FOLDER_TABLES = ("organs.label.txt", "organs.ctbl")  # what a folder gets without being asked


def predict(args: argparse.Namespace) -> None:
    """Run ``smile-predict``; see ``smile-predict --help`` for the arguments.

    Raises:
        InputError: An argument or an input is no good; of a folder, at least one scan is not.
    """
    args.report, args.volumes = (of_share(path, args.shard) for path in (args.report, args.volumes))
    if not os.path.isdir(args.scan):
        _predict_scan(args)
    elif args.finish:
        _finish_folder(args)
    else:
        _predict_folder(args)


def _predict_scan(args: argparse.Namespace) -> None:
    for option, given in (("--continue", args.resume), ("--shard", args.shard), ("--finish", args.finish)):
        if given:
            raise InputError(f"{option}: {args.scan} is not a folder; give a folder of scans, or leave {option} out")
    _check_names(args)
    predictor, report = _prepare(args)
    picture = picture_path(args.output) if args.preview else None
    check_outputs([args.scan, args.model], args.output, picture, *_side_files(args))
    with shared_folder(Path(args.output).parent):
        prediction = predictor.predict_file(args.scan, args.output, preview_png=picture, show_progress=True)
        report.add(Path(args.scan), prediction)
        _write_side_files(args, predictor, report)
    width = max(len(organ) for organ in ("organ", *prediction.volumes_ml))
    print(f"{'organ':<{width}}  {'ml':>9}")
    for organ, millilitres in prediction.volumes_ml.items():
        print(f"{organ:<{width}}  {millilitres:>9.1f}")
    print(f"wrote {printable(prediction.path)} in {prediction.seconds:.1f} s")
    _warn(report)


def _predict_folder(args: argparse.Namespace) -> None:
    _check_names(args)
    out, jobs = _folder_jobs(args)
    share = jobs if args.shard is None else args.shard.of(jobs)
    predictor, report = _prepare(args)
    with output_folder(out, with_others=args.shard is not None):
        _check_side_files(args, out, jobs)
        for name in FOLDER_TABLES:
            write_table(out / name, predictor.card.organs)
        predict_folder(predictor, share, report, resume=args.resume)
        _write_side_files(args, predictor, report)
    failed, kept = report.count(FAILED), report.count(KEPT)
    print(
        f"share {args.shard}: " * (args.shard is not None)
        + f"{len(share) - failed} of {len(share)} scans have their results in {printable(out)}"
        + f" ({kept} kept)" * bool(kept)
    )
    _warn(report)
    if failed:
        raise InputError(f"{args.scan}: {failed} of {len(share)} scans could not be finished; see the errors above")


def _finish_folder(args: argparse.Namespace) -> None:
    """Say what is missing of the results that shares were to write; if nothing is, write what is about all of them."""
    if args.shard is not None:
        raise InputError("--finish: looks at what all shares did; leave --shard out")
    _check_names(args)
    out, jobs = _folder_jobs(args)
    predictor, report = _prepare(args)
    with output_folder(out):
        _check_side_files(args, out, jobs)
        missing = note_finished(predictor, jobs, report)
        if missing:
            first = ", ".join(printable(job.scan.name) for job in missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
            raise InputError(
                f"{out}: {len(missing)} of {len(jobs)} scans have no results of this model and options ({first}); run "
                "their shards, or all that is missing with --continue"
            )
        _write_side_files(args, predictor, report)
    print(f"all {len(jobs)} scans have their results in {printable(out)}")
    _warn(report)


def _folder_jobs(args: argparse.Namespace) -> tuple[Path, list[Job]]:
    """The folder of the results, and all scans with the names of theirs, by name."""
    out = Path(args.output)
    jobs = list_jobs(
        Path(args.scan),
        out,
        previews=args.preview,
        model=Path(args.model),
        warn=lambda text: print(f"warning: {text}", file=sys.stderr),
    )
    if out.name.lower().endswith(SUFFIXES):
        raise InputError(f"{out}: named like a file, and {args.scan} is a folder; give a folder for its label maps")
    return out, jobs


def _check_side_files(args: argparse.Namespace, out: Path, jobs: Sequence[Job]) -> None:
    results = [path for job in jobs for path in (job.labels, job.picture) if path is not None]
    tables = [out / name for name in FOLDER_TABLES]
    check_results(_side_files(args), [args.model, *(job.scan for job in jobs)], [*results, *tables])


def _warn(report: RunReport) -> None:
    for warning in report.warnings():
        print(f"warning: {warning}".replace("\n", " "), file=sys.stderr)


def _prepare(args: argparse.Namespace) -> tuple[Predictor, RunReport]:
    predictor = Predictor(
        args.model,
        args.threads,
        args.provider,
        batch=args.batch,
        crop=not args.no_crop,
        largest_component=args.largest_component,
    )
    return predictor, RunReport(predictor)


def _side_files(args: argparse.Namespace) -> list[str]:
    return [*args.organ_table, *(path for path in (args.volumes, args.report) if path is not None)]


def _check_names(args: argparse.Namespace) -> None:
    """Refuse, before a model is loaded, side files whose suffix is not that of a known format."""
    for path in args.organ_table:
        check_table(path)
    if args.volumes is not None:
        check_volumes(args.volumes)
    if args.report is not None:
        check_json(args.report, "a report")


def _write_side_files(args: argparse.Namespace, predictor: Predictor, report: RunReport) -> None:
    for path in args.organ_table:
        write_table(path, predictor.card.organs)
    if args.volumes is not None:
        write_volumes(args.volumes, report.volumes)
    if args.report is not None:
        report.write(args.report)
