"""What the pairs of each unit add up to, from which held-out d' follows for any weights and labels of the units.

A direction is a weighted sum of the differences of units. So the inner products of these sums, and the first and second
moments of the pairs along them, are all that d' needs: its cost depends neither on the width nor on the number of
pairs. Knows sums; does not know where they came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Training(NamedTuple):
    """Directions that the pairs of all groups but one give, for each group and resample.

    Attributes:
        per_length: One over the length of the sum of differences; 0 where that is none, `(groups, resamples)`.
        middle: Where the middle of the training pairs lies along that sum, `(groups, resamples)`.
    """

    per_length: Tensor
    middle: Tensor


@dataclass(frozen=True)
class UnitMoments:
    """Sums over the pairs of each unit at one layer, float64.

    A unit is what is drawn or swapped as a whole; a group is what is left out as a whole, and consists of units.

    Attributes:
        groups: Number of the group of each unit, `(units,)`.
        pairs: Number of pairs of each unit, `(units,)`.
        differences: Inner products of the summed differences of every two units, `(units, units)`.
        middles: Of every unit's summed middles, taken from the mean of all, with every unit's summed differences.
        squares: For each unit the sum over its pairs of m mᵀ + d dᵀ / 4, where m and d are a pair's middle and
            difference along the summed differences of every unit, `(units, units, units)`.
    """

    groups: Tensor
    pairs: Tensor
    differences: Tensor
    middles: Tensor
    squares: Tensor

    @property
    def others(self) -> Tensor:
        """1 where two units are not left out together, `(units, units)`."""
        return (self.groups[:, None] != self.groups).double()

    def train(self, weights: Tensor, signed: Tensor) -> Training:
        """Directions from the pairs of all groups but each.

        Args:
            weights: How often each unit counts, `(units, resamples)`.
            signed: The same times -1 where its labels are swapped: the direction is the sum of these times the
                differences.
        """
        member = (self.groups == torch.arange(int(self.groups.max()) + 1)[:, None]).double()  # (groups, units)
        others = self.others
        onto_all = signed * (self.differences @ signed)
        onto_others = signed * ((self.differences * others) @ signed)
        squared_length = onto_all.sum(dim=0) - member @ (onto_all + onto_others)
        from_all = signed * (self.middles.T @ weights)
        from_own = weights * ((self.middles * others) @ signed)
        counted = weights * self.pairs[:, None]
        kept = counted.sum(dim=0) - member @ counted
        middle = (from_all.sum(dim=0) - member @ (from_all + from_own)) / kept
        none = torch.zeros_like(squared_length)
        return Training(
            torch.where(squared_length > 0, squared_length.clamp_min(0).rsqrt(), none),
            middle,
        )

    def d_prime(self, weights: Tensor | None = None, signs: Tensor | None = None) -> Tensor:
        """Held-out d' of each resample, `(resamples,)`; 0 without any spread.

        Args:
            weights: How often each unit counts in each resample, `(units, resamples)`; once if left out.
            signs: -1 where the labels of a unit are swapped, `(units, resamples)`; no swap if left out.
        """
        if weights is None:
            weights = torch.ones((len(self.groups), 1 if signs is None else signs.shape[1]), dtype=torch.float64)
        signs = torch.ones_like(weights) if signs is None else signs
        signed, others, pairs = weights * signs, self.others, self.pairs[:, None]
        per_length, middle = self.train(weights, signed)
        own, origin = per_length[self.groups], middle[self.groups]  # (units, resamples)
        # Sums over the pairs of each unit, on the direction without its group, from the middle of the training pairs.
        distance = signs * ((self.differences * others) @ signed)
        shift = (self.middles * others) @ signed
        trained = others[:, :, None] * signed  # (units, units, resamples)
        squares = (trained * (self.squares @ trained)).sum(dim=1) - 2 * origin * shift + pairs * origin.square()
        share = weights / (weights * pairs).sum(dim=0)
        return d_prime_of(
            distance=(share * distance * own).sum(dim=0),
            middle=(share * (shift - pairs * origin) * own).sum(dim=0),
            squares=(share * squares * own.square()).sum(dim=0),
            count=int(self.pairs.sum()),
        )


def d_prime_of(distance: Tensor, middle: Tensor, squares: Tensor, count: int) -> Tensor:
    """Distance of the two sides over the root of the mean of their variances; 0 without any spread.

    The variance of a side is that of middle plus or minus half the difference, so the mean of the two needs no more
    than the variances of middles and differences.

    Args:
        distance: Mean of the differences.
        middle: Mean of the middles.
        squares: Mean of the squares of the middles plus a quarter of those of the differences.
        count: Number of pairs.
    """
    variance = (squares - middle.square() - distance.square() / 4) * count / (count - 1)
    spread = variance.clamp_min(0).sqrt()
    return torch.where(spread > 0, distance / spread, torch.zeros_like(spread))
