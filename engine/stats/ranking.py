"""Ranking of layers by held-out d', with intervals, ties and p-values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.results import LayerSeparation, RankedLayer, Ranking
from engine.remedies import Remedy
from engine.runtime import Progress
from engine.stats.contrast import require_contrast
from engine.stats.groups import ENOUGH_GROUPS, FEWEST_GROUPS, FEWEST_PAIRS, MOST_UNITS, PAIRS, group_pairs, pairs_at
from engine.stats.held_out import HeldOutLayer, hold_out
from engine.stats.resampling import (
    bootstrap_deviations,
    distinct_shuffles,
    half_width,
    open_places,
    p_values,
    shuffled_scores,
    smallest_p,
)
from engine.stats.separation import require_usable, separate

if TYPE_CHECKING:
    from torch import Tensor


def nothing_to_leave_out(num_pairs: int) -> RequestError:
    """Build the error for pairs of which no group can be held out."""
    if num_pairs < FEWEST_PAIRS:
        return RequestError(
            f"{num_pairs} pair{' is' if num_pairs == 1 else 's are'} too few to rank layers",
            expected=f"at least {FEWEST_PAIRS} pairs, preferably 30 or more",
            next_step=Remedy.CAPTURE_MORE_PAIRS,
        )
    return RequestError(
        "the pairs have too few personas, templates and topics to hold any out",
        expected=f"at least {FEWEST_GROUPS} values of one of these factors",
        next_step="vary a factor, or omit the factors to cross-validate in folds over pairs",
    )


def ranking_warnings(data: ContrastData, counts: Mapping[str, int]) -> list[str]:
    """Describe the limits of a ranking from these pairs.

    Args:
        data: A contrast.
        counts: Number of groups of each factor that is held out.

    Returns:
        One warning per limit, empty if there are none.
    """
    warnings = []
    if PAIRS in counts:
        warnings.append(
            "the pairs carry no factors: cross-validation in five folds over pairs says nothing about new personas,"
            " templates or topics"
        )
        if data["num_pairs"] > MOST_UNITS:
            warnings.append(f"{data['num_pairs']} pairs were resampled in {MOST_UNITS} groups")
    elif factors := data.get("factors"):
        columns = {"persona": {f["persona"] for f in factors}, "template": {f["template"] for f in factors}}
        columns["topic"] = {f["topic"] for f in factors}
        for factor, values in columns.items():
            if len(values) < FEWEST_GROUPS:
                those = f"one {factor}" if len(values) == 1 else f"two {factor}s"
                warnings.append(
                    f"the pairs have {those}, too few to hold any out: the ranking says nothing about other {factor}s"
                )
            elif len(values) < ENOUGH_GROUPS:
                warnings.append(
                    f"{len(values)} {factor}s are few: their intervals are wide, and a permutation test needs"
                    f" {ENOUGH_GROUPS} or more to reach p < 0.05"
                )
            elif len(values) > MOST_UNITS:
                warnings.append(f"{len(values)} {factor}s were held out and resampled in {MOST_UNITS} groups")
    if data["num_pairs"] < 20:
        warnings.append(f"{data['num_pairs']} pairs are few: use 30 or more")
    return warnings


Look = Callable[[int, HeldOutLayer], None]
"""Called with a layer and its held-out projections."""

RESAMPLES = 2000
PERMUTATIONS = 10_000
CONFIDENCE = 0.95
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
    - 95% confidence interval: Bayesian bootstrap over the held-out groups, with Student's t for their number.
    - 95% rank interval and ties: from the same resamples (see `open_places`).
    - Permutation p-value: the share of permutations, which swap the labels of whole groups, in which the best of all
      layers scores at least as high. This maximum statistic makes 5% the chance of a false positive among all layers
      (Westfall and Young 1993, "Resampling-Based Multiple Testing"). Every factor with six groups or more is
      permuted, and the largest p-value counts, because the claim is that the contrast generalizes over all factors
      (Berger 1982, "Multiparameter Hypothesis Testing and Acceptance Sampling").

    Args:
        data: A contrast.
        resamples: Number of bootstrap resamples.
        permutations: Maximum number of permutations per factor.
        seed: Seed for resamples and permutations.
        progress: Called before each layer and after the last with the number of finished layers and the total; an
            exception raised by it stops the ranking.
        look: Called after each layer with its held-out projections.

    Returns:
        The ranking, best layer first.

    Raises:
        RequestError: The layers cannot be ranked: too few pairs, too few groups of every factor, states that are not
            finite, or classes without any spread.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[4, 16], max_samples=24)
        >>> ranking = rank_layers(contrast)
        >>> [row["layer"] for row in ranking["layers"]]
        [16, 4]
    """
    require_contrast(data)
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    if not groupings:
        raise nothing_to_leave_out(data["num_pairs"])
    work = _measure(data, groupings, resamples, permutations, seed, progress, look)
    ranked = _ranked(work)
    return Ranking(
        layers=ranked,
        groups={factor: work.counts[factor] for factor in groupings},
        tested=work.tested,
        confidence=CONFIDENCE,
        margins=_margins(work),
        chance=_chance(work, ranked[0]["left_out"]),
        smallest_p=max(smallest_p(work.counts[factor], permutations) for factor in work.tested),
        resamples=resamples,
        permutations=max(distinct_shuffles(work.counts[factor], permutations) for factor in work.tested),
        seed=seed,
        warnings=ranking_warnings(data, work.counts),
    )


@dataclass(frozen=True)
class _Work:
    """Scores and resamples from which a ranking is computed.

    Attributes:
        layers: Layer numbers.
        counts: Number of resampled units of each factor.
        permutations: Maximum number of permutations per factor.
        separations: Held-out separation of each layer.
        shuffled: Permutation null of each factor, `(layers, permutations)`.
        resampled: Bootstrap deviations of each factor, `(layers, resamples)`.
    """

    layers: Sequence[int]
    counts: dict[str, int]
    permutations: int
    separations: list[LayerSeparation]
    shuffled: dict[str, Tensor]
    resampled: dict[str, Tensor]

    @cached_property
    def tested(self) -> list[str]:
        """Factors to permute: those with enough groups, or else the one with the most."""
        enough = [factor for factor, count in self.counts.items() if count >= ENOUGH_GROUPS]
        return enough or [max(self.counts, key=lambda factor: self.counts[factor])]

    @cached_property
    def worst(self) -> list[str]:
        return [separation["worst"] for separation in self.separations]

    @cached_property
    def deviations(self) -> Tensor:
        """Bootstrap deviations of each layer's score, `(layers, resamples)`."""
        return torch.stack([self.resampled[factor][row] for row, factor in enumerate(self.worst)])


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
    separations: list[LayerSeparation] = []
    shuffled: dict[str, list[Tensor]] = {factor: [] for factor in groupings}
    resampled: dict[str, list[Tensor]] = {factor: [] for factor in groupings}
    counts: dict[str, int] = {}
    for done, layer in enumerate(data["layers"]):
        if progress is not None:
            progress(done, len(data["layers"]))
        held_out = hold_out(pairs_at(data, layer), groupings)
        require_usable(layer, held_out.extent)
        separations.append(separate(held_out))
        for number, (factor, projected) in enumerate(held_out.by_factor.items()):
            # Layers share random numbers so that their scores can be compared; factors do not, as their groups are
            # unrelated.
            one, other = (torch.Generator().manual_seed(seed * len(groupings) + number) for _ in range(2))
            shuffled[factor].append(shuffled_scores(projected.moments, permutations, one))
            resampled[factor].append(bootstrap_deviations(projected.moments, resamples, other))
            counts[factor] = len(projected.moments.groups)
        if look is not None:
            look(layer, held_out)
    if progress is not None:
        progress(len(data["layers"]), len(data["layers"]))
    return _Work(
        data["layers"],
        counts,
        permutations,
        separations,
        {factor: torch.stack(rows) for factor, rows in shuffled.items()},
        {factor: torch.stack(rows) for factor, rows in resampled.items()},
    )


def _ranked(work: _Work) -> list[RankedLayer]:
    scores = torch.tensor([s["by_factor"][s["worst"]]["d_prime"] for s in work.separations], dtype=torch.float64)
    counts = [work.counts[factor] for factor in work.worst]
    reach = torch.tensor([half_width(count, CONFIDENCE) for count in counts], dtype=torch.float64)
    half = reach * work.deviations.std(dim=1)
    places = open_places(scores, work.deviations, counts, CONFIDENCE)
    p_values = torch.stack([_p_values(work, factor) for factor in work.tested]).amax(dim=0)
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
    counts = [work.counts[factor] for factor in work.worst]
    rows = []
    for row, deviations in enumerate(work.deviations[:-1]):
        error = (work.deviations[row + 1 :] - deviations).std(dim=1)  # (later layers,)
        reach = [half_width(min(counts[row], later), CONFIDENCE) for later in counts[row + 1 :]]
        rows.append([round(float(e) * r, _MARGIN_DIGITS) for e, r in zip(error, reach, strict=True)])
    return rows


def _p_values(work: _Work, factor: str) -> Tensor:
    observed = torch.tensor([s["by_factor"][factor]["d_prime"] for s in work.separations], dtype=torch.float64)
    return p_values(observed, work.shuffled[factor], work.counts[factor], work.permutations)


def _chance(work: _Work, factor: str) -> float:
    """95% quantile of the best score of any layer in the permutations of one factor."""
    return float(work.shuffled[factor].amax(dim=0).quantile(CONFIDENCE))
