"""How well the two sides separate on prompts that had no part in finding the direction, layer by layer.

The direction is the mean difference of the pairs of all groups but one; the pairs of the group left out are projected
on it, and d' and AUROC are those of all projections together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from engine.errors import Remedy, RequestError
from engine.records.captures import ContrastData
from engine.records.statistics import LayerSeparation, Separation
from engine.stats.contrast import last_states
from engine.stats.gram import PairGram, project_held_out
from engine.stats.groups import group_pairs

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-10
_RESOLUTION = 1e-7  # of float32, which states come in at best


def compute_separation(data: ContrastData) -> dict[int, LayerSeparation]:
    """Held-out separation of a contrast at the last kept token, for each way to leave prompts out.

    Pairs made from one template, persona or topic go together and are left out together (leave-one-group-out); all
    three are reported, and the score of a layer is the worst of them: it generalises over everything that was varied.
    Pairs without factors are left out in five folds, which is easier and says less.

    d' is the distance of the two means over the root of the mean of the two variances (Green and Swets 1966, "Signal
    Detection Theory and Psychophysics"); AUROC the share of (positive, negative) prompts that come in the right order.

    Args:
        data: A contrast; all sums are in float64.

    Returns:
        Layer to separation by what was left out, and the name of the worst. Empty where nothing can be left out: fewer
        than four pairs, or than three groups of every factor.

    Example:
        >>> layers = compute_separation(capture_from_concept(model, tokenizer, "honesty", max_samples=8, layers=[16]))
        >>> sorted(layers[16]["by_factor"])
        ['persona', 'template', 'topic']
    """
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    return {layer: separate(gram_at(data, layer), groupings) for layer in (data["layers"] if groupings else [])}


def gram_at(data: ContrastData, layer: int) -> PairGram:
    """Inner products of the states of the last kept token at a layer."""
    return PairGram.of(last_states(data["positive"], layer), last_states(data["negative"], layer))


def separate(gram: PairGram, groupings: Mapping[str, Tensor]) -> LayerSeparation:
    """Held-out separation at one layer.

    Args:
        gram: Its inner products.
        groupings: For each factor the group of each pair, at least one; see `group_pairs`.
    """
    by_factor = {factor: _separation(gram, groups) for factor, groups in groupings.items()}
    worst = min(by_factor, key=lambda factor: by_factor[factor]["d_prime"])
    return LayerSeparation(worst=worst, by_factor=by_factor)


def require_usable(layer: int, gram: PairGram) -> None:
    """Refuse states that no separation can be computed from.

    Raises:
        RequestError: They are not finite, or the sides differ and nothing varies within them.
    """
    if not (torch.isfinite(gram.differences).all() and torch.isfinite(gram.middles).all()):
        raise RequestError(f"layer {layer} holds values that are not finite", next_step=Remedy.CAPTURE_IN_FLOAT32)
    squared = gram.differences.diagonal()  # (pairs,)
    resolution = _RESOLUTION * gram.size
    longest = squared.max().sqrt()
    apart = (squared[:, None] + squared[None, :] - 2 * gram.differences).max().clamp_min(0).sqrt()
    if longest > resolution and apart <= resolution and gram.middles.abs().max() <= resolution * longest:
        raise RequestError(
            f"at layer {layer} all prompts of a side have the same state: there is no spread",
            expected="prompts that differ from each other",
            next_step="vary what the prompts are about",
        )


def _separation(gram: PairGram, groups: Tensor) -> Separation:
    held_out = project_held_out(gram, groups)
    differences, middles = held_out.differences[:, 0], held_out.middles[:, 0]
    positive, negative = middles + differences / 2, middles - differences / 2
    gaps = positive[:, None] - negative[None, :]
    order = gaps.sign() * (gaps.abs() > _ROUNDING * gaps.abs().max())  # ties count half, rounded ones too
    return Separation(
        d_prime=float(held_out.d_prime()),
        auroc=float((order.double().mean() + 1) / 2),
        wrong_way=float((1 - differences.sign().double().mean()) / 2),
    )
