"""Voxels of annotated organs, drawn at random: what the network decides there, if it is right, and what it sees."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smile_fast.models import Segmenter
from smile_fast.ops.reference import scores_by_stride
from smile_fast.supervision import State
from smile_fast.training.inference import iterate_logits
from smile_runtime.label_map import VOID

if TYPE_CHECKING:
    from smile_fast.training.view import TrainingView

BUDGET = 2048  # voxels of each organ and kind
FALSE_NEGATIVE, TRUE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE = KINDS = range(4)  # 2 * decision + right
CONTEXT = 6  # numbers of `Surroundings`
_FARTHEST = 20.0  # logits beyond it say no more
_BATCH = 8  # slices


@dataclass
class OrganSample:
    """A uniform sample of each kind of an organ's voxels: of all that were shown, those with the smallest keys.

    Attributes:
        population: [4] how many voxels of each kind were shown.
        keys: by kind, [m] random numbers; m is at most `BUDGET`.
        seen: by kind, [m, C + CONTEXT] float32: features, and what `Surroundings` says, the logit first.
    """

    population: list[int]
    keys: list[Tensor]
    seen: list[Tensor]

    @classmethod
    def empty(cls, numbers: int, device: torch.device) -> "OrganSample":
        """Nothing was shown; `numbers` is C + CONTEXT."""
        keys = [torch.empty(0, device=device) for _ in KINDS]
        return cls([0] * len(KINDS), keys, [torch.empty((0, numbers), device=device) for _ in KINDS])

    @property
    def empty_handed(self) -> bool:
        """Whether no case showed the organ annotated."""
        return not any(self.population)

    def logits(self, kind: int) -> Tensor:
        """[m] the organ's logits at the voxels of a kind."""
        return self.seen[kind][:, -CONTEXT]

    def add(self, kind: int, keys: Tensor, seen: Tensor) -> None:
        """Take voxels in, and leave those with the largest keys out."""
        keys, seen = torch.cat([self.keys[kind], keys]), torch.cat([self.seen[kind], seen])
        order = torch.sort(keys, stable=True).indices[:BUDGET]
        self.keys[kind], self.seen[kind] = keys[order], seen[order]

    def limit(self, kind: int) -> float:
        """Below which key a voxel is taken in."""
        keys = self.keys[kind]
        return float(keys[-1]) if len(keys) == BUDGET else 2.0


def channels_of(model: Segmenter) -> int:
    """C, how many features the 1x1 classifier reads."""
    return cast(nn.Conv2d, model.classifier[-1]).in_channels


@contextmanager
def features_of(model: Segmenter) -> Iterator[Callable[[], Tensor]]:
    """Let the last features [n, C, h, w] before the 1x1 classifier be asked for, after each batch of the network."""
    last: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...]) -> None:
        last[:] = inputs

    handle = model.classifier[-1].register_forward_pre_hook(keep)
    try:
        yield lambda: last[0].float()
    finally:
        handle.remove()


class Surroundings:
    """What surrounds the low pixels of a case, wherever they lie in it.

    Args:
        logits: [n, K, h, w].
    """

    def __init__(self, logits: Tensor) -> None:
        self._near = logits.float().clamp(-_FARTHEST, _FARTHEST)
        self._highest = self._near.topk(min(2, logits.shape[1]), dim=1).values

    def of(self, organ: int) -> Tensor:
        """Return [n, CONTEXT, h, w].

        The organ's logit, its mean over 3 x 3 x 3, the organ's share around, its largest logit in the slice, the
        largest one of another organ, and the logarithm of its area in the slice.
        """
        own = self._near[:, organ : organ + 1]  # [n, 1, h, w]
        flat = F.avg_pool2d(own, 3, 1, 1, count_include_pad=False)
        thick = (torch.cat([flat[:1], flat[:-1]]) + flat + torch.cat([flat[1:], flat[-1:]])) / 3
        share = own.sigmoid()
        around = F.avg_pool2d(share, 7, 1, 3, count_include_pad=False)
        largest = own.amax(dim=(2, 3), keepdim=True).expand_as(own)
        first, last = self._highest[:, :1], self._highest[:, -1:]
        other = torch.where(own == first, last, first)
        area = (share.sum(dim=(2, 3), keepdim=True) + 0.1).log().expand_as(own)
        return torch.cat([own, thick, around, largest, other, area], dim=1)


def at_voxels(
    low: Tensor,  # [n, C, h, w]
    places: Tensor,  # [m, 3] int64: slice, row, column
    stride: int,
) -> Tensor:  # [m, C]
    """Interpolate low pixels bilinearly at voxels, as `scores_by_stride` does."""
    top, bottom, down = _corners(places[:, 1], low.shape[2], stride)
    left, right, across = _corners(places[:, 2], low.shape[3], stride)
    n = places[:, 0]
    above = torch.lerp(low[n, :, top, left], low[n, :, top, right], across[:, None])
    below = torch.lerp(low[n, :, bottom, left], low[n, :, bottom, right], across[:, None])
    return torch.lerp(above, below, down[:, None])


def _corners(pixels: Tensor, low: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    place = (pixels + 0.5) / stride - 0.5
    lower = place.floor()
    first = lower.long()
    return first.clamp(0, low - 1), (first + 1).clamp(0, low - 1), (place - lower).float()


@torch.inference_mode()
def draw_samples(
    model: Segmenter, view: "TrainingView", cases: Sequence[str], seed: Sequence[int], check: Callable[[], None]
) -> list[OrganSample]:
    """Draw voxels of some cases for every organ; of a case only the organs that are annotated in it.

    Args:
        model: the network.
        view: human labels only; what is hidden from training is not seen.
        cases: in this order.
        seed: the same numbers and cases give the same voxels.
        check: called before each case; may raise to give up.

    Returns:
        [K] samples, on the model's device.
    """
    device = next(model.parameters()).device
    samples = [OrganSample.empty(channels_of(model) + CONTEXT, device) for _ in view.organs]
    with features_of(model) as last:
        for number, case in enumerate(cases):
            check()
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([*seed, number]).generate_state(1)[0]))
            _draw(model, view, case, samples, last, generator)
    return samples


def _draw(
    model: Segmenter,
    view: "TrainingView",
    case: str,
    samples: Sequence[OrganSample],
    last: Callable[[], Tensor],
    generator: torch.Generator,
) -> None:
    box, stride, device = view.box(case), model.config.scan_stride(view.spacing(case)), samples[0].keys[0].device
    organs = [k for k, state in enumerate(view.states[case]) if state is State.ANNOTATED]
    if not box.slices or not organs:
        return
    human = torch.from_numpy(box.crop(view.visible_labels(case))[list(box.slices)])  # [n, H', W']
    all_logits, chosen = [], []
    first = 0
    for _, batch in iterate_logits(model, view.image(case), _BATCH, box, stride):
        logits, labels = batch.float(), human[first : first + len(batch)].to(device)
        keys = torch.rand(labels.shape, generator=generator).to(device)
        for k in organs:
            right_side = scores_by_stride(logits[:, k], labels.shape, stride) > 0
            decisions = 2 * right_side.byte() + (right_side == (labels == k + 1)).byte()
            decisions[labels == VOID] = len(KINDS)
            for kind in KINDS:
                of_kind = decisions == kind
                samples[k].population[kind] += int(of_kind.sum())
                places = (of_kind & (keys < samples[k].limit(kind))).nonzero()
                own = keys[tuple(places.T)]
                order = torch.sort(own, stable=True).indices[:BUDGET]
                places, own = places[order], own[order]
                seen = at_voxels(last(), places, stride)
                places[:, 0] += first
                chosen.append((k, kind, places, own, seen))
        all_logits.append(logits)
        first += len(batch)
    whole = torch.cat(all_logits)
    surroundings = Surroundings(whole)
    around = {k: surroundings.of(k) for k in organs}
    for k, kind, places, own, seen in chosen:
        samples[k].add(kind, own, torch.cat([seen, at_voxels(around[k], places, stride)], dim=1))
