"""Where the prompts of both sides lie along a direction that they had no part in finding: `project_sides`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.statistics import SideProjections
from engine.stats.contrast import require_contrast
from engine.stats.gram import project_held_out
from engine.stats.groups import group_pairs
from engine.stats.separation import gram_at, require_usable, separate

if TYPE_CHECKING:
    from torch import Tensor


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
    if layer not in data["layers"]:
        raise RequestError(f"layer {layer} was not captured", expected=f"one of {data['layers']}")
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    if not groupings:
        raise RequestError("there are too few pairs, or too few groups, to leave any out", next_step="capture more")
    gram = gram_at(data, layer)
    require_usable(layer, gram)
    separation = separate(gram, groupings)
    held_out = project_held_out(gram, groupings[separation["worst"]])
    differences, middles = held_out.differences[:, 0], held_out.middles[:, 0]
    positive, negative = middles + differences / 2, middles - differences / 2
    spread = float(((positive.var() + negative.var()) / 2).sqrt())
    if spread == 0:
        raise RequestError(f"the prompts do not differ at layer {layer}", next_step="choose a later layer")
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
