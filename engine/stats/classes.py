"""Held-out projections of both classes, and their summary for records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.capture.selection import captured_layer
from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.results import ClassProjections, ClassSummary, WrongPair
from engine.stats.contrast import require_contrast
from engine.stats.designs import cannot_hold_out
from engine.stats.groups import PAIRS, group_pairs, held_out_groups, pairs_at
from engine.stats.held_out import HeldOutLayer, hold_out
from engine.stats.scores import count_tied, pair_gaps, wrong_pairs
from engine.stats.separation import require_usable, separate

if TYPE_CHECKING:
    from torch import Tensor


_STEPS = 48
_KEPT_WRONG = 20


def project_sides(data: ContrastData, layer: int) -> ClassProjections:
    """Project the held-out prompts of both classes on the direction at one layer.

    The direction for each pair is the mean difference of the pairs in all other groups (leave-one-group-out).

    Args:
        data: A contrast.
        layer: A captured layer.

    Returns:
        Projections in units of the spread within a class, centered between the two class means: the means differ by d'.

    Raises:
        RequestError: The layer was not captured, no group can be held out, or the states are not finite or do not vary.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> sides = project_sides(contrast, 16)
        >>> len(sides["positive"]), len(sides["negative"])
        (24, 24)
    """
    require_contrast(data)
    layer = captured_layer(layer, data["layers"])
    groupings = group_pairs(data)
    if not groupings:
        raise cannot_hold_out(data)
    held_out = hold_out(pairs_at(data, layer), groupings)
    require_usable(layer, held_out.extent)
    sides = _sides(layer, held_out)
    if sides is None:
        raise RequestError(f"the prompts do not differ at layer {layer}", next_step="choose a later layer")
    if sides["left_out"] == PAIRS:
        sides["folds"] = len(set(held_out_groups(PAIRS, groupings[PAIRS]).tolist()))
    return sides


def summarise_layer(layer: int, held_out: HeldOutLayer) -> ClassSummary | None:
    """Summarize the projections of one layer; None if the prompts do not differ.

    The size of a summary does not depend on the number of pairs.

    Args:
        layer: Layer number.
        held_out: Result of `hold_out` for the pairs of this layer.
    """
    sides = _sides(layer, held_out)
    return None if sides is None else _summary(sides)


def _sides(layer: int, held_out: HeldOutLayer) -> ClassProjections | None:
    """Projections at one layer; None if the prompts do not differ."""
    separation = separate(held_out)
    positive, negative = held_out.by_factor[separation["worst"]].sides
    spread = float(((positive.var() + negative.var()) / 2).sqrt())
    if spread == 0:
        return None
    score = separation["by_factor"][separation["worst"]]
    middle = float((positive.mean() + negative.mean()) / 2)
    return ClassProjections(
        layer=layer,
        left_out=separation["worst"],
        positive=_scaled(positive, middle, spread),
        negative=_scaled(negative, middle, spread),
        d_prime=score["d_prime"],
        auroc=score["auroc"],
        wrong_way=score["wrong_way"],
    )


def _scaled(projections: Tensor, middle: float, spread: float) -> list[float]:
    values: list[float] = ((projections - middle) / spread).tolist()
    return values


def _summary(sides: ClassProjections) -> ClassSummary:
    low, high = min(*sides["positive"], *sides["negative"]), max(*sides["positive"], *sides["negative"])
    wrong, gaps = wrong_pairs(sides), pair_gaps(sides)
    summary = ClassSummary(
        layer=sides["layer"],
        left_out=sides["left_out"],
        low=low,
        high=high,
        positive=_counted(sides["positive"], low, high),
        negative=_counted(sides["negative"], low, high),
        wrong=[WrongPair(pair=pair, gap=gaps[pair]) for pair in wrong[:_KEPT_WRONG]],
        wrong_total=len(wrong),
    )
    if tied := count_tied(sides):
        summary["tied_total"] = tied
    return summary


def _counted(values: list[float], low: float, high: float) -> list[int]:
    counts = [0] * _STEPS
    for value in values:
        counts[min(int((value - low) / (high - low) * _STEPS), _STEPS - 1)] += 1
    return counts
