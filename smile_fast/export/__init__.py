"""A trained run as one ONNX file, in several precisions, for several kinds of servers."""

from smile_fast.export.run import Exported, Targets, export_run, format_certificate

__all__ = ["Exported", "Targets", "export_run", "format_certificate"]
