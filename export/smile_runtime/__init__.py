"""Segment whole CT volumes with a model exported by smile-fast: numpy, nibabel, onnxruntime, no torch.

io       reads and writes files: NIfTI volumes, JSON and tables of organs, each whole or not at all.
volume   computes on volumes in memory: orientation, the body's box, HU ranges, components, organ volumes.
model    reads an exported model file: what it says of itself, whether it is trusted, the session that runs it.
predict  goes from a scan, or a folder of them, to label maps: the `Predictor` and the command ``smile-predict``.

A room imports only the ones above it. Importing this package loads none of them, so that ``--help`` answers at once.
"""

__version__ = "0.1.0"
