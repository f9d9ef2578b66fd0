"""A trained run as one ONNX file, in several precisions, for several kinds of servers."""

from smile_fast.exporter.onnx_file import Exported, Targets, export_run, format_certificate

__all__ = ["Exported", "Targets", "export_run", "format_certificate"]
