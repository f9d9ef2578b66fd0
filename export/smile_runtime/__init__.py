"""Segment whole CT volumes with a model exported by smile-fast: numpy, nibabel, onnxruntime, no torch."""

__version__ = "0.1.0"
