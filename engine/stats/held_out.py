"""Pairs projected on directions that they had no part in finding: leave one group out.

Goes through the pairs twice, once to add up and once to project, and holds no more of them than one chunk. Knows pairs
and groups. Does not know layers, factors' names or what is made of the projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.stats.groups import Pairs, resampled_units
from engine.stats.moments import UnitMoments, d_prime_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HeldOut:
    """Pairs projected on the mean difference of the pairs of all groups but their own.

    Attributes:
        differences: How far the positive prompt lies beyond the negative one, `(pairs,)`, in the units of the states.
        middles: Where the middle of the two lies, from the middle of the training pairs, `(pairs,)`.
        moments: Sums over the pairs of each unit, for resamples.
    """

    differences: Tensor
    middles: Tensor
    moments: UnitMoments

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Projections of the positive and of the negative prompts, `(pairs,)` each."""
        return self.middles + self.differences / 2, self.middles - self.differences / 2

    @property
    def d_prime(self) -> float:
        """Distance of the two sides over the root of the mean of their variances; 0 without any spread."""
        squares = (self.middles.square() + self.differences.square() / 4).mean()
        return float(d_prime_of(self.differences.mean(), self.middles.mean(), squares, len(self.differences)))


@dataclass(frozen=True)
class Extent:
    """How large states and what differs in them are at a layer.

    Attributes:
        finite: Whether no state is infinite or not a number.
        size: Norm of the largest state: what is smaller than this by seven digits is rounding, not data.
        longest: Norm of the largest difference of a pair.
        apart: Largest distance of a difference from their mean.
        along: Largest distance of a middle from the mean of all, along the differences of a unit.
    """

    finite: bool
    size: float
    longest: float
    apart: float
    along: float


@dataclass(frozen=True)
class HeldOutLayer:
    """All that is computed from the pairs of a layer.

    Attributes:
        by_factor: Projections, for each factor by which pairs are left out.
        extent: How large things are.
    """

    by_factor: dict[str, HeldOut]
    extent: Extent


def hold_out(pairs: Pairs, groupings: Mapping[str, Tensor]) -> HeldOutLayer:
    """Project every pair on the mean difference of the pairs of all groups but its own, for each factor.

    Args:
        pairs: The pairs of a layer.
        groupings: For each factor the group of each pair, at least one; see `group_pairs`.

    Returns:
        Projections and sums; the time is that of `pairs × hidden × units` products.
    """
    units = {factor: resampled_units(factor, groups) for factor, groups in groupings.items()}
    sums = sum_units(pairs, list(units.values()))
    work = [
        _Projection(groups, unit, added)
        for (groups, unit, added) in zip(groupings.values(), units.values(), sums.units, strict=True)
    ]
    apart, start = 0.0, 0
    for positive, negative in pairs():
        differences = positive - negative
        middles = (positive + negative) / 2 - sums.middle
        apart = max(apart, float((differences - sums.difference).norm(dim=-1).max()))
        for part in work:
            part.add(start, differences, middles)
        start += len(differences)
    found = {factor: part.finish() for factor, part in zip(groupings, work, strict=True)}
    along = max(part.along for part in work)
    return HeldOutLayer(found, Extent(sums.finite, sums.size, sums.longest, apart, along))


@dataclass(frozen=True)
class UnitSums:
    """Sums over the pairs of each unit.

    Attributes:
        pairs: Number of pairs of each unit, `(units,)`.
        differences: Their summed differences, `(units, hidden)`.
        middles: Their summed middles, taken from the mean of all, `(units, hidden)`.
    """

    pairs: Tensor
    differences: Tensor
    middles: Tensor


@dataclass(frozen=True)
class PairSums:
    """Sums over all pairs of a layer.

    Attributes:
        units: The sums of each unit, for each way to form units.
        difference: Mean difference, `(hidden,)`.
        middle: Mean middle, `(hidden,)`.
        finite: Whether no state is infinite or not a number.
        size: Norm of the largest state.
        longest: Norm of the largest difference.
    """

    units: list[UnitSums]
    difference: Tensor
    middle: Tensor
    finite: bool
    size: float
    longest: float


def sum_units(pairs: Pairs, units: list[Tensor]) -> PairSums:
    """Go through the pairs once and add them up by unit.

    Args:
        pairs: The pairs of a layer.
        units: Ways to form units: the number of the unit of each pair, `(pairs,)`.
    """
    counts = [torch.bincount(numbers).double() for numbers in units]
    differences: list[Tensor] = []
    middles: list[Tensor] = []
    origin = torch.zeros(())
    finite, size, longest, start = True, 0.0, 0.0, 0
    for positive, negative in pairs():
        difference, middle = positive - negative, (positive + negative) / 2
        if not differences:
            origin = middle.mean(dim=0)  # what all prompts share separates nothing, and costs digits
            differences = [difference.new_zeros((len(count), len(origin))) for count in counts]
            middles = [torch.zeros_like(each) for each in differences]
        for numbers, summed, summed_middles in zip(units, differences, middles, strict=True):
            of_these = numbers[start : start + len(difference)]
            summed.index_add_(0, of_these, difference)
            summed_middles.index_add_(0, of_these, middle - origin)
        start += len(difference)
        finite = finite and bool(torch.isfinite(difference).all() and torch.isfinite(middle).all())
        size = max(size, float(torch.maximum(positive.norm(dim=-1), negative.norm(dim=-1)).max()))
        longest = max(longest, float(difference.norm(dim=-1).max()))
    mean = middles[0].sum(dim=0) / start
    parts = zip(counts, differences, middles, strict=True)
    added = [UnitSums(count, summed, from_origin - count[:, None] * mean) for count, summed, from_origin in parts]
    return PairSums(added, differences[0].sum(dim=0) / start, origin + mean, finite, size, longest)


class _Projection:
    """Projects pairs, chunk by chunk, for one way to leave them out."""

    def __init__(self, groups: Tensor, units: Tensor, sums: UnitSums) -> None:
        count = len(sums.pairs)
        of_unit = torch.zeros(count, dtype=torch.long)
        of_unit[units] = groups
        self._groups, self._units, self._sums = groups, units, sums
        self._moments = UnitMoments(
            groups=of_unit,
            pairs=sums.pairs,
            differences=sums.differences @ sums.differences.T,
            middles=sums.middles @ sums.differences.T,
            squares=sums.differences.new_zeros((count, count, count)),
        )
        self._others = (torch.arange(int(groups.max()) + 1) != of_unit[:, None]).double()  # (units, groups)
        self._longest = float(sums.differences.norm(dim=-1).max())
        self._differences: list[Tensor] = []
        self._middles: list[Tensor] = []
        self.along = 0.0

    def add(self, start: int, differences: Tensor, middles: Tensor) -> None:
        """Project the pairs from `start` on, `(pairs, hidden)` each."""
        groups = self._groups[start : start + len(differences), None]
        units = self._units[start : start + len(differences)]
        onto, of_middles = differences @ self._sums.differences.T, middles @ self._sums.differences.T  # (pairs, units)
        self._differences.append((onto @ self._others).gather(1, groups)[:, 0])
        self._middles.append((of_middles @ self._others).gather(1, groups)[:, 0])
        both = torch.stack([of_middles, onto / 2], dim=1)  # (pairs, 2, units)
        for unit in sorted(set(units.tolist())):
            own = both[units == unit].flatten(0, 1)
            self._moments.squares[unit] += own.T @ own
        if self._longest > 0:
            self.along = max(self.along, float(of_middles.abs().max()) / self._longest)

    def finish(self) -> HeldOut:
        """Scale what was projected to the length of its direction, and take it from the middle of the training."""
        once = self._sums.pairs.new_ones((len(self._sums.pairs), 1))
        per_length, middle = (values[:, 0] for values in self._moments.train(once, once))
        own = per_length[self._groups]
        differences, middles = torch.cat(self._differences), torch.cat(self._middles)
        return HeldOut(differences * own, (middles - middle[self._groups]) * own, self._moments)
