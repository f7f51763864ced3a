"""Resamples of a contrast by whole groups: other groups drawn (bootstrap), labels swapped (permutation).

Knows weights and signs of units. Does not know what is computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from scipy.special import ndtri, stdtrit

from engine.stats.moments import UnitMoments

if TYPE_CHECKING:
    from torch import Generator, Tensor


_AT_ONCE = 1000  # resamples held in memory together: the peak does not depend on how many are asked for
_COUNTABLE = 40  # more groups have more shuffles than anyone runs


def bootstrap_deviations(moments: UnitMoments, resamples: int, generator: Generator) -> Tensor:
    """How held-out d' moves when other groups had been drawn.

    The Bayesian bootstrap (Rubin 1981, "The Bayesian Bootstrap"): each group gets a random weight, exponentially
    distributed, in the direction and in the score. No resample loses a group whole, as the usual bootstrap does with
    most resamples of six. Its variance falls short of an unbiased one by (g - 1)/(g + 1), which is put right.

    Args:
        moments: Of one layer.
        resamples: Number of resamples.
        generator: Source of randomness; seeded alike for all layers, so that their deviations belong together.

    Returns:
        Deviations from the mean over resamples, `(resamples,)`.
    """
    count = len(moments.groups)
    parts = []
    for size in _chunks(resamples):
        drawn = torch.empty((count, size), dtype=torch.float64).exponential_(generator=generator)
        parts.append(moments.d_prime(weights=drawn / drawn.mean(dim=0)))
    scores = torch.cat(parts)
    return (scores - scores.mean()) * math.sqrt((count + 1) / (count - 1))


def shuffled_scores(moments: UnitMoments, permutations: int, generator: Generator) -> Tensor:
    """Held-out d' after the labels of whole groups have been swapped at random, `(shuffles,)`.

    Every way to swap where there are no more than `permutations` of them, the true labels among them.

    Args:
        moments: Of one layer.
        permutations: Most shuffles.
        generator: Source of randomness; seeded alike for all layers.
    """
    count = len(moments.groups)
    return torch.cat([moments.d_prime(signs=signs) for signs in _signs(count, permutations, generator)])


def distinct_shuffles(count: int, permutations: int) -> int:
    """How many shuffles `shuffled_scores` makes of `count` groups: all labels swapped is the same as none."""
    return permutations if count > _COUNTABLE else min(1 << (count - 1), permutations)


def all_shuffles(count: int, permutations: int) -> bool:
    """Whether these are every one there is."""
    return count <= _COUNTABLE and 1 << (count - 1) <= permutations


def _signs(count: int, permutations: int, generator: Generator) -> Iterator[Tensor]:
    """Signs of each unit, `(units, shuffles)`, in chunks."""
    if all_shuffles(count, permutations):
        numbers = torch.arange(1 << (count - 1))
        every = 1.0 - 2.0 * ((numbers[None, :] >> torch.arange(count)[:, None]) & 1).double()  # the last is never -1
        for start in range(0, every.shape[1], _AT_ONCE):
            yield every[:, start : start + _AT_ONCE]
        return
    for size in _chunks(permutations):
        yield 1.0 - 2.0 * torch.randint(2, (count, size), generator=generator).double()


def _chunks(total: int) -> Iterator[int]:
    for start in range(0, total, _AT_ONCE):
        yield min(_AT_ONCE, total - start)


def p_values(observed: Tensor, shuffled: Tensor, groups: int, permutations: int) -> Tensor:
    """Share of shuffles in which the best of all layers scores as high as a layer does, the true labels among them.

    The maximum over layers makes 5% the chance of a false find among all of them (Westfall and Young 1993,
    "Resampling-Based Multiple Testing"). Where the shuffles are drawn, the true labels count as one more: a drawn
    shuffle never gives p = 0 (Phipson and Smyth 2010, "Permutation P-values Should Never Be Zero").

    Args:
        observed: Scores of the true labels, `(layers,)`.
        shuffled: Scores of shuffled labels, `(layers, shuffles)`.
        groups: Number of groups whose labels are swapped.
        permutations: Most shuffles.

    Returns:
        `(layers,)`, float64.

    Example:
        >>> import torch
        >>> shuffled = torch.tensor([[3.0, 1.0, -1.0, -3.0], [1.0, 2.0, -2.0, -1.0]])
        >>> p_values(torch.tensor([3.0, 1.0]), shuffled, groups=3, permutations=100).tolist()
        [0.25, 0.5]
    """
    best = shuffled.amax(dim=0)  # (shuffles,)
    tolerance = 1e-9 * (1 + observed.abs())  # the true labels come out the same but for rounding
    as_high = (best[None, :] >= (observed - tolerance)[:, None]).sum(dim=1)
    if all_shuffles(groups, permutations):
        return as_high.double() / best.numel()
    return (as_high.double() + 1) / (best.numel() + 1)


def smallest_p(groups: int, permutations: int) -> float:
    """The smallest p-value that so many groups and shuffles can give.

    Args:
        groups: Number of groups whose labels are swapped.
        permutations: Most shuffles.

    Example:
        >>> smallest_p(6, 10_000), smallest_p(60, 9_999)
        (0.03125, 0.0001)
    """
    shuffles = distinct_shuffles(groups, permutations)
    return 1 / shuffles if all_shuffles(groups, permutations) else 1 / (shuffles + 1)


def half_width(groups: int, confidence: float) -> float:
    """Standard deviations that a two-sided interval reaches to each side when they come from this many groups."""
    return float(stdtrit(groups - 1, (1 + confidence) / 2))


def widening(groups: int, confidence: float) -> float:
    """How much further a one-sided bound reaches for being estimated from this many groups and not from very many."""
    return float(stdtrit(groups - 1, confidence) / ndtri(confidence))


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
