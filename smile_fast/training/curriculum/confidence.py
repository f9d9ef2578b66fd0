"""A confidence head: how likely the network's decision at a voxel is right, learned on annotated organs only.

Two logistic heads an organ read the frozen network's features before its 1x1 classifier, and what surrounds the voxel:
one judges its positive decisions, the other its negative ones.

Source:
    Petit et al., "Iterative confidence relabeling with deep ConvNets for organ segmentation with partial labels",
    Computerized Medical Imaging and Graphics, 2021: a network beside the segmentation's learns where that is right;
    after Corbière et al., "Addressing failure prediction by learning model confidence", NeurIPS 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.models import Segmenter
from smile_fast.training.curriculum.samples import (
    CONTEXT,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_NEGATIVE,
    TRUE_POSITIVE,
    OrganSample,
    Surroundings,
    features_of,
)
from smile_fast.training.inference import iterate_logits
from smile_runtime.volume.preprocessing import BodyBox

FEWEST = 20  # right and wrong decisions that a head is fitted to
_RIDGE = 0.01  # on the mean loss, for inputs of variance 1
_STEPS = 60
_SIDES = ((FALSE_NEGATIVE, TRUE_NEGATIVE), (FALSE_POSITIVE, TRUE_POSITIVE))  # wrong, right


@dataclass(frozen=True)
class Heads:
    """The heads of all organs.

    Attributes:
        weights: [K, 2, C + CONTEXT + 1] float64: of negative and of positive decisions, the bias last; NaN where there
            were not enough decisions to learn from.
    """

    weights: Tensor

    def judges(self, organ: int, positive: bool) -> bool:
        """Whether there is a head for an organ's positive, or negative, decisions."""
        return bool(self.weights[organ, int(positive)].isfinite().all())


def fit_heads(samples: Sequence[OrganSample]) -> Heads:
    """Fit the heads of all organs; deterministic, on the samples' device in float64."""
    rows = []
    for sample in samples:
        for wrong, right in _SIDES:
            rows.append(_fit_side(sample, wrong, right))
    weights = torch.stack(rows)
    return Heads(weights.view(len(samples), len(_SIDES), -1).cpu())


def _fit_side(sample: OrganSample, wrong: int, right: int) -> Tensor:
    bad, good = sample.seen[wrong].double(), sample.seen[right].double()
    if min(len(bad), len(good)) < FEWEST:
        return torch.full((bad.shape[1] + 1,), torch.nan, dtype=torch.float64, device=bad.device)
    weights = fit_logistic(torch.cat([bad, good]), torch.cat([bad.new_zeros(len(bad)), good.new_ones(len(good))]))
    # Right and wrong decisions were drawn apart: the bias brings their odds back to those of all voxels.
    odds = sample.population[right] / sample.population[wrong] * len(bad) / len(good)
    weights[-1] += torch.tensor(odds, dtype=torch.float64).log()
    return weights


def fit_logistic(
    inputs: Tensor,  # [m, F]
    right: Tensor,  # [m]
) -> Tensor:  # [F + 1]
    """Weights and bias of a logistic regression with a ridge, float64."""
    mean, std = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    scaled = (inputs - mean) / std
    own = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([own], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(scaled @ own[:-1] + own[-1], right)
        value = value + 0.5 * _RIDGE * own[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = own.detach()
    weights = found[:-1] / std
    return torch.cat([weights, (found[-1] - (weights * mean).sum())[None]])


@torch.inference_mode()
def judged_logits(
    model: Segmenter,
    image: Any,  # [D, H, W] int16 HU
    heads: Heads,
    temperatures: Tensor,  # [K, 1, 1]
    *,
    box: BodyBox,
    spacing: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of a case, what ranks its positive decisions, and what ranks its negative ones.

    Of the second the highest are the surest, of the third the lowest; where an organ has no head both are its logits,
    divided by its temperature.

    Returns:
        [n, K, h, w] float32 each, log-odds.
    """
    stride = model.config.scan_stride(spacing)
    weights = heads.weights.to(next(model.parameters()).device, torch.float32)
    of_features, of_context, bias = weights[..., : -CONTEXT - 1], weights[..., -CONTEXT - 1 : -1], weights[..., -1]
    batches, seen = [], []
    with features_of(model) as last:
        for _, logits in iterate_logits(model, image, box=box, scan_stride=stride):
            batches.append(logits.float())
            seen.append(torch.einsum("nchw,ksc->nkshw", last(), of_features))
    logits, seen_by = torch.cat(batches), torch.cat(seen)  # [n, K, h, w], [n, K, 2, h, w]
    ranks, doubts, surroundings = logits / temperatures, logits / temperatures, Surroundings(logits)
    for k in range(logits.shape[1]):
        around = torch.einsum("nchw,sc->nshw", surroundings.of(k), of_context[k])
        sure = seen_by[:, k] + around + bias[k][:, None, None]  # [n, 2, h, w]
        if heads.judges(k, positive=True):
            ranks[:, k] = sure[:, 1]
        if heads.judges(k, positive=False):
            doubts[:, k] = -sure[:, 0]
    return logits, ranks, doubts
