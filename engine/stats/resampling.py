"""Resamples of a contrast by whole groups: other groups drawn (bootstrap), labels swapped (permutation).

Knows weights and signs of units. Does not know what is computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

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
