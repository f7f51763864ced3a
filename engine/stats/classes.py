"""Where the prompts of both sides lie along a direction that they had no part in finding: `project_sides`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.capture.selection import captured_layer
from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.results import SideProjections, SideSummary, WrongPair
from engine.stats.contrast import require_contrast
from engine.stats.groups import group_pairs, pairs_at
from engine.stats.held_out import HeldOutLayer, hold_out
from engine.stats.scores import pair_gaps, wrong_pairs
from engine.stats.separation import require_usable, separate

if TYPE_CHECKING:
    from torch import Tensor


_STEPS = 48
_KEPT_WRONG = 20


def project_sides(data: ContrastData, layer: int) -> SideProjections:
    """Project every prompt on the direction of the pairs of all groups but its own, at one layer.

    Args:
        data: A contrast.
        layer: One of its layers.

    Returns:
        Projections in units of the spread within a side, 0 half-way between the two: their means lie d' apart.

    Raises:
        RequestError: The layer was not captured, nothing can be left out, or the states are not finite or do not vary.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> sides = project_sides(contrast, 16)
        >>> len(sides["positive"]), len(sides["negative"])
        (24, 24)
    """
    require_contrast(data)
    layer = captured_layer(layer, data["layers"])
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    if not groupings:
        raise RequestError("there are too few pairs, or too few groups, to leave any out", next_step="capture more")
    held_out = hold_out(pairs_at(data, layer), groupings)
    require_usable(layer, held_out.extent)
    sides = _sides(layer, held_out)
    if sides is None:
        raise RequestError(f"the prompts do not differ at layer {layer}", next_step="choose a later layer")
    return sides


def summarise_sides(data: ContrastData) -> list[SideSummary]:
    """What `project_sides` shows at every layer, in a size that does not grow with the number of pairs.

    Args:
        data: A contrast that `rank_layers` takes.

    Returns:
        One summary a layer, ascending; none for a layer at which the prompts do not differ.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> summary = summarise_sides(contrast)[0]
        >>> sum(summary["positive"]), sum(summary["negative"])
        (24, 24)
    """
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    found = [summarise_layer(layer, hold_out(pairs_at(data, layer), groupings)) for layer in data["layers"]]
    return [summary for summary in found if summary is not None]


def summarise_layer(layer: int, held_out: HeldOutLayer) -> SideSummary | None:
    """The summary of one layer from its projections; None where the prompts do not differ.

    Args:
        layer: Its number.
        held_out: What `hold_out` made of its pairs.
    """
    sides = _sides(layer, held_out)
    return None if sides is None else _summary(sides)


def _sides(layer: int, held_out: HeldOutLayer) -> SideProjections | None:
    """The projections at a layer; None where the prompts do not differ."""
    separation = separate(held_out)
    positive, negative = held_out.by_factor[separation["worst"]].sides
    spread = float(((positive.var() + negative.var()) / 2).sqrt())
    if spread == 0:
        return None
    middle = float((positive.mean() + negative.mean()) / 2)
    return SideProjections(
        layer=layer,
        left_out=separation["worst"],
        positive=_scaled(positive, middle, spread),
        negative=_scaled(negative, middle, spread),
        **separation["by_factor"][separation["worst"]],
    )


def _scaled(projections: Tensor, middle: float, spread: float) -> list[float]:
    values: list[float] = ((projections - middle) / spread).tolist()
    return values


def _summary(sides: SideProjections) -> SideSummary:
    low, high = min(*sides["positive"], *sides["negative"]), max(*sides["positive"], *sides["negative"])
    wrong, gaps = wrong_pairs(sides), pair_gaps(sides)
    return SideSummary(
        layer=sides["layer"],
        left_out=sides["left_out"],
        low=low,
        high=high,
        positive=_counted(sides["positive"], low, high),
        negative=_counted(sides["negative"], low, high),
        wrong=[WrongPair(pair=pair, gap=gaps[pair]) for pair in wrong[:_KEPT_WRONG]],
        wrong_total=len(wrong),
    )


def _counted(values: list[float], low: float, high: float) -> list[int]:
    counts = [0] * _STEPS
    for value in values:
        counts[min(int((value - low) / (high - low) * _STEPS), _STEPS - 1)] += 1
    return counts
