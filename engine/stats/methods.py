"""Compare the methods of extracting a direction by how well they separate held-out pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.capture.selection import captured_layer
from engine.records.captures import ActivationData, ContrastData
from engine.records.files import METHODS, Method, MethodComparison, MethodScore
from engine.stats.contrast import require_contrast
from engine.stats.fitting import NoDifferenceError, fit_direction, require_finite
from engine.stats.groups import group_pairs, held_out_groups, last_states, sample_pairs
from engine.stats.moments import projected_d_prime
from engine.stats.separation import share_in_order

if TYPE_CHECKING:
    from torch import Tensor

_MOST_FOLDS = 12
_MOST_PAIRS = 600  # a logistic regression of more takes seconds, once per fold
_TIE = 0.005
_SIMPLEST: Method = "mean_diff"


def compare_methods(data: ContrastData, layer: int) -> MethodComparison:
    """Measure each method of `extract_direction` on held-out pairs at one layer.

    Personas are held out, or another factor if personas do not vary, or pairs without factors. The direction is fitted
    again for each fold, on all other pairs; more than twelve groups are merged into twelve folds. Of more than 600
    pairs, 600 are drawn at random.

    The best method is the one with the highest AUROC. If the mean difference is within 0.005 of it, the mean
    difference is the best: it has nothing to tune and is what ranks the layers. The AUROC of the best method is
    slightly optimistic, because it was chosen by it.

    Args:
        data: A contrast.
        layer: A captured layer.

    Returns:
        Held-out AUROC and d' of each method, highest AUROC first, and the best method. There are no scores if no group
        can be held out or the classes do not differ; the mean difference is then the best.

    Raises:
        RequestError: The layer was not captured, or its states are not finite.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24, positions="last")
        >>> found = compare_methods(contrast, 16)
        >>> found["held_out"], len(found["scores"])
        ('persona', 4)
    """
    require_contrast(data)
    layer = captured_layer(layer, data["layers"])
    groupings = group_pairs(data)
    if not groupings:
        return MethodComparison(layer=layer, held_out="", scores=[], best=_SIMPLEST)
    factor = next(iter(groupings))
    chosen = sample_pairs({factor: groupings[factor]}, _MOST_PAIRS)
    positive, negative = (_states(prompts, layer, chosen) for prompts in (data["positive"], data["negative"]))
    require_finite(positive, negative, layer)
    folds = held_out_groups(factor, groupings[factor])[chosen] % _MOST_FOLDS
    scores = [score for method in METHODS if (score := _measure(positive, negative, folds, method, layer))]
    scores.sort(key=lambda score: -score["auroc"])
    return MethodComparison(layer=layer, held_out=factor, scores=scores, best=best_method(scores))


def best_method(scores: list[MethodScore]) -> Method:
    """Choose the method with the highest AUROC, or the mean difference if it is within 0.005 of that or none is known.

    Args:
        scores: Highest AUROC first.
    """
    if not scores or any(s["method"] == _SIMPLEST and s["auroc"] >= scores[0]["auroc"] - _TIE for s in scores):
        return _SIMPLEST
    return scores[0]["method"]


def _states(prompts: list[ActivationData], layer: int, chosen: Tensor) -> Tensor:
    return last_states([prompts[pair] for pair in chosen.tolist()], layer)


def _measure(positive: Tensor, negative: Tensor, folds: Tensor, method: Method, layer: int) -> MethodScore | None:
    """Score a method on pairs projected on the direction of all other folds.

    Args:
        positive: `(pairs, hidden)`.
        negative: `(pairs, hidden)`.
        folds: Fold of each pair, `(pairs,)`.
        method: The method.
        layer: Layer number.

    Returns:
        The score; None if the classes of the training pairs do not differ in some fold.
    """
    onto = torch.empty(2, len(folds), dtype=torch.float64)  # positive, negative
    for fold in sorted(set(folds.tolist())):
        out = folds == fold
        try:
            fitted = fit_direction(positive[~out], negative[~out], method, layer)
        except NoDifferenceError:
            return None
        middle = (fitted.positive_mean + fitted.negative_mean) / 2
        onto[0, out] = positive[out] @ fitted.vector - middle
        onto[1, out] = negative[out] @ fitted.vector - middle
    d_prime = projected_d_prime(onto[0] - onto[1], onto.mean(dim=0))
    return MethodScore(method=method, auroc=share_in_order(onto[0], onto[1]), d_prime=d_prime)
