"""How well the two sides separate on prompts that had no part in finding the direction, layer by layer.

The direction is the mean difference of the pairs of all groups but one; the pairs of the group left out are projected
on it, and d' and AUROC are those of all projections together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.errors import Remedy, RequestError
from engine.records.captures import ContrastData
from engine.records.results import LayerSeparation, Separation
from engine.stats.groups import group_pairs, pairs_at
from engine.stats.held_out import Extent, HeldOut, HeldOutLayer, hold_out

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-10
_RESOLUTION = 1e-7  # of float32, which states come in at best


def compute_separation(data: ContrastData) -> dict[int, LayerSeparation]:
    """Held-out separation of a contrast at the last kept token, for each way to leave prompts out.

    Pairs made from one template, persona or topic go together and are left out together (leave-one-group-out); all
    three are reported, and the score of a layer is the worst of them: it generalises over everything that was varied.
    Pairs without factors are left out in five folds, which is easier and says less.

    d' is the distance of the two means over the root of the mean of the two variances (Green and Swets 1966, "Signal
    Detection Theory and Psychophysics"); AUROC the share of (positive, negative) prompts that come in the right order.

    Args:
        data: A contrast; all sums are in float64.

    Returns:
        Layer to separation by what was left out, and the name of the worst. Empty where nothing can be left out: fewer
        than four pairs, or than three groups of every factor.

    Example:
        >>> layers = compute_separation(capture_from_concept(model, tokenizer, "honesty", max_samples=8, layers=[16]))
        >>> sorted(layers[16]["by_factor"])
        ['persona', 'template', 'topic']
    """
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    layers = data["layers"] if groupings else []
    return {layer: separate(hold_out(pairs_at(data, layer), groupings)) for layer in layers}


def separate(held_out: HeldOutLayer) -> LayerSeparation:
    """Held-out separation at one layer, for each factor, and the worst of them."""
    by_factor = {factor: _separation(projected) for factor, projected in held_out.by_factor.items()}
    worst = min(by_factor, key=lambda factor: by_factor[factor]["d_prime"])
    return LayerSeparation(worst=worst, by_factor=by_factor)


def require_usable(layer: int, extent: Extent) -> None:
    """Refuse states that no separation can be computed from.

    Raises:
        RequestError: They are not finite, or the sides differ and nothing varies within them.
    """
    if not extent.finite:
        raise RequestError(f"layer {layer} holds values that are not finite", next_step=Remedy.CAPTURE_IN_FLOAT32)
    resolution = _RESOLUTION * extent.size
    if extent.longest > resolution and extent.apart <= resolution and extent.along <= resolution:
        raise RequestError(
            f"at layer {layer} all prompts of a side have the same state: there is no spread",
            expected="prompts that differ from each other",
            next_step="vary what the prompts are about",
        )


def _separation(projected: HeldOut) -> Separation:
    return Separation(
        d_prime=projected.d_prime,
        auroc=_auroc(*projected.sides),
        wrong_way=float((1 - projected.differences.sign().double().mean()) / 2),
    )


def _auroc(positive: Tensor, negative: Tensor) -> float:
    """Share of (positive, negative) in the right order; ties count half, rounded ones too."""
    low, high = (torch.stack([positive, negative]).flatten().sort().values)[[0, -1]]
    tie = _ROUNDING * (high - low)
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive - tie)  # negatives that are less by more than a tie
    not_above = torch.searchsorted(ordered, positive + tie, right=True)
    return float((below + not_above).double().mean() / (2 * len(negative)))
