"""Held-out separation of the classes at each layer.

The pairs of each group are projected on the mean difference of the pairs in all other groups; d' and AUROC are computed
over all projections together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.results import LayerSeparation, Separation
from engine.remedies import Remedy
from engine.stats.contrast import require_contrast
from engine.stats.groups import group_pairs, pairs_at
from engine.stats.held_out import Extent, HeldOut, HeldOutLayer, hold_out
from engine.stats.scores import TIE

if TYPE_CHECKING:
    from torch import Tensor

RESOLUTION = 1e-7
"""Of float32, the highest precision of captured states: smaller variation, relative to them, is rounding error."""


def compute_separation(data: ContrastData) -> dict[int, LayerSeparation]:
    """Compute the held-out separation at the last kept token of each layer.

    Pairs made from the same persona, template or topic are held out together (leave-one-group-out). All three factors
    are reported. The score of a layer is the lowest of them, so that it generalizes over everything that was varied.
    Pairs without factors are held out in at most five folds, an easier test that says less.

    d' is the distance between the class means over the root mean of the class variances (Green and Swets 1966, "Signal
    Detection Theory and Psychophysics"). AUROC is the share of (positive, negative) prompts in the right order.

    Args:
        data: A contrast; all sums are in float64.

    Returns:
        Layer to the separation for each factor and the factor with the lowest d'. Empty if no group can be held out:
        fewer than four pairs, or fewer than three groups of every factor.

    Raises:
        RequestError: This is not a contrast, or its parts do not match.

    Example:
        >>> layers = compute_separation(capture_from_concept(model, tokenizer, "honesty", max_samples=8, layers=[16]))
        >>> sorted(layers[16]["by_factor"])
        ['persona', 'template', 'topic']
    """
    require_contrast(data)
    groupings = group_pairs(data)
    layers = data["layers"] if groupings else []
    return {layer: separate(hold_out(pairs_at(data, layer), groupings)) for layer in layers}


def separate(held_out: HeldOutLayer) -> LayerSeparation:
    """Compute the held-out separation at one layer for each factor."""
    by_factor = {factor: _separation(projected) for factor, projected in held_out.by_factor.items()}
    worst = min(by_factor, key=lambda factor: by_factor[factor]["d_prime"])
    return LayerSeparation(worst=worst, by_factor=by_factor)


def require_usable(layer: int, extent: Extent) -> None:
    """Require states from which a separation can be computed.

    Raises:
        RequestError: The states are not finite, or the classes differ without any spread within them.
    """
    if not extent.finite:
        raise RequestError(f"layer {layer} has non-finite values", next_step=Remedy.CAPTURE_IN_FLOAT32)
    resolution = RESOLUTION * extent.size
    if extent.longest > resolution and extent.apart <= resolution and extent.along <= resolution:
        raise RequestError(
            f"layer {layer} has no spread: all prompts of a class have the same state",
            expected="prompts that differ from each other",
            next_step="vary the topics of the prompts",
        )


def _separation(projected: HeldOut) -> Separation:
    sides = projected.sides
    return Separation(
        d_prime=projected.d_prime,
        auroc=share_in_order(*sides),
        wrong_way=share_above(-projected.differences, tie_between(*sides)),
    )


def tie_between(positive: Tensor, negative: Tensor) -> float:
    """Largest distance between two projections that counts as a tie; see `TIE`."""
    low, high = torch.cat([positive, negative]).aminmax()
    return float(TIE * (high - low))


def share_above(gaps: Tensor, tie: float) -> float:
    """Share of gaps above zero, `(pairs,)`; ties count half."""
    return float(((gaps > tie).double() + (gaps.abs() <= tie).double() / 2).mean())


def share_in_order(positive: Tensor, negative: Tensor) -> float:
    """AUROC: share of (positive, negative) projections in the right order; ties count half."""
    return float(count_below(positive, negative, tie_between(positive, negative)).mean() / len(negative))


def count_below(positive: Tensor, negative: Tensor, tie: float) -> Tensor:
    """Number of negative projections below each positive one, `(positive,)`; ties count half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive - tie) + torch.searchsorted(ordered, positive + tie, right=True)
    return below.double() / 2
