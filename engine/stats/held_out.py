"""Held-out projections of pairs, leave-one-group-out.

Two passes over the pairs, one to sum and one to project, keep no more than one chunk of states in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.stats.groups import Pairs, held_out_groups
from engine.stats.moments import UnitMoments, projected_d_prime

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HeldOut:
    """Pairs projected on the mean difference of the pairs in all other groups.

    Attributes:
        differences: Projection of the positive prompt minus that of the negative one, `(pairs,)`, in units of the
            states.
        middles: Projection of the pair's midpoint relative to the midpoint of the training pairs, `(pairs,)`.
        moments: Sums over the pairs of each unit, for resampling.
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
        """Held-out d', see `d_prime_of`; 0 without any spread."""
        return projected_d_prime(self.differences, self.middles)


@dataclass(frozen=True)
class Extent:
    """Magnitudes of the states and their variation, to detect rounding error.

    Attributes:
        finite: Whether all states are finite.
        size: Norm of the largest state. Variation seven digits below this is rounding error.
        longest: Norm of the largest pair difference.
        apart: Largest distance of a pair difference from the mean difference.
        along: Largest distance of a pair midpoint from the mean midpoint, along the summed differences of a unit.
    """

    finite: bool
    size: float
    longest: float
    apart: float
    along: float


@dataclass(frozen=True)
class HeldOutLayer:
    """Held-out projections at one layer.

    Attributes:
        by_factor: Factor to the projections with its groups held out.
        extent: Magnitudes of the states and of their variation.
    """

    by_factor: dict[str, HeldOut]
    extent: Extent


def hold_out(pairs: Pairs, groupings: Mapping[str, Tensor]) -> HeldOutLayer:
    """Project every pair on the mean difference of all other groups.

    This is done for each factor. The cost is `pairs × hidden × units` multiplications.

    Args:
        pairs: Pairs at one layer.
        groupings: Factor to the group index of each pair, at least one factor; see `group_pairs`.
    """
    sums = sum_units(pairs, list(groupings.values()))
    work = [
        _Projection(held_out_groups(factor, units), units, added)
        for (factor, units), added in zip(groupings.items(), sums.units, strict=True)
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
        pairs: Number of pairs in each unit, `(units,)`.
        differences: Summed pair differences of each unit, `(units, hidden)`.
        middles: Summed pair midpoints of each unit, relative to the mean midpoint of all pairs, `(units, hidden)`.
    """

    pairs: Tensor
    differences: Tensor
    middles: Tensor


@dataclass(frozen=True)
class PairSums:
    """Sums over all pairs of a layer.

    Attributes:
        units: Sums over the pairs of each unit, one entry per grouping.
        difference: Mean pair difference, `(hidden,)`.
        middle: Mean pair midpoint, `(hidden,)`.
        finite: Whether all states are finite.
        size: Norm of the largest state.
        longest: Norm of the largest pair difference.
    """

    units: list[UnitSums]
    difference: Tensor
    middle: Tensor
    finite: bool
    size: float
    longest: float


def sum_units(pairs: Pairs, units: list[Tensor]) -> PairSums:
    """Sum the pairs of each unit, in one pass.

    Args:
        pairs: Pairs at one layer.
        units: Unit index of each pair, `(pairs,)`, one entry per grouping.
    """
    counts = [torch.bincount(numbers).double() for numbers in units]
    differences: list[Tensor] = []
    middles: list[Tensor] = []
    origin = torch.zeros(())
    finite, size, longest, start = True, 0.0, 0.0, 0
    for positive, negative in pairs():
        difference, middle = positive - negative, (positive + negative) / 2
        if not differences:
            origin = middle.mean(dim=0)  # the part that all prompts share would cost precision
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
    """Projects pairs chunk by chunk with the groups of one factor held out."""

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
        """Project a chunk of pairs.

        Args:
            start: Index of its first pair.
            differences: Pair differences, `(pairs, hidden)`.
            middles: Pair midpoints relative to the mean midpoint, `(pairs, hidden)`.
        """
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
        """Normalize the directions and center on the midpoint of the training pairs."""
        once = self._sums.pairs.new_ones((len(self._sums.pairs), 1))
        per_length, middle = (values[:, 0] for values in self._moments.train(once, once))
        own = per_length[self._groups]
        differences, middles = torch.cat(self._differences), torch.cat(self._middles)
        return HeldOut(differences * own, (middles - middle[self._groups]) * own, self._moments)
