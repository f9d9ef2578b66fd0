"""Small stores and run folders, written without training: random weights predict well enough to be scored."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smile_fast.data.arrays import write_array
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo, StoredBox, gather_counts
from smile_fast.data.store import CASES, Store, write_index
from smile_fast.models import Segmenter
from smile_fast.supervision import State
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.rounds import Round
from smile_fast.training.run import Run
from smile_fast.training.unfinished_round import UnfinishedRound, write_round
from smile_runtime.label_map import PSEUDO_BIT
from smile_runtime.volume.preprocessing import BodyRule, body_box, slice_context

ORGANS = ("liver", "pancreas")
SHAPE = (6, 40, 48)  # D, H, W
SPACING = (4.0, 2.0, 1.0)  # z, y, x mm
BOXES = {1: (slice(1, 5), slice(8, 24), slice(6, 22)), 2: (slice(2, 4), slice(26, 32), slice(26, 40))}


def ct(seed: int = 0) -> NDArray[np.int16]:
    """A body of soft tissue in air, brighter organs in it."""
    rng = np.random.default_rng(seed)
    hu = np.full(SHAPE, -1000.0)
    hu[:, 3:-3, 3:-3] = 40
    for value, box in BOXES.items():
        hu[box] = 60 + 40 * value
    return (hu + rng.normal(0, 10, SHAPE)).astype(np.int16)


def truth() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    for value, box in BOXES.items():
        labels[box] = value
    return labels


def make_store(
    path: Path,
    labels: Mapping[str, NDArray[np.uint8]],
    states: Mapping[tuple[str, str], State] | None = None,
    organs: tuple[str, ...] = ORGANS,
    images: Mapping[str, NDArray[np.int16]] | None = None,
    spacings: Mapping[str, tuple[float, float, float]] | None = None,
) -> Store:
    """Write a store of the given label maps; a case whose name starts with "test" is held out. Images: `ct(0)`, ..."""
    infos = []
    for number, (case, label) in enumerate(labels.items()):
        folder = path / CASES / case
        folder.mkdir(parents=True)
        image = (images or {}).get(case, ct(number))
        arrays = {IMAGE: write_array(folder, IMAGE, image), LABELS: write_array(folder, LABELS, label)}
        own = {organ: (states or {}).get((case, organ), State.ANNOTATED) for organ in organs}
        counts = np.stack([(label == value).sum(axis=(1, 2)) for value in range(1, len(organs) + 1)], axis=1)
        visible = counts * [own[organ] is not State.HIDDEN for organ in organs]  # [D, K]
        z, y, x = spacing = (spacings or {}).get(case, SPACING)
        infos.append(
            CaseInfo(
                name=case,
                split="test" if case.startswith("test") else "train",
                shape=label.shape,
                spacing=spacing,
                affine=((-x, 0, 0, 0), (0, -y, 0, 0), (0, 0, z, 0), (0, 0, 0, 1.0)),
                states=own,
                runs=gather_counts(visible, organs),
                sources={},
                arrays=arrays,
                body=StoredBox.of(body_box(image, spacing, BodyRule()), BodyRule()),
            )
        )
    write_index(path, organs, infos)
    return Store.open(path)


def make_run(path: Path, store: Store, *, seed: int = 0, trained: bool = True, **settings: object) -> Run:
    """Make a run folder; with `trained` it gets random weights that call about half of the voxels something."""
    config = TrainConfig.from_options(
        {"backbone": "resnet18", "width": 8, "output_stride": 8, "rates": [2], **settings}
    )
    run = Run.create(path, config, store, store.declarations())
    if trained:
        torch.manual_seed(seed)
        model = Segmenter(run.config.model).eval()
        balance(model, slice_context(ct(), range(SHAPE[0]), config.model.channels))
        Checkpoint({"model": dict(model.state_dict())}).save(run.model_path)
    return run


@torch.no_grad()
def balance(model: Segmenter, hu: NDArray[np.int16]) -> None:  # hu: [N, C, H, W]
    """Shift the classifier until every output is positive on half of the given pixels."""
    logits = model(torch.from_numpy(hu))
    model.classifier[-1].bias -= logits.transpose(0, 1).flatten(1).median(dim=1).values


def add_metrics(run: Run, *, validation: bool = True) -> None:
    lines = []
    for iteration in range(10, 60, 10):
        number = 0 if iteration < 40 else 1
        losses = {organ: 1.0 / iteration for organ in run.organs}
        record = {"iteration": iteration, "round": number, "loss": 2.0 / iteration, "lr": 0.1, "seconds": 1.0}
        lines.append(record | {"loss_per_organ": losses})
        if validation:
            lines.append({"iteration": iteration, "round": number, "validation": {run.organs[0]: iteration / 100}})
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class RoundOfTest:
    """A round that a test fills; it is finished with the cases that were added."""

    def __init__(self, unfinished: UnfinishedRound) -> None:
        self.unfinished, self.cases = unfinished, list[str]()

    def add(self, case: str, overlay: NDArray[np.uint8], counts: Mapping[str, Mapping[str, int]]) -> None:
        self.unfinished.add(case, overlay, {organ: dict(numbers) for organ, numbers in counts.items()})
        self.cases.append(case)


@contextmanager
def writing_round(rounds: Path, this: Round, organs: tuple[str, ...]) -> Iterator[RoundOfTest]:
    with write_round(rounds, this, organs, "weights of nothing") as unfinished:
        written = RoundOfTest(unfinished)
        yield written
        unfinished.finish(written.cases)


def add_round(run: Run, number: int, overlays: Mapping[str, NDArray[np.uint8]], gamma: float = 0.5) -> None:
    """Write a round as `relabel` does; candidates are twice what was kept."""
    states = run.declarations()
    with writing_round(run.rounds_path, Round(number, gamma, "volume"), run.organs) as written:
        for case, overlay in overlays.items():
            counts = {}
            for value, organ in enumerate(run.organs, start=1):
                if states[case][organ] in (State.MISSING, State.HIDDEN):
                    kept = int((overlay == (PSEUDO_BIT | value)).sum())
                    counts[organ] = {"candidates": 2 * kept, "selected": kept, "kept": kept}
            written.add(case, overlay, counts)
