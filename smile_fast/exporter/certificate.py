"""The proof, on real cases of a run, that a file computes what the network computes."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from smile_fast.data.store import Store
from smile_fast.models import Segmenter
from smile_fast.models.segmenter import resample_slices
from smile_fast.pipeline import in_order, worker_thread
from smile_fast.supervision.overlap import joint_histogram, organ_dice
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.label_map import LABEL_VALUES
from smile_runtime.model.exported import Model
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, slice_context, whole_box

Answer = TypeVar("Answer")

PARITY_CASES = 4
PARITY_ORGAN_SLICES = 8  # of each case
OTHER_PIXELS = (0.6, 1.7)  # times those of a case: a scan to be reduced, and one to be enlarged
MIN_ORGAN_VOXELS = 1000  # an organ with fewer is mostly surface: a handful of voxels would decide


@dataclass(frozen=True)
class Requirement:
    """What a certificate must show.

    Attributes:
        share: of the voxels that have the same label. dice: of each organ's voxels in network and file.
    """

    share: float
    dice: float


# fp32: kernels of two libraries differ in the last bits; only voxels whose logits all but tie can change.
# fp16: 11 bits a value, errors of some 1e-3 in a probability; a trained network loses some 2 voxels of 100,000, all of
#   them on surfaces. Far below that, something has overflowed.
# int8: 7-bit weights and 8-bit activations, errors of some 1e-2 to 1e-1 in a probability near a surface. A Dice between
#   network and file of 0.98 costs 0.2 points against the truth, as half of the changed voxels change for the better;
#   0.95 is where 0.5 points come within reach. The share alone would not see a small organ vanish in the background.
REQUIREMENTS = {
    "fp32": Requirement(0.9999, 0.999),
    "fp16": Requirement(0.999, 0.99),
    "int8": Requirement(0.99, 0.95),
}


@dataclass(frozen=True)
class Sample:
    """Slices on which network and file are compared.

    Attributes:
        case: whose they are. hu: [n, C, H, W] int16. spacing: (z, y, x) that they are said to have, mm.
    """

    case: str
    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]


def parity_samples(run: Run, store: Store, channels: int) -> list[Sample]:
    """Choose slices of up to four cases, two at a time: where organs are, a whole one, and a cut-out of another size.

    Where organs are they are cut to the body's box, as production cuts them. Organ voxels are counted by the index
    (visible labels); without any the box's middle slice is taken. The cases with the finest and with the coarsest
    pixels are among them. For a network with a pixel size the last slices of each case come a second time, in pixels of
    another size.
    """
    samples = []
    for number, case in enumerate(_parity_cases(run, store)):
        image, box = store.read_image(case), computed_box(store, case, run.config.body)
        spacing = store.cases[case].spacing
        busiest = [z for z in dict.fromkeys(_busiest(store.cases[case].counts())) if z in box.slices]
        index = busiest or [box.slices[len(box.slices) // 2]]
        for first in range(0, len(index), 2):
            samples.append(Sample(case, slice_context(box.crop(image), index[first : first + 2], channels), spacing))
        if run.config.model.pixel_mm is not None:
            samples.append(_in_other_pixels(samples[-1], OTHER_PIXELS[number % len(OTHER_PIXELS)]))
        samples.append(Sample(case, slice_context(image, [0], channels), spacing))
        height, width = image.shape[1:]
        rows, columns = slice(height // 8, height - 1), slice(0, width - width // 5)
        samples.append(Sample(case, slice_context(image[:, rows, columns], index[:1], channels), spacing))
    return samples


def _in_other_pixels(sample: Sample, scale: float) -> Sample:
    """The same slices in pixels that are so many times as large."""
    sizes = [max(1, round(size / scale)) for size in sample.hu.shape[2:]]
    hu = functional.interpolate(torch.from_numpy(sample.hu).float(), sizes, mode="bilinear", antialias=True)
    z, *pixels = sample.spacing
    y, x = (side * old / new for side, old, new in zip(pixels, sample.hu.shape[2:], sizes, strict=True))
    return Sample(sample.case, hu.round().short().numpy(), (z, y, x))


def _parity_cases(run: Run, store: Store) -> list[str]:
    cases = [case for split in ("test", "validation", "train") for case in run.cases(split)]
    by_pixels = sorted(cases, key=lambda case: store.cases[case].spacing[1:])
    spread = cases[:: max(1, len(cases) // PARITY_CASES)]
    if store.cases[by_pixels[0]].spacing[1:] != store.cases[by_pixels[-1]].spacing[1:]:
        spread = [by_pixels[0], by_pixels[-1], *spread]
    return list(dict.fromkeys(spread))[:PARITY_CASES]


def computed_box(store: Store, case: str, rule: BodyRule | None) -> BodyBox:
    """What production computes of a case; all of one without a body, of which it computes nothing."""
    box = store.body_box(case, rule)
    return box if box.slices else whole_box(store.cases[case].shape)


def _busiest(voxels: NDArray[np.int64]) -> list[int]:
    """Slices with most voxels of all organs and of single ones, given voxels [D, K]; at most 1 + 8."""
    if not voxels.any():
        return []
    single = [int(voxels[:, organ].argmax()) for organ in range(voxels.shape[1]) if voxels[:, organ].any()]
    return [int(voxels.sum(axis=1).argmax()), *list(dict.fromkeys(single))[:PARITY_ORGAN_SLICES]]


class Comparison:
    """Counts of what network and file say of the same voxels.

    Attributes:
        joint: [256, 256] voxels by the network's label and the file's.
        worst: share of identical labels and case of the worst sample.
    """

    def __init__(self) -> None:
        self.joint = np.zeros((LABEL_VALUES, LABEL_VALUES), np.int64)
        self.worst = (1.0, "")

    def add(self, case: str, expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> None:
        """Count one sample's labels [n, H, W]."""
        joint = joint_histogram(expected, found)
        self.joint += joint
        self.worst = min(self.worst, (float(np.trace(joint) / max(joint.sum(), 1)), case))

    @property
    def share(self) -> float:
        """Of the voxels with the same label."""
        return float(np.trace(self.joint) / max(self.joint.sum(), 1))

    def dice(self, organ: int) -> float | None:
        """Dice of an organ's voxels in network and file; None if neither has any."""
        return organ_dice(self.joint, organ + 1)

    def counts(self, organ: int) -> bool:
        """Whether the organ is large enough in the network's labels for its Dice to mean something."""
        return bool(self.joint[organ + 1].sum() >= MIN_ORGAN_VOXELS)


def _difference(expected: NDArray[np.float32], found: NDArray[Any]) -> float:
    """Largest difference of a probability; the file's may be uint8, which stands for p * 255."""
    probabilities = found.astype(np.float32) / (255 if found.dtype == np.uint8 else 1)
    return float(np.abs(probabilities - expected).max(initial=0))


def certify(
    model: Segmenter,
    exported: Model,
    samples: Sequence[Sample],
    *,
    probabilities: tuple[str, Model] | None = None,
    others: Mapping[str, Model] | None = None,
) -> dict[str, Any]:
    """Compare a file with the network that it was made from.

    On a GPU the network, and each way to run the file, has a thread of its own: while one sample is compared, all are
    at the next one. On the CPU they would take each other's cores.

    Args:
        model: the network in evaluation mode, in float32 and with its BatchNorms; it runs where it is.
        exported: the file, loaded on the CPU: where everybody can run it.
        samples: what to compare them on.
        probabilities: a provider, and the same graph with its probabilities, loaded there; if the file was made
            without them or its probabilities are to be compared elsewhere. Nothing is said of those on other providers.
        others: the file, loaded on other providers of onnxruntime, by their names.

    Returns:
        The certificate, plain JSON. With several providers voxels, shares and Dices are those of the one that agrees
        least; the probabilities' difference is that of the provider under "probabilities_on".

    Raises:
        InputError: fewer voxels or organs agree than `REQUIREMENTS` asks for, on any provider.
    """
    card, files = exported.card, {"cpu": exported, **(others or {})}
    device = next(model.parameters()).device
    compared = {provider: Comparison() for provider in files}
    probabilities_on, with_probabilities = probabilities or ("cpu", exported)
    difference = 0.0
    with ExitStack() as threads, _full_float32():

        def answers(name: str, answer: Callable[[Sample], Answer]) -> Iterator[Answer]:
            if device.type != "cuda":
                return map(answer, samples)
            return in_order(answer, samples, threads.enter_context(worker_thread(name)), ahead=1)

        expected = answers("torch", partial(_network_answer, model))
        labels = [answers(provider, partial(_labels, file)) for provider, file in files.items()]
        shares = answers("probabilities", partial(_probabilities, with_probabilities))
        for sample, wanted, share, *found in zip(samples, expected, shares, *labels, strict=True):
            for comparison, label_map in zip(compared.values(), found, strict=True):
                comparison.add(sample.case, wanted[0], label_map)
            difference = max(difference, _difference(wanted[1], share))
    dice = {
        provider: {organ: comparison.dice(number) for number, organ in enumerate(card.organs)}
        for provider, comparison in compared.items()
    }
    required = REQUIREMENTS[card.precision]
    for provider, comparison in compared.items():
        _require(comparison, dice[provider], required, card.precision, provider)
    least = min(compared, key=lambda provider: compared[provider].share)
    worst = compared[least]
    return {
        "cases": list(dict.fromkeys(sample.case for sample in samples)),
        "slices": sum(len(sample.hu) for sample in samples),
        "sizes": [list(size) for size in sorted({sample.hu.shape[2:] for sample in samples})],
        "pixels_mm": [list(pixels) for pixels in sorted({sample.spacing[1:] for sample in samples})],
        "voxels": int(worst.joint.sum()),
        "identical_voxels": int(np.trace(worst.joint)),
        "identical_share": worst.share,
        "max_probability_difference": difference,
        "dice": dice[least],
        "required_share": required.share,
        "required_dice": required.dice,
        "network_on": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "file_on": list(files),
        "probabilities_on": probabilities_on,
    }


def _network_answer(model: Segmenter, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels [n, H, W] and probabilities [n, K, H, W] of a sample, by torch."""
    size = (sample.hu.shape[2], sample.hu.shape[3])
    stride, device = model.config.scan_stride(sample.spacing), next(model.parameters()).device
    with torch.inference_mode():
        hu = torch.from_numpy(sample.hu).to(device)
        logits = model(resample_slices(hu, stride, model.config.output_stride))
        return (
            model.label_map(logits, size, stride).cpu().numpy(),
            model.probabilities(logits, size, stride).cpu().numpy(),
        )


def _labels(file: Model, sample: Sample) -> NDArray[np.uint8]:
    return file.labels(sample.hu, sample.spacing[1:])


def _probabilities(file: Model, sample: Sample) -> NDArray[Any]:
    return file.probabilities(sample.hu, sample.spacing[1:])


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep cuDNN's convolutions from rounding their inputs to 11 bits, torch's default: nothing certified does."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _require(
    compared: Comparison, dice: dict[str, float | None], required: Requirement, precision: str, provider: str
) -> None:
    failure = ""
    if not compared.share >= required.share:
        failure = (
            f"agree on {compared.share:.4%} of the voxels only (worst case {compared.worst[1]}, "
            f"{compared.worst[0]:.4%}; {required.share:.2%} are wanted)"
        )
    for number, (organ, found) in enumerate(dice.items()):
        if not failure and compared.counts(number) and found is not None and not found >= required.dice:
            failure = f"agree on {organ} with a Dice of {found:.4f} only ({required.dice} is wanted)"
    if not failure:
        return
    where = "" if provider == "cpu" else f" on {provider}"
    versions = f"torch ({torch.__version__}) and onnxruntime ({importlib.metadata.version('onnxruntime')})"
    remedy = f"try other versions of {versions}" if precision == "fp32" else "export it with --precision fp32"
    raise InputError(f"{precision} export: file{where} and network {failure}, so nothing was written; {remedy}")


def organs_not_found(parity: dict[str, Any]) -> list[str]:
    """Organs of which neither network nor file finds a voxel: of these the certificate proves nothing."""
    return [organ for organ, dice in parity["dice"].items() if dice is None]


def format_parity(parity: dict[str, Any]) -> list[str]:
    """Return a certificate as lines for the terminal."""
    dice = ", ".join(f"{organ} {'-' if found is None else f'{found:.4f}'}" for organ, found in parity["dice"].items())
    lines = [
        f"  parity: {parity['identical_voxels']} of {parity['voxels']} voxels as in torch "
        f"({parity['identical_share']:.4%}), {parity['slices']} slices of {len(parity['cases'])} cases, "
        f"{len(parity['sizes'])} sizes, {len(parity['pixels_mm'])} pixel sizes",
        f"  compared: torch on {parity['network_on']}, the file in onnxruntime on {', '.join(parity['file_on'])}",
        f"  Dice between torch and the file: {dice}",
        f"  largest difference of a probability, on {parity['probabilities_on']}: "
        f"{parity['max_probability_difference']:.1e}",
    ]
    if calibration := parity.get("calibration"):
        cases = len(calibration["cases"])
        lines.append(f"  int8 scales from {calibration['slices']} slices of {cases} training cases")
    return lines
