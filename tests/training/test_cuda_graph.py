"""What is left of a CUDA graph's capture that fails: torch's own classes around a graph that is none."""

from types import SimpleNamespace

import pytest
import torch

from smile_fast.training.cuda_graph import capture

WAITED = "CUDA error: operation not permitted when stream is capturing"
INVALIDATED = "CUDA error: operation failed due to a previous error during capture"
DEVICE = torch.device("cuda", 0)


class Graph:
    """A capture that ends well as long as nothing has gone wrong in it."""

    waited = False

    def capture_begin(self, *arguments, **options):
        pass

    def capture_end(self):
        if Graph.waited:
            raise RuntimeError(f"{INVALIDATED}\nand how to find out more")

    def replay(self):
        return "replayed"


class Generator:
    """The device's random numbers, which a capture keeps for itself."""

    capturing = True

    def clone_state(self):
        return Generator()

    def graphsafe_set_state(self, state):
        self.capturing = False


@pytest.fixture
def streams(monkeypatch):
    """The streams that have been entered and not left: the outermost one is current outside of all of them."""
    entered = ["outside"]

    class Entered:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            self.before = list(entered)
            entered.append(self.stream)

        def __exit__(self, *error):
            entered[:] = self.before

    monkeypatch.setattr(Graph, "waited", False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", Entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(device_index=0))
    monkeypatch.setattr(torch.cuda, "default_generators", (Generator(),))
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    return entered


def waits():
    Graph.waited = True
    raise RuntimeError(f"{WAITED}\nand how to find out more")


def test_a_capture_gives_results_and_their_replay(streams):
    results, replay = capture(lambda: 3, DEVICE, stream="side")
    assert (results, replay()) == (3, "replayed")
    assert streams == ["outside"]


def test_the_first_error_of_a_capture_is_the_one_that_is_told(streams):
    with pytest.raises(RuntimeError) as error:
        capture(waits, DEVICE, stream="side")
    assert str(error.value) == WAITED


def test_a_failed_capture_leaves_streams_and_random_numbers_as_they_were(streams):
    with pytest.raises(RuntimeError):
        capture(waits, DEVICE, stream="side")
    assert streams == ["outside"]
    assert not torch.cuda.default_generators[0].capturing
