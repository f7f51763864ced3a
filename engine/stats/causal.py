"""Statistics of a causal ranking: effects of steering against chance and controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from scipy.special import ndtri, stdtr

from engine.stats.groups import effective_groups
from engine.stats.resampling import CONFIDENCE, RESAMPLES, as_students_t

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_GROUPS = 1.5
"""Fewest effective groups of a factor, as of two whose sizes are 4:1; with fewer, one group decides the mean."""

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Interval(NamedTuple):
    """Simultaneous intervals of means over prompts.

    Attributes:
        mean: Mean of each layer, `(layers,)`.
        low: Lower ends.
        high: Upper ends.
        p_values: For a mean above zero, corrected for the number of layers.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    p_values: Tensor


def interval_of_means(values: Tensor, groups: Mapping[str, Tensor], seed: int = 0) -> Interval:
    """Estimate means over prompts that hold for new groups of every factor, at several layers at once.

    The variances over the groups of each factor add up, and that of single prompts, which each of them contains, counts
    once (Cameron, Gelbach and Miller 2011, "Robust Inference With Multiway Clustering"); the sum is at least the
    largest of them. The wild bootstrap, in which each prompt moves with the random weights of its groups, shows how the
    layers deviate together: the largest studentized deviation gives simultaneous intervals and p-values corrected for
    the number of layers (Westfall and Young 1993, "Resampling-Based Multiple Testing"). Student's t for the factor
    with the fewest groups widens both; groups of unequal size count less, see `effective_groups`.

    Args:
        values: One value per layer and prompt, `(layers, prompts)`, float64.
        groups: Factor to the group index of each prompt, `(prompts,)`; at least `FEWEST_GROUPS` effective groups each.
        seed: Seed for the weights.

    Returns:
        Means, 95% intervals and one-sided p-values.

    Example:
        >>> draws = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = interval_of_means(draws + torch.tensor([[0.0], [2.0]]), {"pair": torch.arange(40)})
        >>> bool(found.p_values[0] > 0.05 > found.p_values[1]), bool(found.low[1] < 2 < found.high[1])
        (True, True)
    """
    mean = values.mean(dim=1)
    centred = (values - mean[:, None]) / values.shape[1]
    drawing = torch.Generator().manual_seed(seed)
    deviations = torch.zeros(len(values), RESAMPLES, dtype=torch.float64)
    parts = []
    fewest = float(values.shape[1])
    for numbers in groups.values():
        count = effective_groups(numbers)
        sums = torch.zeros(len(values), int(numbers.max()) + 1, dtype=torch.float64).index_add_(1, numbers, centred)
        scale = math.sqrt(count / (count - 1))
        weights = torch.randn(sums.shape[1], RESAMPLES, generator=drawing, dtype=torch.float64)
        deviations += scale * sums @ weights
        parts.append(scale**2 * sums.square().sum(dim=1))
        fewest = min(fewest, count)
    summed = torch.stack(parts)  # (factors, layers)
    both = summed.sum(dim=0) - (len(parts) - 1) * centred.square().sum(dim=1)
    tiny = torch.finfo(torch.float64).tiny
    error = torch.maximum(both, summed.amax(dim=0)).sqrt().clamp_min(tiny)
    studentized = deviations / summed.sum(dim=0).sqrt().clamp_min(tiny)[:, None]  # (layers, resamples)
    reach = as_students_t(float(studentized.abs().amax(dim=0).quantile(CONFIDENCE)), fewest - 1)
    observed = torch.from_numpy(ndtri(stdtr(fewest - 1, (mean / error).numpy())))  # as a normal deviate
    best = studentized.amax(dim=0)
    p_values = ((best[None] >= observed[:, None]).sum(dim=1) + 1).double() / (RESAMPLES + 1)
    return Interval(mean, mean - reach * error, mean + reach * error, p_values)


def exceeds_controls(observed: Tensor, controls: Tensor, *, signed: bool) -> Tensor:
    """Test whether the effect of a direction exceeds that of control directions, at any of several layers.

    Layers are put on one scale by the root mean square over all directions, the tested one included, so that under the
    null every direction is as likely to have the largest value over layers. The p-value of a layer is the share of
    directions whose largest value reaches that layer's. If an effect changes sign with its direction, each direction
    counts a second time with the opposite sign.

    Args:
        observed: Effect at each layer, `(layers,)`.
        controls: Effects of the controls, `(layers, controls)`, each drawn for all layers together.
        signed: Whether the effect of the opposite direction is the opposite effect.

    Returns:
        p-values, `(layers,)`, corrected for the number of layers.

    Example:
        >>> controls = torch.tensor([[0.1, -0.2, 0.1, 0.0, 0.1, -0.1, 0.2, 0.1, -0.1, 0.2]])
        >>> round(float(exceeds_controls(torch.tensor([0.9]), controls, signed=True)), 3)
        0.045
    """
    together = torch.cat([observed[:, None], controls], dim=1)  # (layers, 1 + controls)
    scale = together.square().mean(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    scaled = together / scale
    best = (torch.cat([scaled, -scaled], dim=1) if signed else scaled).amax(dim=0)  # (directions,)
    return (best[None] >= scaled[:, :1]).double().mean(dim=1)


@dataclass(frozen=True)
class AdditionResults:
    """Effects of adding directions at several layers.

    Attributes:
        effects: `(layers, 1 + permuted + random, prompts)`: the direction, then the controls.
        damage: KL divergence, `(layers, 1 + permuted + random)`.
        perplexity: Factor of the direction, `(layers,)`.
        groups: Factor to the group index of each prompt.
        permuted: Number of directions of permuted labels.
    """

    effects: Tensor
    damage: Tensor
    perplexity: Tensor
    groups: Mapping[str, Tensor]
    permuted: int


class AdditionTest(NamedTuple):
    """Tests of the effects of adding a direction: one value per layer in each tensor."""

    interval: Interval
    p_by_control: dict[str, Tensor]
    random: Tensor
    permuted: Tensor
    wrong_way: Tensor
    quantiles: Tensor

    @property
    def p_values(self) -> Tensor:
        """The largest p-value of each layer: all must hold (Berger 1982, see `rank_layers`)."""
        return torch.stack(list(self.p_by_control.values())).amax(dim=0)


def compare_additions(results: AdditionResults, seed: int = 0) -> AdditionTest:
    """Compare the effect of a direction with zero, and with random directions and those of permuted labels."""
    means = results.effects.mean(dim=2)  # (layers, directions)
    permuted, random = means[:, 1 : 1 + results.permuted], means[:, 1 + results.permuted :]
    interval = interval_of_means(results.effects[:, 0], results.groups, seed)
    return AdditionTest(
        interval=interval,
        p_by_control={
            "prompts": interval.p_values,
            "controls": exceeds_controls(means[:, 0], means[:, 1:], signed=True),
        },
        random=random.square().mean(dim=1).sqrt(),
        permuted=permuted.square().mean(dim=1).sqrt(),
        wrong_way=(results.effects[:, 0] < 0).double().mean(dim=1),
        quantiles=results.effects[:, 0].quantile(torch.tensor(_QUANTILES, dtype=torch.float64), dim=1).T,
    )


@dataclass(frozen=True)
class AblationResults:
    """Effects of projecting directions out at several layers.

    Attributes:
        layers: The layers.
        removed: Part of the difference between the personas' margins that disappears,
            `(layers, 1 + controls, prompts)`.
        difference: The difference, `(prompts,)`.
        groups: Factor to the group index of each prompt.
    """

    layers: list[int]
    removed: Tensor
    difference: Tensor
    groups: Mapping[str, Tensor]


class AblationTest(NamedTuple):
    """Tests of the effects of projecting a direction out: one value per layer in each tensor.

    Attributes:
        interval: The share of the difference that disappears.
        p_values: For more than nothing, and more than with controls.
        controls: The largest share that disappears with a control.
    """

    interval: Interval
    p_values: Tensor
    controls: Tensor


def compare_ablations(results: AblationResults, seed: int = 0) -> AblationTest | None:
    """Compare how much of the difference between personas disappears without a direction, and without controls.

    The interval is that of a ratio of means: of what is left over when the share is taken of each prompt's difference.

    Returns:
        The tests; None if it is not certain that there is a difference, so that no share of it can be stated.
    """
    if min(map(effective_groups, results.groups.values())) < FEWEST_GROUPS:
        return None
    if float(interval_of_means(results.difference[None], results.groups, seed).low) <= 0:
        return None
    removed, whole = results.removed, results.difference.mean()
    means = removed.mean(dim=2)  # (layers, directions)
    share = means[:, 0] / whole
    rest = interval_of_means((removed[:, 0] - share[:, None] * results.difference) / whole, results.groups, seed)
    own = Interval(share, share + rest.low, share + rest.high, rest.p_values)  # the mean of the rest is 0
    more = interval_of_means(removed[:, 0] - removed[:, 1:].mean(dim=1), results.groups, seed)
    beats = exceeds_controls(means[:, 0], means[:, 1:], signed=False)
    return AblationTest(own, torch.maximum(more.p_values, beats), means[:, 1:].amax(dim=1) / whole)
