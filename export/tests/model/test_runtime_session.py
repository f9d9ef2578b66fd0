"""Providers: what was asked for, or an error; and the buffers of a device, here the host's own."""

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from hostile_models import write_two_programs
from nifti_files import random_hu
from tiny_models import spacing_labels, threshold_labels, write_spacing_model

from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model
from smile_runtime.model.session import DeviceBuffers

NOISE = """
import os, sys, warnings
import onnxruntime as ort
from smile_runtime.model.session import prepare_device
ort.set_default_logger_severity(int(sys.argv[1]))
if sys.argv[2] == "device":
    prepare_device()
options = ort.SessionOptions()
ort.InferenceSession(sys.argv[3], options, providers=["CPUExecutionProvider"])
os.write(2, b"an error of others\\n")
"""
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Pretending(ort.InferenceSession):
    """A session that runs on the CPU and names the providers that a test wants it to name."""

    asked: list[str]
    options: dict[str, dict[str, str]]
    session: ort.SessionOptions
    active: list[str] | None = None

    def __init__(self, content, options, providers):
        type(self).asked = [name for name, _ in providers]
        type(self).options = dict(providers)
        type(self).session = options
        super().__init__(content, options, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return super().get_providers() if self.active is None else self.active


@pytest.fixture
def pretending(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(ort, "InferenceSession", Pretending)
    monkeypatch.setattr(Pretending, "active", None)
    return Pretending


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_what_is_not_installed_is_an_error(threshold_model, provider, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=f"provider '{provider}': not in this installation"):
        Model(threshold_model, provider=provider)


def test_two_onnxruntimes_at_once_are_reported(threshold_model, monkeypatch):
    """pip installs both for the extra [gpu]; whichever came last has overwritten the other."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.20")
    with pytest.raises(InputError, match=r"both installed .* `pip uninstall onnxruntime onnxruntime-gpu`"):
        Model(threshold_model, provider="cuda")


@pytest.mark.parametrize("active", [None, [], ["CPUExecutionProvider"], ["AzureExecutionProvider", *ALL]])
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_what_is_not_active_is_an_error(threshold_model, pretending, provider, active, monkeypatch):
    monkeypatch.setattr(pretending, "active", active)
    with pytest.raises(InputError, match=f"provider '{provider}': does not start on this machine"):
        Model(threshold_model, provider=provider)


def test_tensorrt_without_itself_does_not_go_on_with_cuda(threshold_model, pretending, monkeypatch):
    monkeypatch.setattr(pretending, "active", ALL[1:])
    with pytest.raises(InputError, match="provider 'tensorrt': does not start"):
        Model(threshold_model, provider="tensorrt")


@pytest.mark.parametrize(("provider", "asked"), [("tensorrt", ALL), ("cuda", ALL[1:]), ("cpu", ALL[2:])])
def test_a_provider_is_asked_for_before_those_that_help_it(threshold_model, pretending, provider, asked, monkeypatch):
    monkeypatch.setattr(pretending, "active", asked)
    monkeypatch.setattr("smile_runtime.model.exported.DEVICES", {})
    assert Model(threshold_model, provider=provider).providers == asked
    assert pretending.asked == asked


@pytest.mark.parametrize("provider", ["tensorrt", "cuda"])
def test_float32_is_float32_on_a_gpu(threshold_model, pretending, provider, monkeypatch):
    monkeypatch.setattr(pretending, "active", ALL if provider == "tensorrt" else ALL[1:])
    monkeypatch.setattr("smile_runtime.model.exported.DEVICES", {})
    Model(threshold_model, provider=provider)
    assert pretending.options["CUDAExecutionProvider"]["use_tf32"] == "0"


@pytest.mark.parametrize("gpu", [0, 1])
def test_a_model_computes_on_the_gpu_that_is_asked_for(threshold_model, pretending, monkeypatch, gpu):
    monkeypatch.setattr(pretending, "active", ALL)
    places = []
    monkeypatch.setattr("smile_runtime.model.exported.DeviceBuffers", lambda session, *place: places.append(place))
    Model(threshold_model, provider="tensorrt", gpu=gpu)
    assert [pretending.options[name].get("device_id") for name in ALL] == [str(gpu), str(gpu), None]
    assert places == [("cuda", gpu)]


def test_buffers_lie_on_the_device_of_their_number(threshold_model, monkeypatch):
    places, real = [], ort.OrtValue.ortvalue_from_shape_and_type

    def recorded(shape, dtype, device, number):
        places.append((device, number))
        return real(shape, dtype, device, 0)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", recorded)
    session = ort.InferenceSession(threshold_model, providers=["CPUExecutionProvider"])
    DeviceBuffers(session, "cpu", 1).labels(random_hu((1, 1, 9, 8)), {})
    assert places == [("cpu", 1)] * 2


@pytest.fixture
def said(monkeypatch):
    """What onnxruntime's libraries are asked for, and how quiet its default logger is made."""
    asked = []
    monkeypatch.setattr(ort, "set_default_logger_severity", lambda level: asked.append(level))
    monkeypatch.setattr(ort, "preload_dlls", lambda: asked.append("preload"), raising=False)
    monkeypatch.setattr("smile_runtime.model.exported.DEVICES", {})
    return asked


@pytest.mark.parametrize(
    ("provider", "expected"), [("cpu", []), ("cuda", [4, "preload"]), ("tensorrt", [4, "preload"])]
)
def test_libraries_are_loaded_and_the_logger_is_quiet_for_a_gpu_alone(
    threshold_model, pretending, said, monkeypatch, provider, expected
):
    monkeypatch.setattr(pretending, "active", {"cpu": ALL[2:], "cuda": ALL[1:], "tensorrt": ALL}[provider])
    Model(threshold_model, provider=provider)
    assert said == expected


def missing_library():
    print("Failed to load libcublasLt.so.12: no such file")
    print("Failed to load libcudnn.so.9: no such file\nPlease follow https://onnxruntime.ai to install CUDA.")


def refusing_library():
    raise RuntimeError("Invalid parameter of directory")


@pytest.mark.parametrize(
    ("preload", "cause"),
    [
        (missing_library, r" \(Failed to load libcublasLt.so.12: no such file\)"),
        (refusing_library, r" \(Invalid parameter of directory\)"),
        (lambda: None, ""),
    ],
)
def test_a_library_that_is_missing_is_named(threshold_model, pretending, said, monkeypatch, capsys, preload, cause):
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    remedy = r"install 'onnxruntime-gpu\[cuda,cudnn\]', check its driver" if cause else "check its driver"
    with pytest.raises(InputError, match=f"'cuda': does not start on this machine{cause}; {remedy}, or use cpu"):
        Model(threshold_model, provider="cuda")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(pretending, "active", ALL[1:])
    Model(threshold_model, provider="cuda")  # what else provides them is as good


def test_an_onnxruntime_that_loads_no_libraries_itself_is_no_obstacle(threshold_model, pretending, said, monkeypatch):
    monkeypatch.delattr(ort, "preload_dlls")
    monkeypatch.setattr(pretending, "active", ALL[1:])
    Model(threshold_model, provider="cuda")
    assert said == [4]


@pytest.mark.parametrize(("level", "kind", "noisy"), [(0, "cpu", True), (0, "device", False), (4, "cpu", False)])
def test_the_default_logger_is_silent_and_others_are_heard(threshold_model, level, kind, noisy):
    """The lines of cuDNN go to this logger; here it is made to say something by its lowest level."""
    command = [sys.executable, "-c", NOISE, str(level), kind, str(threshold_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[-1] == "an error of others"
    assert (len(lines) > 1) == noisy, done.stderr[:2000]


@pytest.mark.parametrize(("asked", "given", "threads"), [(None, "3", 3), (None, None, 5), (2, "3", 2)])
def test_threads_are_those_of_a_shared_machine(threshold_model, pretending, monkeypatch, asked, given, threads):
    """As many as are asked for, else as the user says, else as CPUs may be used; and none of them spins."""
    monkeypatch.setattr("smile_runtime.threads.usable_cpus", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    Model(threshold_model, threads=asked)
    assert pretending.session.intra_op_num_threads == threads
    for pool in ("intra_op", "inter_op"):
        assert pretending.session.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"


def test_an_unknown_provider(threshold_model):
    with pytest.raises(InputError, match="provider 'tpu': unknown; give one of cpu, cuda, tensorrt"):
        Model(threshold_model, provider="tpu")


def buffers_made(monkeypatch):
    """The shapes of all buffers that are made from now on."""
    made = []

    def recorded(shape, *arguments):
        made.append(tuple(shape))
        return real(shape, *arguments)

    real = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", recorded)
    return made


def test_device_buffers_compute_the_same_and_are_kept_while_the_shape_stays(threshold_model, monkeypatch):
    buffers = DeviceBuffers(ort.InferenceSession(threshold_model, providers=["CPUExecutionProvider"]), "cpu")
    made = buffers_made(monkeypatch)
    shapes = [(2, 1, 9, 8), (2, 1, 9, 8), (2, 1, 9, 8), (1, 1, 9, 8), (2, 1, 5, 7)]
    kept = []
    for seed, shape in enumerate(shapes):
        hu = random_hu(shape, seed)
        kept.append((buffers.labels(hu, {}), threshold_labels(hu[:, 0])))
    for labels, expected in kept:  # also after later batches: what was returned is not overwritten
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, expected)
    hu_and_labels = [(shape, (shape[0], *shape[2:])) for shape in (shapes[0], shapes[3], shapes[4])]
    assert made == [made_one for pair in hu_and_labels for made_one in pair]


def test_device_buffers_take_another_spacing_for_every_batch(tmp_path):
    path = write_spacing_model(tmp_path / "spacing.onnx")
    buffers = DeviceBuffers(ort.InferenceSession(path, providers=["CPUExecutionProvider"]), "cpu")
    hu = random_hu((2, 1, 9, 8))
    for spacing in ((1.0, 2.0), (0.5, 0.5)):
        found = buffers.labels(hu, {"pixel_spacing": np.array(spacing)})
        assert np.array_equal(found, spacing_labels(hu[:, 0], spacing))


def test_a_model_on_a_device_uses_the_buffers(threshold_model, monkeypatch):
    monkeypatch.setattr("smile_runtime.model.exported.DEVICES", {"cpu": "cpu"})
    made = buffers_made(monkeypatch)
    model = Model(threshold_model)
    hu = random_hu((3, 1, 17, 9))
    assert np.array_equal(model.labels(hu), threshold_labels(hu[:, 0]))
    assert np.array_equal(model.labels(hu[::-1]), threshold_labels(hu[::-1, 0]))
    assert made == [(3, 1, 17, 9), (3, 17, 9)]


def test_what_was_checked_is_what_runs(tmp_path):
    """onnxruntime would take a file for its own format by four of its bytes, and run an unchecked program."""
    two = write_two_programs(tmp_path)
    hu = random_hu((1, 1, 17, 9))
    unguarded = ort.InferenceSession(two.read_bytes(), providers=["CPUExecutionProvider"])
    assert set(np.unique(unguarded.run(["labels"], {"hu": hu})[0])) == {0, 2}
    assert np.array_equal(Model(two).labels(hu), threshold_labels(hu[:, 0]))
