"""Relabelling of a single case by a network whose logits a test chooses."""

import json
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from smile_fast.supervision import State
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round, open_round
from smile_fast.training.view import TrainingView
from smile_runtime.label_map import PSEUDO_BIT
from tests.runs import ORGANS, SHAPE, make_store

A, M, H, X = State.ANNOTATED, State.MISSING, State.HIDDEN, State.ABSENT
VOXELS = int(np.prod(SHAPE))


class Answers(nn.Module):
    """A network of stride 1 that answers with given logits [D, K, H, W], slice by slice."""

    def __init__(self, logits):
        super().__init__()
        self.config = SimpleNamespace(channels=1, output_stride=1, scan_stride=lambda spacing: 1)
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))
        self.asked = 0

    def forward(self, hu):
        first, self.asked = self.asked, self.asked + len(hu)
        return self.logits[first : first + len(hu)]


def answering(liver, pancreas):
    return Answers(np.stack([np.broadcast_to(liver, SHAPE), np.broadcast_to(pancreas, SHAPE)], axis=1))


def one_case(path, states, labels=None):
    """A view of a single case with the given states of liver and pancreas."""
    labels = np.zeros(SHAPE, np.uint8) if labels is None else labels
    store = make_store(
        path / "store", {"a": labels}, {("a", organ): s for organ, s in zip(ORGANS, states, strict=True)}
    )
    return TrainingView(store, store.declarations(), ["a"])


def run_round(model, view, path, gamma=0.5, scope="volume", number=1):
    """Overlays by case, and round.json without the counts of slices, which are checked here."""
    folder = relabel(model, view, path / "rounds", Round(number, gamma, scope)).folder
    written = open_round(path / "rounds", number)
    overlays = {case: written.pseudo_labels(case) for case in written.cases}
    record = json.loads((folder / "round.json").read_text())
    assert set(record.pop("slices")) == set(record.pop("digests")) == set(record["cases"])
    for name in ("schema", "weights", "sha256"):
        record.pop(name)
    record.pop("confidences", None)
    for case, overlay in overlays.items():
        by_slice = [(overlay == (PSEUDO_BIT | value)).sum(axis=(1, 2)) for value in range(1, len(view.organs) + 1)]
        np.testing.assert_array_equal(written.counts(case, len(overlay), view.organs), np.stack(by_slice, axis=1))
    return overlays, record


def distinct(seed=0):
    """Scores without ties, half of them positive."""
    return (np.random.default_rng(seed).permutation(VOXELS).reshape(SHAPE) - VOXELS // 2 + 0.5) / 1000
