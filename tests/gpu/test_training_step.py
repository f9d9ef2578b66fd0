"""A training on the device: captured steps are the steps, nothing waits for the device, and a resume goes on.

With SMILE_FAST_GPU=rehearse the same trainings run on the CPU, without graphs.
"""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smile_fast.data.store import Store
from smile_fast.models import Segmenter
from smile_fast.training.batches import BatchSource
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.cuda_graph import capture
from smile_fast.training.execution import Execution
from smile_fast.training.interrupt import Interrupted, Stop
from smile_fast.training.loop import Trainer, train
from smile_fast.training.one_batch import steps_on_one_batch
from smile_fast.training.read_ahead import read_ahead
from smile_fast.training.run import Run
from smile_fast.training.step_graph import EAGER_STEPS
from smile_fast.training.upload import upload
from tests.gpu.calls import DEVICE, REHEARSAL, no_host_synchronisation
from tests.tolerances import CAPTURED_STEPS
from tests.trainings import CPU, metrics, new_run, steps_of, stop_after, tiny_store, weights

HERE = torch.device(DEVICE)
STEPS = EAGER_STEPS + 5
SETTINGS: list[dict[str, object]] = [
    {"ema": 0.9, "clip_norm": 0.5},
    {"optimizer": "sgd", "channels": 3, "flip": 0.5, "amp": "off"},
    {"method": "baseline", "ema": 0.9, "amp": "off"},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three training cases with hidden and missing organs, one held-out case."""
    return tiny_store(tmp_path_factory.mktemp("gpu") / "store")


@pytest.fixture(autouse=True)
def _deterministic(one_thread: None) -> Iterator[None]:
    """Tuning may choose another algorithm each time; how steps are queued must not matter beside that."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def stepped(run: Run, graph: str) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses of some steps."""
    torch.manual_seed(0)
    how = Execution(graph=graph, workers="0")
    trainer = Trainer(run, Segmenter(run.config.model), HERE, Stop(), execution=how)
    trainer.metrics.close()
    view = run.view("train")
    run_step, losses = trainer.step_of(view), []
    trainer.learner.model.train()
    with closing(read_ahead(BatchSource.of(run.config, view, 0), 0, device=HERE)) as batches:
        for number, inputs in enumerate(islice(upload(batches, HERE), STEPS)):
            losses.append(trainer.step(inputs, run_step, 0.001 / (1 + number)).loss)
            trainer.position.step += 1
            trainer.position.total_steps += 1
    assert run_step.captured == (graph == "auto" and not REHEARSAL)
    return dict(trainer.final_model.state_dict()), [loss.item() for loss in losses]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_captured_step_is_the_step(store: Store, tmp_path: Path, settings: dict[str, object]) -> None:
    run = new_run(tmp_path / "run", store, **settings)
    captured, losses = stepped(run, "auto")
    plain, expected = stepped(run, "off")
    assert losses == pytest.approx(expected, **CAPTURED_STEPS)
    for name, tensor in plain.items():
        torch.testing.assert_close(captured[name], tensor, rtol=CAPTURED_STEPS["rel"], atol=CAPTURED_STEPS["abs"])


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_no_step_waits_for_the_device(store: Store, tmp_path: Path, graph: str) -> None:
    """Neither the step nor its log, once a graph is captured and memory is there."""
    run = new_run(tmp_path / "run", store, ema=0.9, clip_norm=0.5)
    how = Execution(graph=graph, workers="0")
    trainer = Trainer(run, Segmenter(run.config.model), HERE, Stop(), execution=how)
    view = run.view("train")
    run_step = trainer.step_of(view)
    trainer.learner.model.train()
    with closing(trainer.metrics), closing(read_ahead(BatchSource.of(run.config, view, 0), 0, device=HERE)) as batches:
        inputs = upload(batches, HERE)
        for number in range(STEPS):
            given = next(inputs)
            if number <= EAGER_STEPS:  # a capture waits
                trainer.metrics.add(trainer.step(given, run_step, 0.001), 0.001)
            else:
                with no_host_synchronisation():
                    trainer.metrics.add(trainer.step(given, run_step, 0.001), 0.001)
            trainer.position.step += 1
            trainer.position.total_steps += 1
        with no_host_synchronisation():
            trainer.metrics.write_step(trainer.position)
        trainer.metrics.flush()
        assert [line["iteration"] for line in metrics(run)] == [STEPS]


@pytest.mark.parametrize(("before", "after"), [(("auto", "2"), ("off", "0")), (("off", "0"), ("auto", "1"))], ids=str)
def test_a_training_resumes_in_another_way(
    store: Store, tmp_path: Path, before: tuple[str, str], after: tuple[str, str]
) -> None:
    """On the device, then there with or without graphs, and then on the CPU."""
    run = new_run(tmp_path / "run", store, epochs=3.0, ema=0.9)
    for steps, (graph, workers), device in ((8, before, HERE), (8, after, HERE), (4, ("auto", "auto"), CPU)):
        how = Execution(graph=graph, workers=workers)
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Interrupted):
                train(Run.open(run.path), resume=True, device=device, execution=how)
    assert steps_of(run) == 20
    train(Run.open(run.path), resume=True, device=HERE)
    assert [line["iteration"] for line in metrics(run)] == [10, 20, 27]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


def test_a_curriculum_trains_on_the_device(store: Store, tmp_path: Path) -> None:
    """A graph a round; relabelling and validation between the steps."""
    settings = {"method": "smiler", "rounds": 2, "round_share": 0.5, "ema": 0.9, "validate_every": 0.5, "folds": 3}
    run = new_run(tmp_path / "run", store, epochs=3.0, **settings)
    train(run, device=HERE, execution=Execution(workers="2"))
    assert steps_of(run) == Checkpoint.load(run.model_path).state["total_steps"]
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < losses[0]


def test_the_step_on_one_batch_is_replayed(store: Store, tmp_path: Path) -> None:
    step = steps_on_one_batch(new_run(tmp_path / "run", store), HERE)
    losses = [step().loss for _ in range(12)]
    assert losses[-1].item() < losses[0].item()


@pytest.mark.skipif(REHEARSAL, reason="needs CUDA graphs")
def test_after_a_capture_that_failed_the_device_is_as_before() -> None:
    """The work waits for the device, which a capture must not; then numbers are drawn, and another is captured."""
    given = torch.ones(8, device=HERE)
    stream = torch.cuda.current_stream(HERE)
    with pytest.raises(RuntimeError, match="captur"):
        capture(lambda: given.sum().item(), HERE, stream=torch.cuda.Stream(HERE))
    assert torch.cuda.current_stream(HERE) == stream
    torch.nn.functional.dropout(given).sum().item()
    doubled, replay = capture(lambda: 2 * given, HERE, stream=torch.cuda.Stream(HERE))
    replay()
    assert torch.equal(doubled, 2 * given)
