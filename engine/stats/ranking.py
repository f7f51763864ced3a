"""Ranking of layers by held-out d', with intervals, ties and p-values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from engine.inputs import require_seed, require_whole
from engine.records.captures import ContrastData
from engine.records.results import LayerSeparation, RankedLayer, Ranking
from engine.runtime import Progress
from engine.stats.components import combine, error_shares, variance_components
from engine.stats.contrast import require_contrast
from engine.stats.crossed import CROSSED, MOST_PAIRS, CrossedLayer, CrossedTest, Kept, crossed_p_values
from engine.stats.designs import cannot_hold_out, few_values, ranking_warnings
from engine.stats.groups import (
    PAIRS,
    effective_groups,
    group_pairs,
    pairs_at,
    sample_pairs,
    tested_factors,
)
from engine.stats.held_out import HeldOutLayer, hold_out
from engine.stats.resampling import (
    CONFIDENCE,
    PERMUTATIONS,
    RESAMPLES,
    bootstrap_deviations,
    distinct_permutations,
    half_width,
    p_values,
    permutation_null,
    rank_intervals,
    smallest_p,
)
from engine.stats.separation import require_usable, separate
from engine.stats.wordings import number_shared

if TYPE_CHECKING:
    from torch import Tensor


Look = Callable[[int, HeldOutLayer], None]
"""Called with a layer and its held-out projections."""

_MARGIN_DIGITS = 4  # margins grow with the square of the number of layers, so the JSON keeps them short


def rank_layers(
    data: ContrastData,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    progress: Progress | None = None,
    look: Look | None = None,
) -> Ranking:
    """Rank the layers of a contrast by held-out d', with intervals, ties and p-values.

    - Score: the lowest held-out d' over personas, templates and topics (see `compute_separation`).
    - 95% confidence interval: Bayesian bootstrap over the groups of the worst factor and of every factor with six
      groups or more, with Student's t for their number (see `combine`).
    - 95% rank interval and ties: from the same resamples (see `rank_intervals`).
    - p-value: by factor, the share of permutations, which swap the labels of whole groups, in which the best of all
      layers scores at least as high. This maximum statistic makes 5% the chance of a false positive among all layers
      (Westfall and Young 1993, "Resampling-Based Multiple Testing"). Every factor with six groups or more is permuted;
      if there are several, or prompts that pairs of several groups share, `CrossedTest` tests them at once. The largest
      p-value counts, because the claim is that the contrast generalizes over all factors (Berger 1982, "Multiparameter
      Hypothesis Testing and Acceptance Sampling"). Its null: the mean difference over the population of the tested
      factors is zero, even if single personas, templates and topics have effects.

    Args:
        data: A contrast.
        resamples: Number of bootstrap resamples, for the intervals and for the crossed test; at least 2.
        permutations: Maximum number of permutations per factor; at least 1.
        seed: Seed for resamples and permutations.
        progress: Called before each layer and after the last with the number of finished layers and the total; an
            exception raised by it stops the ranking.
        look: Called after each layer with its held-out projections.

    Returns:
        The ranking, best layer first.

    Raises:
        RequestError: An argument is invalid, or the layers cannot be ranked: too few pairs, too few groups of every
            factor, states that are not finite, or classes without any spread.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[4, 16], max_samples=24)
        >>> ranking = rank_layers(contrast)
        >>> [row["layer"] for row in ranking["layers"]]
        [16, 4]
    """
    require_contrast(data)
    resamples = require_whole(resamples, "the number of resamples", 2)
    permutations = require_whole(permutations, "the number of permutations", 1)
    seed = require_seed(seed)
    groupings = group_pairs(data)
    if not groupings:
        raise cannot_hold_out(data)
    work = _measure(data, groupings, resamples, permutations, seed, progress, look)
    ranked = _ranked(work)
    ranking = Ranking(
        layers=ranked,
        groups={factor: work.counts[factor] for factor in groupings},
        tested=work.tested,
        confidence=CONFIDENCE,
        margins=_margins(work),
        chance=_chance(work, ranked[0]["left_out"]),
        smallest_p=_smallest_p(work, resamples),
        resamples=resamples,
        permutations=max(distinct_permutations(work.counts[factor], permutations) for factor in work.tested),
        seed=seed,
        warnings=ranking_warnings(data, work.counts),
    )
    if PAIRS not in groupings and not few_values(data):
        ranking["limits"] = work.limits(data["layers"].index(ranked[0]["layer"]))
    return ranking


@dataclass(frozen=True)
class _Work:
    """Scores and resamples from which a ranking is computed.

    Attributes:
        layers: Layer numbers.
        pairs: Number of pairs.
        counts: Number of resampled units of each factor.
        effective: Effective number of them, see `effective_groups`.
        tested: Factors to permute.
        permutations: Maximum number of permutations per factor.
        separations: Held-out separation of each layer.
        shuffled: Permutation null of each factor, `(layers, permutations)`.
        crossed: Crossed test of each layer; empty with one tested factor, unless its groups share prompts.
        components: Variance components of the held-out pair differences of each layer.
        deviations: Bootstrap deviations of each layer's score, `(layers, resamples)`.
        freedom: Their degrees of freedom, one value per layer.
    """

    layers: Sequence[int]
    pairs: int
    counts: dict[str, int]
    effective: dict[str, float]
    tested: list[str]
    permutations: int
    separations: list[LayerSeparation]
    shuffled: dict[str, Tensor]
    crossed: list[CrossedLayer]
    components: list[dict[str, float]]
    deviations: Tensor
    freedom: list[float]

    @property
    def worst(self) -> list[str]:
        return [separation["worst"] for separation in self.separations]

    @cached_property
    def p_values(self) -> dict[str, Tensor]:
        """Test to its p-values, `(layers,)`."""
        found = {factor: _p_values(self, factor) for factor in self.tested}
        return found | ({CROSSED: crossed_p_values(self.crossed)} if self.crossed else {})

    def limits(self, row: int) -> dict[str, float]:
        """Shares of the variance of a layer's score, see `error_shares`."""
        return error_shares(self.components[row], self.effective, self.pairs)


def _counts(groupings: Mapping[str, Tensor]) -> dict[str, int]:
    return {factor: int(groups.max()) + 1 for factor, groups in groupings.items()}


def _measure(
    data: ContrastData,
    groupings: Mapping[str, Tensor],
    resamples: int,
    permutations: int,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
) -> _Work:
    """Score and resample the layers one at a time, keeping no states."""
    counts = _counts(groupings)
    effective = {factor: effective_groups(groups) for factor, groups in groupings.items()}
    tested = tested_factors(groupings)
    chosen = sample_pairs(groupings, MOST_PAIRS, seed)
    of_chosen = {factor: groups[chosen] for factor, groups in groupings.items()}
    test, crossing = None, {factor: of_chosen[factor] for factor in tested}
    if PAIRS not in crossing:  # what is peculiar to a prompt is in all pairs with it, whatever their groups
        shared = number_shared(data, [groupings[factor] for factor in tested])
        crossing |= {side: numbers[chosen] for side, numbers in shared.items()}
    if len(crossing) > 1:
        test = CrossedTest(crossing, resamples, torch.Generator().manual_seed(seed))
    separations, crossed, components, combined = [], [], [], []
    shuffled: dict[str, list[Tensor]] = {factor: [] for factor in groupings}
    for done, layer in enumerate(data["layers"]):
        if progress is not None:
            progress(done, len(data["layers"]))
        pairs = Kept(pairs_at(data, layer), chosen)
        held_out = hold_out(pairs, groupings)
        require_usable(layer, held_out.extent)
        separation = separate(held_out)
        resampled = {}
        for number, (factor, projected) in enumerate(held_out.by_factor.items()):
            # Layers share random numbers so that their scores can be compared; factors do not, as their groups are
            # unrelated.
            one, other = (torch.Generator().manual_seed(seed * len(groupings) + number) for _ in range(2))
            shuffled[factor].append(permutation_null(projected.moments, permutations, one))
            resampled[factor] = bootstrap_deviations(projected.moments, resamples, other)
        separations.append(separation)
        components.append(variance_components(held_out.by_factor[separation["worst"]].differences[chosen], of_chosen))
        # Of factors with few groups only the worst: a variance of three groups is hardly known.
        counting = {factor: resampled[factor] for factor in groupings if factor in {*tested, separation["worst"]}}
        combined.append(combine(counting, components[-1], effective, data["num_pairs"]))
        if test is not None:
            crossed.append(test.layer(pairs.differences))
        if look is not None:
            look(layer, held_out)
    if progress is not None:
        progress(len(data["layers"]), len(data["layers"]))
    return _Work(
        layers=data["layers"],
        pairs=data["num_pairs"],
        counts=counts,
        effective=effective,
        tested=tested,
        permutations=permutations,
        separations=separations,
        shuffled={factor: torch.stack(rows) for factor, rows in shuffled.items()},
        crossed=crossed,
        components=components,
        deviations=torch.stack([deviations for deviations, _ in combined]),
        freedom=[freedom for _, freedom in combined],
    )


def _ranked(work: _Work) -> list[RankedLayer]:
    scores = torch.tensor([s["by_factor"][s["worst"]]["d_prime"] for s in work.separations], dtype=torch.float64)
    reach = torch.tensor([half_width(freedom, CONFIDENCE) for freedom in work.freedom], dtype=torch.float64)
    half = reach * work.deviations.std(dim=1)
    places = rank_intervals(scores, work.deviations, work.freedom, CONFIDENCE)
    p_values = torch.stack(list(work.p_values.values())).amax(dim=0)
    rows = []
    for rank, row in enumerate(scores.argsort(descending=True, stable=True).tolist(), start=1):
        separation, factor = work.separations[row], work.worst[row]
        null_low, null_high = work.shuffled[factor][row].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        rank_low, rank_high = places[row]
        rows.append(
            RankedLayer(
                layer=work.layers[row],
                rank=rank,
                low=float(scores[row] - half[row]),
                high=float(scores[row] + half[row]),
                rank_low=rank_low,
                rank_high=rank_high,
                tied=rank_low == 1,
                p_value=float(p_values[row]),
                p_by_factor={test: float(values[row]) for test, values in work.p_values.items()},
                null_low=float(null_low),
                null_high=float(null_high),
                left_out=factor,
                d_prime=separation["by_factor"][factor]["d_prime"],
                auroc=separation["by_factor"][factor]["auroc"],
                wrong_way=separation["by_factor"][factor]["wrong_way"],
                by_factor=separation["by_factor"],
            )
        )
    return rows


def _margins(work: _Work) -> list[list[float]]:
    """Half-widths of the intervals of score differences, each layer to all later ones."""
    rows = []
    for row, deviations in enumerate(work.deviations[:-1]):
        error = (work.deviations[row + 1 :] - deviations).std(dim=1)  # (later layers,)
        reach = [half_width(min(work.freedom[row], later), CONFIDENCE) for later in work.freedom[row + 1 :]]
        rows.append([round(float(e) * r, _MARGIN_DIGITS) for e, r in zip(error, reach, strict=True)])
    return rows


def _smallest_p(work: _Work, resamples: int) -> float:
    """Smallest p-value that this design and number of draws allow."""
    least = max(smallest_p(work.counts[factor], work.permutations) for factor in work.tested)
    return max(least, 1 / (resamples + 1)) if work.crossed else least


def _p_values(work: _Work, factor: str) -> Tensor:
    observed = torch.tensor([s["by_factor"][factor]["d_prime"] for s in work.separations], dtype=torch.float64)
    return p_values(observed, work.shuffled[factor], work.counts[factor], work.permutations)


def _chance(work: _Work, factor: str) -> float:
    """95% quantile of the best score of any layer in the permutations of one factor."""
    return float(work.shuffled[factor].amax(dim=0).quantile(CONFIDENCE))
