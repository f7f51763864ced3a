"""The crossed test: is there an effect that holds for new personas, templates and topics at once?

Swapping the labels of personas leaves the effects of templates and topics in place as if they were signal, and the
other way round. So a test that permutes one factor at a time finds too much where several factors have effects of
their own. Here no product of two pairs that share a persona, template, topic or prompt counts, so that no such effect
adds to the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from scipy.special import chdtri

from engine.stats.groups import Pairs, Sides, effective_groups
from engine.stats.resampling import random_signs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Generator, Tensor

MOST_PAIRS = 1024
"""Most pairs that the crossed test compares with each other; beyond them more groups help, and more pairs do not."""

CROSSED = "crossed"
"""Name of the crossed test in results, where the others have the names of factors."""


class CrossedLayer(NamedTuple):
    """The crossed test at one layer, in standard errors.

    Attributes:
        score: Observed score.
        null: Scores without an effect, `(resamples,)`; the signs are paired across layers.
    """

    score: float
    null: Tensor


class Kept:
    """Pairs at one layer of which the differences of some are kept as they are read."""

    def __init__(self, pairs: Pairs, chosen: Tensor) -> None:
        self._pairs, self._chosen = pairs, chosen
        self._parts: list[Tensor] = []

    def __call__(self) -> Iterator[Sides]:
        """Iterate over all pairs in chunks, keeping the chosen ones."""
        self._parts, start = [], 0
        for positive, negative in self._pairs():
            stop = start + len(positive)
            inside = self._chosen[(self._chosen >= start) & (self._chosen < stop)] - start
            self._parts.append(positive[inside] - negative[inside])
            start = stop
            yield positive, negative

    @property
    def differences(self) -> Tensor:
        """Differences of the chosen pairs after an iteration, `(chosen, hidden)`, float64."""
        return torch.cat(self._parts)


@dataclass(frozen=True)
class _Factor:
    """One factor of the design.

    Attributes:
        member: 1 where a pair belongs to a group, `(pairs, groups)`.
        effective: Effective number of groups g; groups of unequal size count less.
        signs: Random signs of the groups, `(groups, resamples)`.
    """

    member: Tensor
    effective: float
    signs: Tensor

    @property
    def correction(self) -> float:
        """G / (g - 1): centering takes one degree of freedom."""
        return self.effective / (self.effective - 1)

    def widening(self, products: Tensor, apart: Tensor, generator: Generator) -> Tensor:
        """Random factors that widen the null for the uncertain variance of few groups, `(resamples,)`.

        The variance of g group means along one direction has g - 1 degrees of freedom; of means that vary along many
        directions, as many times more as these count for (the participation ratio of their covariance). This is
        Satterthwaite's approximation (1946, "An Approximate Distribution of Estimates of Variance Components").

        Args:
            products: Inner products of the centered pair differences, `(pairs, pairs)`.
            apart: The same, 0 for pairs that share a group of any factor.
            generator: Random generator.
        """
        groups, sizes = self.member.shape[1], self.member.sum(dim=0)
        weights = self.member / sizes  # averages the pairs of each group
        total = float(((products @ weights) * weights).sum()) * self.correction / groups
        squared = float((weights.T @ apart @ weights).square().sum()) * self.correction**2 / (groups * (groups - 1))
        directions = max(total**2 / squared, 1.0) if squared > 0 else 1.0
        freedom = (self.effective - 1) * directions
        chances = torch.rand(self.signs.shape[1], generator=generator, dtype=torch.float64)
        return torch.from_numpy(freedom / chdtri(freedom, chances.numpy())).sqrt()


class CrossedTest:
    """Tests whether differences have a common part beyond the effects of crossed factors.

    - Score: the sum of the inner products of all two pairs that share no group of any factor. Its expectation is the
      squared norm of the common difference, and 0 without one, even if the factors have effects.
    - Standard error: by multiway clustering of the centered differences (Cameron, Gelbach and Miller 2011, "Robust
      Inference With Multiway Clustering").
    - Null: a wild bootstrap over whole groups. Every pair is multiplied by the sum of a random sign for its persona,
      one for its template and one for its topic (after MacKinnon, Nielsen and Webb 2021, "Wild Bootstrap and
      Asymptotic Inference with Multiway Clustering"; here for a quadratic score).

    Args:
        groupings: Factor to the group index of each pair, `(pairs,)`; at least two factors. Prompts that pairs of
            several groups share are factors too, see `number_shared`.
        resamples: Number of draws from the null.
        generator: Random generator.

    Example:
        >>> import torch
        >>> numbers = torch.arange(144)
        >>> groupings = {"persona": numbers % 12, "topic": numbers // 12}
        >>> noise = torch.randn(144, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> test = CrossedTest(groupings, 999, torch.Generator().manual_seed(0))
        >>> none, some = test.layer(noise), test.layer(noise + 1)
        >>> crossed_p_values([none]).item() > 0.05, crossed_p_values([some]).item()
        (True, 0.001)
    """

    def __init__(self, groupings: Mapping[str, Tensor], resamples: int, generator: Generator) -> None:
        numbered = [torch.unique(groups, return_inverse=True)[1] for groups in groupings.values()]
        same = [(groups[:, None] == groups).double() for groups in numbered]
        shared = torch.stack(same).amax(dim=0)
        self._factors: list[_Factor] = []
        self._weights = shared - torch.stack(same).sum(dim=0)  # counts every two pairs that share something once
        self._apart = 1 - shared
        self._generator = generator
        for groups, together in zip(numbered, same, strict=True):
            count = int(groups.max()) + 1
            signs = random_signs(count, resamples, generator)
            member = torch.nn.functional.one_hot(groups, count).double()
            factor = _Factor(member, effective_groups(groups), signs)
            self._factors.append(factor)
            self._weights += factor.correction * together

    def layer(self, differences: Tensor) -> CrossedLayer:
        """Score one layer and draw its null.

        Args:
            differences: Pair differences, `(pairs, hidden)`, float64.
        """
        score = float((differences @ differences.T * self._apart).sum())
        centered = differences - differences.mean(dim=0)
        products = centered @ centered.T  # (pairs, pairs)
        apart = products * self._apart
        error = self._variance(apart) ** 0.5
        if error == 0:
            return CrossedLayer(0.0, torch.zeros(self._factors[0].signs.shape[1], dtype=torch.float64))
        member = torch.cat([factor.member for factor in self._factors], dim=1)
        between = member.T @ apart @ member  # (groups, groups), groups of all factors
        signs = torch.cat([f.signs * f.correction**0.5 for f in self._factors])  # (groups, resamples)
        # Drawn for each layer: the best one is often one whose variance came out too small.
        widening = [f.correction**0.5 * f.widening(products, apart, self._generator) for f in self._factors]
        widened = torch.cat([f.signs * factor for f, factor in zip(self._factors, widening, strict=True)])
        unit = (signs * (between @ signs)).sum(dim=0).square().mean().sqrt()
        null = (widened * (between @ widened)).sum(dim=0) / unit if unit > 0 else torch.zeros(signs.shape[1])
        return CrossedLayer(score / error, null)

    def _variance(self, apart: Tensor) -> float:
        """Variance of the score without an effect; at least what any single factor, or single pairs, would give."""
        onto = self._weights @ apart
        single = [
            float((factor.member.T @ apart @ factor.member).square().sum()) * factor.correction**2
            for factor in self._factors
        ]
        return 2 * max(float((onto * onto.T).sum()), float(apart.square().sum()), *single)


def crossed_p_values(layers: list[CrossedLayer]) -> Tensor:
    """p-values of the crossed test, corrected for the number of layers by their maximum: `(layers,)`, float64.

    Example:
        >>> import torch
        >>> null = torch.tensor([0.1, 0.4, 3.0])
        >>> crossed_p_values([CrossedLayer(2.0, null), CrossedLayer(0.0, null)]).tolist()
        [0.5, 1.0]
    """
    best = torch.stack([layer.null for layer in layers]).amax(dim=0)  # (resamples,)
    scores = torch.tensor([layer.score for layer in layers], dtype=torch.float64)
    return ((best >= scores[:, None]).sum(dim=1).double() + 1) / (best.numel() + 1)
