"""Whole batches made ahead by processes: through memory that all share, and through torch's DataLoader."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from bench.comparison import OURS, Call, Comparison, Conditions
from bench.data_path.names import DATALOADER
from bench.data_path.volumes import dataset, store
from bench.data_path.workloads import Workload
from smile_fast.data.store import Store
from smile_fast.models.config import ModelConfig
from smile_fast.training.batches import Batch, BatchSource
from smile_fast.training.config import TrainConfig
from smile_fast.training.read_ahead import read_ahead
from smile_fast.training.view import TrainingView
from smile_runtime.volume.preprocessing import BodyRule

BATCHES = 24  # of a run: several times what is made while nobody asks


class Batches(Dataset[dict[str, Any]]):
    """The same batches, one an item: what they are made by is the same code, and they travel as torch has it."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return 2**30

    def __getitem__(self, step: int) -> dict[str, Any]:
        return vars(self.source.batch(step))


def config_of(workload: Workload, organs: tuple[str, ...], **settings: Any) -> TrainConfig:
    """Settings of a training at its defaults, but for the sizes of the workload and the smaller of two networks."""
    model = ModelConfig(organs, "resnet18", 16, width=workload.width)
    return TrainConfig(model=model, batch_size=workload.batch, crop_size=workload.patch, **settings)


def view_of(prepared: Store) -> TrainingView:
    """All cases of a store, with the air left out, as in a training by default."""
    return TrainingView(prepared, prepared.declarations(), list(prepared.cases), body=BodyRule())


def compare(workload: Workload, conditions: Conditions, folder: Path) -> Comparison:
    """Start both; they are a few batches ahead when the clock starts, and end as many ahead."""
    prepared = store(dataset(workload.volumes, conditions, folder), folder / "store")
    config = config_of(workload, prepared.organs)
    source = BatchSource.of(config, view_of(prepared), 0)
    ours = read_ahead(source, 0, workload.workers)
    loader: DataLoader[dict[str, Any]] = DataLoader(
        Batches(source), batch_size=None, num_workers=workload.workers, multiprocessing_context="forkserver"
    )
    theirs = iter(loader)

    def several(batches: Any) -> None:
        for _ in itertools.islice(batches, BATCHES):
            pass

    def check() -> dict[str, float]:
        for step, (mine, other) in enumerate(zip(itertools.islice(ours, 3), theirs, strict=False)):
            expected = source.batch(step)
            for name, array in vars(expected).items():
                np.testing.assert_array_equal(getattr(mine, name), array, f"{OURS}: {name} of step {step}")
                np.testing.assert_array_equal(other[name], array, f"{DATALOADER}: {name} of step {step}")
        return {}

    calls = [
        Call(name, partial(several, batches), partial(next, batches))
        for name, batches in ((OURS, ours), (DATALOADER, theirs))
    ]
    facts = {"batch": list(Batch(**vars(source.batch(0))).hu.shape), "workers": workload.workers}
    return Comparison(calls[:1], calls[1:], check, facts, steps=BATCHES, close=ours.close)
