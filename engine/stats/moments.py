"""Unit moments: sums that give held-out d' for any weights and labels of units.

A direction is a weighted sum of the summed differences of units. So d' needs only the inner products of these sums and
the first and second moments of the pairs along them, and its cost depends neither on the width nor on the number of
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 250  # resamples whose products of signs stay in the cache of a CPU


class Training(NamedTuple):
    """Directions trained without one group, for each group and resample.

    Attributes:
        per_length: Inverse norm of the summed training differences, 0 if the norm is 0, `(groups, resamples)`.
        middle: Mean midpoint of the training pairs projected on that sum, `(groups, resamples)`.
    """

    per_length: Tensor
    middle: Tensor


@dataclass(frozen=True)
class UnitMoments:
    """Sums over the pairs of each unit at one layer, float64.

    A unit is resampled, or has its labels swapped, as a whole. A group consists of units and is held out as a whole.

    Attributes:
        groups: Group index of each unit, `(units,)`.
        pairs: Number of pairs in each unit, `(units,)`.
        differences: Inner products of the units' summed differences with each other, `(units, units)`.
        middles: Inner products of the units' summed midpoints, relative to the mean midpoint of all pairs, with the
            units' summed differences, `(units, units)`.
        squares: For each unit, the sum over its pairs of m mᵀ + d dᵀ / 4, where m and d are the pair's midpoint and
            difference along the summed differences of every unit, `(units, units, units)`.
    """

    groups: Tensor
    pairs: Tensor
    differences: Tensor
    middles: Tensor
    squares: Tensor

    @property
    def others(self) -> Tensor:
        """1 where two units belong to different groups, else 0, `(units, units)`."""
        return (self.groups[:, None] != self.groups).double()

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Both units of every unordered pair of units."""
        count = len(self.groups)
        first, second = torch.triu_indices(count, count)
        return first, second

    @cached_property
    def _squares_by_pair(self) -> Tensor:
        """`squares` without each unit's own group, added up over both orders of two units, `(units, pairs of units)`.

        With them, a quadratic form per unit becomes one matrix product for all.
        """
        first, second = self._places
        squares = self.squares * self.others[:, :, None] * self.others[:, None, :]
        return torch.where(first == second, 1.0, 2.0) * squares[:, first, second]

    def _squares_along(self, signed: Tensor) -> Tensor:
        """Sums of squares of each unit along the direction without its group, `(units, resamples)`."""
        first, second = self._places
        parts = torch.split(signed, _AT_ONCE, dim=1)
        return torch.cat([self._squares_by_pair @ (part[first] * part[second]) for part in parts], dim=1)

    def train(self, weights: Tensor, signed: Tensor) -> Training:
        """Compute the direction without each group, for each resample.

        Args:
            weights: Weight of each unit, `(units, resamples)`.
            signed: The weights, negated where a unit's labels are swapped, `(units, resamples)`. The direction is the
                sum of the units' differences times these.
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
        """Compute held-out d' of each resample, `(resamples,)`; 0 without any spread.

        Args:
            weights: Weight of each unit in each resample, `(units, resamples)`; 1 by default.
            signs: -1 where the labels of a unit are swapped, else 1, `(units, resamples)`; no swaps by default.
        """
        if weights is None:
            weights = torch.ones((len(self.groups), 1 if signs is None else signs.shape[1]), dtype=torch.float64)
        signs = torch.ones_like(weights) if signs is None else signs
        signed, others, pairs = weights * signs, self.others, self.pairs[:, None]
        per_length, middle = self.train(weights, signed)
        own, origin = per_length[self.groups], middle[self.groups]  # (units, resamples)
        # Sums over the pairs of each unit, projected on the direction without its group and relative to the midpoint of
        # the training pairs.
        distance = signs * ((self.differences * others) @ signed)
        shift = (self.middles * others) @ signed
        squares = self._squares_along(signed) - 2 * origin * shift + pairs * origin.square()
        share = weights / (weights * pairs).sum(dim=0)
        return d_prime_of(
            distance=(share * distance * own).sum(dim=0),
            middle=(share * (shift - pairs * origin) * own).sum(dim=0),
            squares=(share * squares * own.square()).sum(dim=0),
            count=int(self.pairs.sum()),
        )


def projected_d_prime(differences: Tensor, middles: Tensor) -> float:
    """Compute d' of pairs projected on a direction, see `d_prime_of`.

    Args:
        differences: Projection of each positive prompt minus that of its negative partner, `(pairs,)`.
        middles: Projection of each pair's midpoint, `(pairs,)`.
    """
    squares = (middles.square() + differences.square() / 4).mean()
    return float(d_prime_of(differences.mean(), middles.mean(), squares, len(differences)))


def d_prime_of(distance: Tensor, middle: Tensor, squares: Tensor, count: int) -> Tensor:
    """Compute d' from the moments of pair differences and midpoints.

    d' is the distance between the class means over the root mean of the class variances; 0 without any spread. A class
    projects at the pair midpoint plus or minus half the difference, so the mean of the two class variances follows from
    the variances of midpoints and differences.

    Args:
        distance: Mean of the pair differences.
        middle: Mean of the pair midpoints.
        squares: Mean of (squared midpoint + squared difference / 4).
        count: Number of pairs.
    """
    variance = (squares - middle.square() - distance.square() / 4) * count / (count - 1)
    spread = variance.clamp_min(0).sqrt()
    return torch.where(spread > 0, distance / spread, torch.zeros_like(spread))
