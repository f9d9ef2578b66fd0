"""A step that is captured and replayed is the step, bit for bit; and it reads nothing on the host."""

from itertools import islice

import pytest
import torch

from smile_fast.models import Segmenter
from smile_fast.training.batches import BatchSource
from smile_fast.training.interrupt import Stop
from smile_fast.training.loop import Trainer
from smile_fast.training.objectives import MissingIsBackground, StepLoss
from smile_fast.training.one_batch import steps_on_one_batch
from smile_fast.training.schedule import average_weight
from smile_fast.training.step_graph import EAGER_STEPS, StepGraph, no_graph
from smile_fast.training.upload import upload
from smile_runtime.errors import InputError
from tests.cohorts import tree
from tests.training.recording import NoReads, Read, RecordedSteps, Unable
from tests.trainings import CPU, assert_same_bits, new_run

STEPS = EAGER_STEPS + 4
SETTINGS = [
    {"ema": 0.9, "clip_norm": 0.5},
    {"optimizer": "sgd", "lr": 0.1, "ema": 0.5, "channels": 3, "flip": 0.5},
    {"method": "baseline", "ema": 0.9, "clip_norm": 0.1},
    {"method": "smiler", "amp": "bfloat16", "noise": 0.0},
    {"policy": "channel-drop", "output_stride": 16, "optimizer": "sgd"},
]


def stepped(run, capturer, *, eager=False, steps=STEPS):
    """Train some steps, each at a learning rate of its own; returns the trainer, all losses and the step."""
    torch.manual_seed(0)
    trainer = Trainer(run, Segmenter(run.config.model), CPU, Stop(), capturer=capturer)
    trainer.metrics.close()
    view = run.view("train")
    if eager:  # the same optimizer, but every step runs operation by operation
        trainer.capturer = None
    run_step, source, losses = trainer.step_of(view), BatchSource.of(run.config, view, 0), []
    trainer.learner.model.train()
    for number, inputs in enumerate(islice(upload(map(source.batch, range(steps)), CPU), steps)):
        losses.append(trainer.step(inputs, run_step, 0.01 / (1 + number)))
        trainer.position.step += 1
        trainer.position.total_steps += 1
    return trainer, losses, run_step


def state_of(trainer):
    learner = trainer.learner
    state = dict(learner.model.state_dict())
    if learner.average is not None:
        state |= {f"average {name}": tensor for name, tensor in learner.average.state_dict().items()}
    for index, slots in learner.optimizer.state_dict()["state"].items():
        state |= {f"optimizer {index} {name}": tensor for name, tensor in slots.items()}
    return state


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_replayed_step_is_the_step_bit_for_bit(store, tmp_path, settings):
    """Learning rate, weight of the average, batch, augmentation and dropout change from step to step."""
    run = new_run(tmp_path / "run", store, **settings)
    capturer = RecordedSteps()
    graph, losses, run_step = stepped(run, capturer)
    plain, expected, _ = stepped(run, RecordedSteps(), eager=True)
    assert run_step.captured
    assert capturer.captures == 1
    assert_same_bits(state_of(graph), state_of(plain))
    for loss, wanted in zip(losses, expected, strict=True):
        assert_same_bits(loss._asdict(), wanted._asdict())
    assert len({loss.loss.item() for loss in losses}) == STEPS  # no step is another one's


def test_a_replayed_step_reads_the_numbers_of_its_place(store, tmp_path, monkeypatch):
    """Learning rate and weight of the average are those of the schedule, not those of the capture."""
    seen, plain = [], StepGraph.__call__

    def watched(self, device, *inputs):
        result = plain(self, device, *inputs)
        learner = self._work.func.__self__
        rates = {float(group["lr"]) for group in learner.optimizer.param_groups}
        seen.append((rates, {name: tensor.clone() for name, tensor in learner.model.named_parameters()}))
        return result

    monkeypatch.setattr(StepGraph, "__call__", watched)
    run = new_run(tmp_path / "run", store, ema=0.9)
    torch.manual_seed(0)
    average = dict(Segmenter(run.config.model).named_parameters())
    trainer, _, _ = stepped(run, RecordedSteps())
    for t, (rates, parameters) in enumerate(seen):
        assert list(rates) == [pytest.approx(0.01 / (1 + t))]
        average = {name: torch.lerp(average[name], new, average_weight(0.9, t)) for name, new in parameters.items()}
    for name, parameter in trainer.learner.average.named_parameters():
        torch.testing.assert_close(parameter, average[name])


def test_a_capture_that_fails_loses_no_step(store, tmp_path, capsys):
    run = new_run(tmp_path / "run", store, ema=0.9)
    capturer = Unable()
    failed, losses, run_step = stepped(run, capturer)
    plain, expected, _ = stepped(run, RecordedSteps(), eager=True)
    assert capturer.captures == 1
    assert not run_step.captured
    assert_same_bits(state_of(failed), state_of(plain))
    assert [loss.loss.item() for loss in losses] == [loss.loss.item() for loss in expected]
    assert capsys.readouterr().err == (
        "warning: --graph: the step cannot be captured (CUDA error: operation not permitted when stream is "
        "capturing); it runs operation by operation\n"
    )


class Waits(MissingIsBackground):
    """A loss that asks the device for a number."""

    def __call__(self, logits, labels, cases):
        loss = super().__call__(logits, labels, cases)
        return loss._replace(loss=loss.loss * float(loss.counts.sum() > 0))


def test_a_loss_that_waits_for_the_device_is_found(store, tmp_path):
    """The tests above can fail."""
    run = new_run(tmp_path / "run", store, method="baseline")
    trainer, _, _ = stepped(run, RecordedSteps(), steps=1)
    (inputs,) = upload(map(BatchSource.of(run.config, run.view("train"), 0).batch, [1]), CPU)
    changes = trainer.learner.prepare(1, 0.1, 1, 2, (32, 32))
    with pytest.raises(Read, match="_local_scalar_dense"), NoReads():
        trainer.learner.compute(Waits(), *inputs, changes)


@pytest.mark.parametrize("method", ["smile", "baseline", "marginal"])
def test_a_step_on_the_cpu_reads_nothing_from_its_tensors(store, tmp_path, method):
    """Without a graph, too: what the loop does between two steps cannot make a device wait."""
    run = new_run(tmp_path / "run", store, method=method, ema=0.9, clip_norm=0.5, optimizer="sgd")
    trainer, _, run_step = stepped(run, None, steps=1)
    (inputs,) = upload(map(BatchSource.of(run.config, run.view("train"), 0).batch, [1]), CPU)
    with NoReads():
        loss = trainer.step(inputs, run_step, 0.1)
        trainer.metrics.add(loss, 0.1)
    assert loss.loss > 0


@pytest.mark.parametrize("captured", [False, True])
def test_the_step_on_one_batch_is_the_runs_own(store, tmp_path, monkeypatch, captured):
    """What the speed of the loop is measured against learns its batch by heart, and leaves the folder alone."""
    if captured:
        monkeypatch.setattr("smile_fast.training.one_batch.cuda_graphs", lambda device, wanted: RecordedSteps())
    run = new_run(tmp_path / "run", store, noise=0.0)
    before = tree(run.path)
    step = steps_on_one_batch(run, CPU)
    losses = [step().loss.item() for _ in range(12)]
    assert losses[-1] < losses[0]
    assert tree(run.path) == before


def test_the_step_on_one_batch_is_captured_or_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr("smile_fast.training.one_batch.cuda_graphs", lambda device, wanted: Unable())
    step = steps_on_one_batch(new_run(tmp_path / "run", store), CPU)
    for _ in range(EAGER_STEPS):
        step()
    with pytest.raises(
        InputError, match=r"^--graph: the step cannot be captured \(CUDA error: .*\); give --graph off$"
    ):
        step()


def test_results_of_a_replay_are_not_overwritten_by_the_next():
    value, out = torch.zeros(()), torch.zeros(())

    class Adds(RecordedSteps):
        def capture(self, work):
            results = StepLoss(out, out, out)
            return results, lambda: out.add_(1)

    run_step = StepGraph(lambda given: StepLoss(value, value, value), Adds(), pytest.fail)
    losses = [run_step(CPU, torch.zeros(2)) for _ in range(EAGER_STEPS + 3)]
    assert [loss.loss.item() for loss in losses] == [0] * EAGER_STEPS + [1, 2, 3]


def test_why_there_is_no_graph():
    assert no_graph(CPU, "auto") == "only CUDA has graphs"
    assert no_graph(torch.device("cuda"), "off") == "--graph off"
    assert no_graph(torch.device("cuda"), "auto") == ""


def test_cudnn_tunes_in_a_step_and_nowhere_else(store, tmp_path):
    seen = []

    class Looks(RecordedSteps):
        def run(self, work):
            before = torch.backends.cudnn.benchmark
            results = work()
            seen.append((before, torch.backends.cudnn.benchmark))
            return results

    run = new_run(tmp_path / "run", store)
    trainer, _, _ = stepped(run, Looks(), steps=1)
    convolution = next(m for m in trainer.learner.model.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    (inputs,) = upload(map(BatchSource.of(run.config, run.view("train"), 0).batch, [1]), CPU)
    trainer.step(inputs, trainer.step_of(run.view("train")), 0.1)
    assert seen == [(False, False), True, (False, False)]
