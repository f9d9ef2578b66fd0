"""The report of one or several runs: one HTML page that needs nothing else."""

from smile_fast.report.builder import build_report, write_report

__all__ = ["build_report", "write_report"]
