"""Bootstrap, permutations, p-values and rank intervals over whole groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from scipy.special import ndtr, stdtrit

from engine.stats.moments import UnitMoments

if TYPE_CHECKING:
    from torch import Generator, Tensor


CONFIDENCE = 0.95
RESAMPLES = 2000
PERMUTATIONS = 4096  # all of up to 13 groups
_AT_ONCE = 1000  # resamples per chunk, so that peak memory does not grow with their number
_COUNTABLE = 40  # groups beyond which enumerating all permutations is out of the question


def bootstrap_deviations(moments: UnitMoments, resamples: int, generator: Generator) -> Tensor:
    """Resample held-out d' with the Bayesian bootstrap over groups.

    Each group gets an exponentially distributed random weight, both in the direction and in the score (Rubin 1981, "The
    Bayesian Bootstrap"). No resample loses a group entirely; most ordinary bootstrap resamples of six groups do. For g
    groups the bootstrap variance is (g - 1)/(g + 1) of an unbiased estimate; the deviations are scaled to correct this.

    Args:
        moments: Unit moments of one layer.
        resamples: Number of resamples.
        generator: Random generator, seeded identically for all layers so that their deviations are paired.

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


def permutation_null(moments: UnitMoments, permutations: int, generator: Generator) -> Tensor:
    """Compute the permutation null: held-out d' with labels of whole groups swapped.

    All distinct permutations are enumerated if there are at most `permutations` of them, including the true labels.

    Args:
        moments: Unit moments of one layer.
        permutations: Maximum number of permutations.
        generator: Random generator, seeded identically for all layers.

    Returns:
        One score per permutation, `(permutations,)`.
    """
    count = len(moments.groups)
    return torch.cat([moments.d_prime(signs=signs) for signs in _signs(count, permutations, generator)])


def distinct_permutations(count: int, permutations: int) -> int:
    """Number of permutations that `permutation_null` runs for `count` groups.

    Swapping all labels equals swapping none, so there are at most 2^(count - 1) distinct permutations.
    """
    return permutations if count > _COUNTABLE else min(1 << (count - 1), permutations)


def all_permutations(count: int, permutations: int) -> bool:
    """Whether `permutation_null` enumerates every permutation of `count` groups."""
    return count <= _COUNTABLE and 1 << (count - 1) <= permutations


def _signs(count: int, permutations: int, generator: Generator) -> Iterator[Tensor]:
    """Yield the label signs of each unit in chunks, `(units, permutations)`."""
    if all_permutations(count, permutations):
        yield from torch.split(all_signs(count), _AT_ONCE, dim=1)
        return
    for size in _chunks(permutations):
        yield random_signs(count, size, generator)


def all_signs(count: int) -> Tensor:
    """Label signs of every distinct permutation of units, `(units, 2^(units - 1))`.

    The last unit is never swapped: that would repeat each permutation with all labels swapped.
    """
    numbers = torch.arange(1 << (count - 1))
    return 1.0 - 2.0 * ((numbers[None, :] >> torch.arange(count)[:, None]) & 1).double()


def random_signs(count: int, draws: int, generator: Generator) -> Tensor:
    """Random signs of units or groups, `(units, draws)`."""
    return 1.0 - 2.0 * torch.randint(2, (count, draws), generator=generator).double()


def _chunks(total: int) -> Iterator[int]:
    for start in range(0, total, _AT_ONCE):
        yield min(_AT_ONCE, total - start)


def p_values(observed: Tensor, shuffled: Tensor, groups: int, permutations: int) -> Tensor:
    """Compute permutation p-values, corrected for the number of layers.

    The p-value of a layer is the share of permutations in which the best of all layers scores at least as high. This
    maximum statistic makes 5% the chance of a false positive among all layers (Westfall and Young 1993,
    "Resampling-Based Multiple Testing"). The true labels always count as one permutation: they are added if
    permutations are sampled, so that p is never 0 (Phipson and Smyth 2010, "Permutation P-values Should Never Be
    Zero").

    Args:
        observed: Scores of the true labels, `(layers,)`.
        shuffled: Permutation null, `(layers, permutations)`.
        groups: Number of groups whose labels are swapped.
        permutations: Maximum number of permutations.

    Returns:
        p-values, `(layers,)`, float64.

    Example:
        >>> import torch
        >>> shuffled = torch.tensor([[3.0, 1.0, -1.0, -3.0], [1.0, 2.0, -2.0, -1.0]])
        >>> p_values(torch.tensor([3.0, 1.0]), shuffled, groups=3, permutations=100).tolist()
        [0.25, 0.5]
    """
    best = shuffled.amax(dim=0)  # (permutations,)
    tolerance = 1e-9 * (1 + observed.abs())  # enumerated true labels reproduce the observed score up to rounding
    as_high = (best[None, :] >= (observed - tolerance)[:, None]).sum(dim=1)
    if all_permutations(groups, permutations):
        return as_high.double() / best.numel()
    return (as_high.double() + 1) / (best.numel() + 1)


def smallest_p(groups: int, permutations: int) -> float:
    """Smallest p-value possible with this many groups and permutations.

    Args:
        groups: Number of groups whose labels are swapped.
        permutations: Maximum number of permutations.

    Example:
        >>> smallest_p(6, 10_000), smallest_p(60, 9_999)
        (0.03125, 0.0001)
    """
    shuffles = distinct_permutations(groups, permutations)
    return 1 / shuffles if all_permutations(groups, permutations) else 1 / (shuffles + 1)


def half_width(freedom: float, confidence: float) -> float:
    """Half-width of a two-sided interval for these degrees of freedom, in standard errors."""
    return float(stdtrit(freedom, (1 + confidence) / 2))


def as_students_t(deviate: float, freedom: float) -> float:
    """Value of Student's t that is exceeded as rarely as a normal deviate.

    Far out it grows faster than in proportion: a factor that fits one layer is too small for the largest of many.

    Example:
        >>> [round(as_students_t(deviate, 11), 2) for deviate in (1.645, 2.9)]
        [1.8, 3.66]
    """
    return -float(stdtrit(freedom, ndtr(-deviate)))


def rank_intervals(
    scores: Tensor, deviations: Tensor, freedom: list[float], confidence: float
) -> list[tuple[int, int]]:
    """Compute the rank interval of each layer: its best and worst plausible rank.

    A layer ranks below every layer that is significantly better and above every layer that is significantly worse. The
    differences between a layer and all others are tested jointly, by the largest studentized deviation in the
    resamples (Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for Ranks with Applications to Mobility across
    Neighbourhoods and Academic Achievement across Countries"). The layers whose interval includes rank 1 contain the
    truly best layer with the requested confidence (Hsu 1981, "Simultaneous Confidence Intervals for all Distances from
    the Best").

    Args:
        scores: Observed scores, `(layers,)`.
        deviations: Bootstrap deviations of the scores, paired across layers, `(layers, resamples)`.
        freedom: Degrees of freedom of the deviations of each layer.
        confidence: Confidence level of each end of the interval.

    Returns:
        Best and worst rank of each layer, counted from 1, inclusive.
    """
    places = []
    for layer in range(len(scores)):
        differences = deviations - deviations[layer]  # (layers, resamples)
        error = differences.std(dim=1)
        known = error > 0  # excludes the layer itself and exact copies of it
        better = worse = 0
        if known.any():
            studentized = differences[known] / error[known, None]
            gap = (scores - scores[layer])[known] / error[known]
            lower, higher = (
                as_students_t(float(largest.amax(dim=0).quantile(confidence)), min(freedom))
                for largest in (-studentized, studentized)
            )
            better = int((gap > lower).sum())
            worse = int((-gap > higher).sum())
        places.append((1 + better, len(scores) - worse))
    return places
