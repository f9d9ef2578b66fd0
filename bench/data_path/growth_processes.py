"""What a cohort costs a process, measured in one of its own: `python -m bench.data_path.growth_processes WHAT ...`.

open STORE    bytes of opening a store, CPU seconds of the first batch, bytes that a worker is given
train STORE   bytes of a training of a few steps at their peak
"""

import json
import pickle
import sys
import tempfile
import time
from pathlib import Path

STEPS = 4


def memory(key: str) -> int:
    """Bytes of this process: "RssAnon", what it holds now, or "VmHWM", at its peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status[key].split()[0]) * 1024


def opened(path: Path) -> dict[str, float]:
    """Open a store, and make the first batch of a training on it."""
    from smile_fast.data.store import Store
    from smile_fast.models.config import ModelConfig
    from smile_fast.training.batches import BatchSource
    from smile_fast.training.config import TrainConfig
    from smile_fast.training.view import TrainingView
    from smile_runtime.volume.preprocessing import BodyRule

    before = memory("RssAnon")
    store = Store.open(path)
    held = memory("RssAnon") - before
    began = time.process_time()
    view = TrainingView(store, store.declarations(), list(store.cases), body=BodyRule())
    config = TrainConfig(model=ModelConfig(store.organs, "resnet18"), crop_size=32, batch_size=2)
    source = BatchSource.of(config, view, 0)
    source.batch(0)
    first = time.process_time() - began
    return {"opened": held, "first batch": first, "to a worker": len(pickle.dumps(source))}


def trained(path: Path) -> dict[str, float]:
    """Train a tiny network for a few steps: what is left is what the cohort takes."""
    import torch

    from smile_fast.data.store import Store
    from smile_fast.models.config import ModelConfig
    from smile_fast.training.config import TrainConfig
    from smile_fast.training.loop import train
    from smile_fast.training.run import Run

    store = Store.open(path)
    slices = sum(info.shape[0] for info in store.cases.values())
    model = ModelConfig(store.organs, "resnet18", width=16, rates=(1,))
    config = TrainConfig(model=model, crop_size=32, batch_size=2, epochs=2 * STEPS / slices)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config, store, store.declarations())
        train(run, device=torch.device("cpu"))
    return {"peak": memory("VmHWM")}


if __name__ == "__main__":
    print(json.dumps({"open": opened, "train": trained}[sys.argv[1]](Path(sys.argv[2]))))
