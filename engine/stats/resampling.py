"""Resamples of a contrast by whole groups: other groups drawn (bootstrap), labels swapped (permutation).

Knows weights and signs of pairs. Does not know what is computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from engine.stats.gram import PairGram, project_held_out

if TYPE_CHECKING:
    from torch import Generator, Tensor

_AT_ONCE = 1000  # resamples held in memory together: the peak does not depend on how many are asked for
_COUNTABLE = 40  # more groups have more shuffles than anyone runs


def bootstrap_deviations(
    grams: list[PairGram], groups: Tensor, units: Tensor, resamples: int, generator: Generator
) -> Tensor:
    """How held-out d' moves when other groups had been drawn, at several layers alike.

    The Bayesian bootstrap (Rubin 1981, "The Bayesian Bootstrap"): each group gets a random weight, exponentially
    distributed, in the direction and in the score. No resample loses a group whole, as the usual bootstrap does with
    most resamples of six. Its variance falls short of an unbiased one by (g - 1)/(g + 1), which is put right.

    Args:
        grams: Inner products, one for each layer.
        groups: What is left out together, `(pairs,)`.
        units: What is drawn together, `(pairs,)`.
        resamples: Number of resamples.
        generator: Source of randomness; the same for all layers, so that their deviations belong together.

    Returns:
        Deviations from the mean over resamples, `(layers, resamples)`.
    """
    count = int(units.max()) + 1
    parts = []
    for size in _chunks(resamples):
        drawn = torch.empty((count, size), dtype=torch.float64).exponential_(generator=generator)
        weights = (drawn / drawn.mean(dim=0))[units]  # (pairs, size)
        parts.append(torch.stack([project_held_out(gram, groups, weights).d_prime(weights) for gram in grams]))
    scores = torch.cat(parts, dim=1)
    return (scores - scores.mean(dim=1, keepdim=True)) * math.sqrt((count + 1) / (count - 1))


def shuffled_scores(
    grams: list[PairGram], groups: Tensor, units: Tensor, permutations: int, generator: Generator
) -> Tensor:
    """Held-out d' after the labels of whole groups have been swapped at random, `(layers, shuffles)`.

    Every way to swap where there are no more than `permutations` of them, the true labels among them.

    Args:
        grams: Inner products, one for each layer.
        groups: What is left out together, `(pairs,)`.
        units: What is swapped together, `(pairs,)`.
        permutations: Most shuffles.
        generator: Source of randomness.
    """
    count = int(units.max()) + 1
    parts = [
        torch.stack([project_held_out(gram, groups, signs=signs[units]).d_prime() for gram in grams])
        for signs in _signs(count, permutations, generator)
    ]
    return torch.cat(parts, dim=1)


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
