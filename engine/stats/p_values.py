"""How often shuffled labels score as high as the true ones. Knows scores; nothing of pairs, groups or layers' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.stats.resampling import all_shuffles, distinct_shuffles

if TYPE_CHECKING:
    from torch import Tensor


def p_values(observed: Tensor, shuffled: Tensor, groups: int, permutations: int) -> Tensor:
    """Share of shuffles in which the best of all layers scores as high as a layer does, the true labels among them.

    The maximum over layers makes 5% the chance of a false find among all of them (Westfall and Young 1993,
    "Resampling-Based Multiple Testing"). Where the shuffles are drawn, the true labels count as one more: a drawn
    shuffle never gives p = 0 (Phipson and Smyth 2010, "Permutation P-values Should Never Be Zero").

    Args:
        observed: Scores of the true labels, `(layers,)`.
        shuffled: Scores of shuffled labels, `(layers, shuffles)`.
        groups: Number of groups whose labels are swapped.
        permutations: Most shuffles.

    Returns:
        `(layers,)`, float64.

    Example:
        >>> import torch
        >>> shuffled = torch.tensor([[3.0, 1.0, -1.0, -3.0], [1.0, 2.0, -2.0, -1.0]])
        >>> p_values(torch.tensor([3.0, 1.0]), shuffled, groups=3, permutations=100).tolist()
        [0.25, 0.5]
    """
    best = shuffled.amax(dim=0)  # (shuffles,)
    tolerance = 1e-9 * (1 + observed.abs())  # the true labels come out the same but for rounding
    as_high = (best[None, :] >= (observed - tolerance)[:, None]).sum(dim=1)
    if all_shuffles(groups, permutations):
        return as_high.double() / best.numel()
    return (as_high.double() + 1) / (best.numel() + 1)


def smallest_p(groups: int, permutations: int) -> float:
    """The smallest p-value that so many groups and shuffles can give.

    Args:
        groups: Number of groups whose labels are swapped.
        permutations: Most shuffles.

    Example:
        >>> smallest_p(6, 10_000), smallest_p(60, 9_999)
        (0.03125, 0.0001)
    """
    shuffles = distinct_shuffles(groups, permutations)
    return 1 / shuffles if all_shuffles(groups, permutations) else 1 / (shuffles + 1)
