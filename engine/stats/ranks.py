"""Which places in a ranking the data leave open to each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.stats.student import widening

if TYPE_CHECKING:
    from torch import Tensor


def open_places(scores: Tensor, deviations: Tensor, groups: list[int], confidence: float) -> list[tuple[int, int]]:
    """Best and worst place of each layer that the data leave open.

    A place is lost to every layer that is better beyond doubt, and won over every one that is worse beyond doubt. For
    each layer the differences to all others are tested together, by the largest studentized deviation in the resamples
    (Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for Ranks with Applications to Mobility across Neighbourhoods
    and Academic Achievement across Countries"). So the layers to which first place is open hold the truly best one with
    the confidence asked for (Hsu 1981, "Simultaneous Confidence Intervals for all Distances from the Best").

    Args:
        scores: `(layers,)`.
        deviations: Of the scores in resamples, drawn for all layers together, `(layers, resamples)`.
        groups: From how many groups each layer's deviations come.
        confidence: That the best place is no better, and that the worst is no worse, than what is returned.

    Returns:
        Places from 1, both included.
    """
    places = []
    for layer in range(len(scores)):
        differences = deviations - deviations[layer]  # (layers, resamples)
        error = differences.std(dim=1)
        known = error > 0  # not the layer itself, nor its copy
        better = worse = 0
        if known.any():
            studentized = differences[known] / error[known, None]
            widen = widening(min(groups[layer], *groups), confidence)
            gap = (scores - scores[layer])[known] / error[known]
            better = int((gap > widen * (-studentized).amax(dim=0).quantile(confidence)).sum())
            worse = int((-gap > widen * studentized.amax(dim=0).quantile(confidence)).sum())
        places.append((1 + better, len(scores) - worse))
    return places
