"""onnxruntime sessions: the provider that was asked for, or an error."""

import importlib.metadata
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from smile_runtime.errors import InputError, first_line
from smile_runtime.threads import default_threads

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DEVICES = {"cuda": "cuda", "tensorrt": "cuda"}  # where a provider's buffers lie, if not in the host's memory
_WITH_LIBRARIES = "'onnxruntime-gpu[cuda,cudnn]'"  # as a shell takes it

# What computes the parts of a graph that the provider itself leaves to others.
_BESIDE = {"cpu": (), "cuda": ("cpu",), "tensorrt": ("cuda", "cpu")}
# Body boxes differ from scan to scan: the default, an exhaustive search for every new size, costs seconds each.
# And float32 is float32: with TF32, onnxruntime's default, convolutions round their inputs to 11 bits.
_OPTIONS = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}}

# Of onnxruntime's default logger: "fatal". Errors are exceptions, too, whereas cuDNN's refusal of a plan for a
# convolution in float16, after which another one is found, is an error to this logger alone, fifty times a volume.
_FATAL = 4

# What onnxruntime, the standard library, CUDA, cuDNN and cuBLAS say when memory is short: there is no type for it.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "out of memory", "alloc_failed")


def is_allocation_error(error: Exception) -> bool:
    """Whether an inference failed for lack of memory."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_MEMORY)


def open_session(
    content: bytes,
    path: Path,
    threads: int | None,
    provider: str,
    gpu: int = 0,
) -> ort.InferenceSession:
    """Make a session of a model that `smile_runtime.model.trust` has checked.

    Args:
        content: The model.
        path: Its file, for messages.
        threads: CPU threads of one inference; `default_threads` if None.
        provider: One of `PROVIDERS`.
        gpu: Number of the GPU, for a provider that computes on one.

    Raises:
        InputError: The provider is unknown, not installed, or not active in the session that was made;
            onnxruntime refuses the model.
    """
    if provider not in PROVIDERS:
        raise InputError(f"provider {provider!r}: unknown; give one of {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads}: too few; give at least 1")
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise InputError(f"provider {provider!r}: not in this installation of onnxruntime; {_remedy()}")
    missing = prepare_device() if provider in DEVICES else ""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised below; the log would only repeat it on stderr
    options.intra_op_num_threads = threads or default_threads()
    for pool in ("intra_op", "inter_op"):  # threads that spin while they wait steal the time of others' work
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    # Left to guess, onnxruntime takes a file with "ORTM" in it for its own format, past all that was checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # A plan of the memory for each new size of a batch doubles what a session holds, and body boxes differ.
    options.enable_mem_pattern = False
    names = [provider, *_BESIDE[provider]]
    on_gpu = {"device_id": str(gpu)}
    given = {name: _OPTIONS.get(name, {}) | (on_gpu if name in DEVICES else {}) for name in names}
    try:
        session = ort.InferenceSession(content, options, providers=[(PROVIDERS[name], given[name]) for name in names])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise InputError(f"{path}: onnxruntime cannot load it ({first_line(error)}); export it again") from error
    if session.get_providers()[:1] != [wanted]:  # onnxruntime itself would go on with the CPU
        cause = f" ({missing})" if missing else ""
        remedy = f"install {_WITH_LIBRARIES}, check its driver" if missing else "check its driver"
        raise InputError(f"provider {provider!r}: does not start on this machine{cause}; {remedy}, or use cpu")
    return session


def prepare_device() -> str:
    """Load CUDA's and cuDNN's libraries from pip's packages, where they are, and keep stderr for what is wrong.

    Returns:
        What could not be loaded, in onnxruntime's own words; "" if nothing is, or onnxruntime is older than 1.21.
    """
    ort.set_default_logger_severity(_FATAL)
    if not hasattr(ort, "preload_dlls"):
        return ""
    said = io.StringIO()
    try:
        with redirect_stdout(said):  # onnxruntime prints there what it does not find
            ort.preload_dlls()
    except (OSError, RuntimeError) as error:
        return first_line(error)
    failed = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    return failed[0] if failed else ""


def _remedy() -> str:
    if all(map(_is_installed, ("onnxruntime", "onnxruntime-gpu"))):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files, so run "
            f"`pip uninstall onnxruntime onnxruntime-gpu` and then `pip install {_WITH_LIBRARIES}`"
        )
    return f"install {_WITH_LIBRARIES} instead of onnxruntime, or use provider cpu"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class DeviceBuffers:
    """One batch's input and output on a device, kept from batch to batch as long as their shape stays.

    Args:
        session: With the input ``hu`` first, and the output ``labels``.
        device: onnxruntime's name of it.
        number: Which one of that name.
    """

    def __init__(self, session: ort.InferenceSession, device: str, number: int = 0) -> None:
        self._session, self._device, self._number = session, device, number
        self._binding: ort.IOBinding | None = None
        self._hu: ort.OrtValue | None = None
        self._labels: ort.OrtValue | None = None

    def labels(
        self,
        hu: npt.NDArray[np.int16],  # [N, C, H, W]
        beside: Mapping[str, npt.NDArray[Any]],
    ) -> npt.NDArray[np.uint8]:  # [N, H, W]
        """Copy a batch to the device, run, copy its labels back; nothing else of its size crosses the bus.

        `beside` are the other inputs, a few bytes.
        """
        if self._hu is None or self._labels is None or tuple(self._hu.shape()) != hu.shape:
            self._bind(hu)
        assert self._hu is not None
        assert self._labels is not None
        assert self._binding is not None
        self._hu.update_inplace(hu)
        for name, values in beside.items():
            self._binding.bind_cpu_input(name, values)
        self._session.run_with_iobinding(self._binding)
        return np.array(self._labels.numpy())  # a copy: on the host this would be the buffer itself

    def _bind(self, hu: npt.NDArray[np.int16]) -> None:
        batch, _, height, width = hu.shape
        self._binding = self._hu = self._labels = None  # their memory is free for the new ones
        self._binding = self._session.io_binding()
        make, place = ort.OrtValue.ortvalue_from_shape_and_type, (self._device, self._number)
        self._hu = make(list(hu.shape), np.int16, *place)
        self._labels = make([batch, height, width], np.uint8, *place)
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, self._hu)
        self._binding.bind_ortvalue_output("labels", self._labels)
