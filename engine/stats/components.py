"""Variance components: how much personas, templates, topics and single pairs vary, and which of them limits a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from scipy.optimize import nnls

if TYPE_CHECKING:
    from torch import Tensor

RESIDUAL = "pair"
"""Name of what is left: single pairs with the same persona, template and topic."""


def variance_components(values: Tensor, groupings: Mapping[str, Tensor]) -> dict[str, float]:
    """Estimate the variance that each factor adds to a value of pairs.

    Half the squared difference of two values has as its expectation the variances of the factors in which the two
    pairs differ, plus that of single pairs. The estimate is the non-negative least-squares fit over all two pairs
    (a method of moments, as Henderson 1953, "Estimation of Variance and Covariance Components").

    Args:
        values: One value per pair, `(pairs,)`, such as the held-out projection of its difference.
        groupings: Factor to the group index of each pair, `(pairs,)`.

    Returns:
        Factor to its variance, and `pair` to that of single pairs, in squared units of the values.

    Example:
        >>> import torch
        >>> persona = torch.arange(600) % 30
        >>> draws = torch.randn(630, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = variance_components(3 * draws[600:][persona] + draws[:600], {"persona": persona})
        >>> found["persona"] > 4 > 1.3 > found["pair"] > 0.7
        True
    """
    first, second = torch.triu_indices(len(values), len(values), offset=1)
    halves = (values[first] - values[second]).square() / 2
    differ = [(groups[first] != groups[second]).double() for groups in groupings.values()]
    design = torch.stack([*differ, torch.ones_like(halves)])  # (factors + 1, products)
    found, _ = nnls((design @ design.T).numpy(), (design @ halves).numpy())
    return dict(zip([*groupings, RESIDUAL], found.tolist(), strict=True))


def error_shares(components: Mapping[str, float], groups: Mapping[str, float], pairs: int) -> dict[str, float]:
    """Split the squared standard error of a mean over pairs into the shares of its variance components.

    A factor's variance is divided by its number of groups, that of single pairs by the number of pairs.

    Args:
        components: Variances, see `variance_components`.
        groups: Effective number of groups of each factor, see `effective_groups`.
        pairs: Number of pairs.

    Returns:
        Shares, which add up to 1; all 0 if nothing varies.

    Example:
        >>> error_shares({"persona": 9.0, "pair": 1.0}, {"persona": 12}, 72)
        {'persona': 0.9818..., 'pair': 0.0181...}
    """
    parts = {name: value / groups.get(name, pairs) for name, value in components.items()}
    total = sum(parts.values())
    return {name: part / total if total > 0 else 0.0 for name, part in parts.items()}


def combine(
    resampled: Mapping[str, Tensor], components: Mapping[str, float], groups: Mapping[str, float], pairs: int
) -> tuple[Tensor, float]:
    """Combine the bootstrap deviations of a score over each factor into those over all factors at once.

    The variances over single factors add up, but each contains that of single pairs, which is subtracted until it
    counts once (multiway clustering: Cameron, Gelbach and Miller 2011, "Robust Inference With Multiway Clustering").
    It is taken from the factor with the least variance, by its share there, so that the result is never below that of
    any factor.

    Args:
        resampled: Factor to the deviations of the score when its groups are resampled, `(resamples,)`.
        components: Variances of the held-out pair differences, see `variance_components`.
        groups: Effective number of groups of each factor, see `effective_groups`.
        pairs: Number of pairs.

    Returns:
        Deviations, `(resamples,)`, and their degrees of freedom (Satterthwaite 1946, "An Approximate Distribution of
        Estimates of Variance Components").

    Example:
        >>> import torch
        >>> deviations, freedom = combine({"persona": torch.tensor([1.0, -1.0])}, {"persona": 1.0, "pair": 1.0},
        ...     {"persona": 12}, 36)
        >>> deviations.tolist(), freedom
        ([1.0, -1.0], 11.0)
    """
    variances = {factor: float(deviations.var()) for factor, deviations in resampled.items()}
    total = sum(variances.values())
    summed = torch.stack(list(resampled.values())).sum(dim=0)
    if total == 0:
        return summed, float(min(groups[factor] for factor in resampled) - 1)
    least = min(variances, key=lambda factor: variances[factor])
    of_pairs = error_shares({name: components[name] for name in (least, RESIDUAL)}, groups, pairs)[RESIDUAL]
    once = total - (len(variances) - 1) * of_pairs * variances[least]
    freedom = total**2 / sum(value**2 / (groups[factor] - 1) for factor, value in variances.items())
    return summed * (once / total) ** 0.5, freedom
