"""Inner products of the states of pairs, and what is projected on what, for any number of resamples at once.

A direction is always a weighted sum of pair differences. So the inner products of the differences with each other, and
with the middles of the pairs, are all that any held-out projection needs: its cost does not depend on the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairGram:
    """Inner products at one layer, float64.

    Attributes:
        differences: Of every pair's difference with every pair's difference, `(pairs, pairs)`.
        middles: Of every pair's middle, taken from the mean of all middles, with every difference, `(pairs, pairs)`.
        size: Norm of the largest state: what is smaller than this by seven digits is rounding, not data.
    """

    differences: Tensor
    middles: Tensor
    size: float

    @classmethod
    def of(cls, positive: Tensor, negative: Tensor) -> PairGram:
        """Take the inner products of states, `(pairs, hidden)` each."""
        size = float(torch.cat([positive, negative]).double().norm(dim=-1).max())
        differences = positive.double() - negative.double()
        middles = (positive.double() + negative.double()) / 2
        middles = middles - middles.mean(dim=0)  # what all prompts share separates nothing, and costs digits
        return cls(differences @ differences.T, middles @ differences.T, size)


@dataclass(frozen=True)
class HeldOut:
    """Pairs projected on the direction that the pairs of all other groups give, for each resample.

    Attributes:
        differences: How far the positive prompt lies beyond the negative one, `(pairs, resamples)`.
        middles: Where the middle of the two lies, from the middle of the training pairs, `(pairs, resamples)`.
    """

    differences: Tensor
    middles: Tensor

    def d_prime(self, weights: Tensor | None = None) -> Tensor:
        """Distance of the two sides over the root of the mean of their variances, `(resamples,)`; 0 without any spread.

        The variance of a side is that of middle plus or minus half the difference, so the mean of the two needs no more
        than the variances of middles and differences.
        """
        count = len(self.differences)
        weights = torch.full_like(self.differences, 1 / count) if weights is None else weights / weights.sum(dim=0)
        distance = (weights * self.differences).sum(dim=0)
        middle = (weights * self.middles).sum(dim=0)
        squares = (weights * (self.middles.square() + self.differences.square() / 4)).sum(dim=0)
        variance = (squares - middle.square() - distance.square() / 4) * count / (count - 1)
        spread = variance.clamp_min(0).sqrt()
        return torch.where(spread > 0, distance / spread, torch.zeros_like(spread))


def project_held_out(
    gram: PairGram, groups: Tensor, weights: Tensor | None = None, signs: Tensor | None = None
) -> HeldOut:
    """Project every pair on the mean difference of the pairs of all groups but its own (leave one group out).

    Args:
        gram: Inner products of one layer.
        groups: Number of the group of each pair, `(pairs,)`.
        weights: How often each pair counts in each resample, `(pairs, resamples)`; once if left out.
        signs: -1 where the labels of a pair are swapped, `(pairs, resamples)`; no swap if left out.

    Returns:
        Projections in the units of the states.
    """
    pairs = len(groups)
    if weights is None:
        weights = torch.ones((pairs, 1 if signs is None else signs.shape[1]), dtype=torch.float64)
    signed = weights if signs is None else weights * signs  # the direction is the sum of these times the differences
    member = (groups == torch.arange(int(groups.max()) + 1)[:, None]).double()  # (groups, pairs)
    same = member.T @ member  # (pairs, pairs), 1 for pairs that are left out together
    differences = (gram.differences * (1 - same)) @ signed  # (pairs, resamples), each on its own direction
    middles = (gram.middles * (1 - same)) @ signed
    # Of the training pairs of each group: the length of the direction, and the middle along it; (groups, resamples).
    onto_all = signed * (gram.differences @ signed)
    squared_length = onto_all.sum(dim=0) - member @ (onto_all + signed * differences)
    from_all = signed * (gram.middles.T @ weights)
    kept = weights.sum(dim=0) - member @ weights
    middle = (from_all.sum(dim=0) - member @ (from_all + weights * middles)) / kept
    per_length = torch.where(squared_length > 0, squared_length.clamp_min(0).rsqrt(), torch.zeros_like(squared_length))
    own = per_length[groups]
    if signs is not None:
        differences = differences * signs
    return HeldOut(differences * own, (middles - middle[groups]) * own)
