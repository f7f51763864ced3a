"""How well the two sides separate on prompts that had no part in finding the direction, layer by layer.

The direction is the mean difference of the pairs of all groups but one; the prompts of the group left out are projected
on it, and d' and AUROC are those of all projections together. Everything is computed from inner products of states
(their Gram matrix), so that the cost of a fold does not depend on the width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from engine.records.captures import ContrastData
from engine.records.concepts import Factors
from engine.records.statistics import LayerSeparation, Separation
from engine.stats.contrast import last_states

if TYPE_CHECKING:
    from torch import Tensor

FOLDS = 5
_FEWEST_PAIRS = 4


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
        than four pairs, or a single group of every factor.

    Example:
        >>> layers = compute_separation(capture_from_concept(model, tokenizer, "honesty", max_samples=8, layers=[16]))
        >>> sorted(layers[16]["by_factor"])
        ['persona', 'template', 'topic']
    """
    groupings = _groupings(data.get("factors"), data["num_pairs"])
    return {
        layer: _separation(last_states(data["positive"], layer), last_states(data["negative"], layer), groupings)
        for layer in (data["layers"] if groupings else [])
    }


def _groupings(factors: Sequence[Factors] | None, num_pairs: int) -> dict[str, Tensor]:
    """For each way to leave pairs out, the number of the group that each pair belongs to, `(pairs,)`."""
    if num_pairs < _FEWEST_PAIRS:
        return {}
    if not factors:
        return {"pairs": torch.arange(num_pairs) % FOLDS}
    columns: dict[str, list[str]] = {
        "persona": [pair["persona"] for pair in factors],
        "template": [pair["template"] for pair in factors],
        "topic": [pair["topic"] for pair in factors],
    }
    varied = {name: values for name, values in columns.items() if len(set(values)) > 1}
    return {name: torch.tensor([sorted(set(v)).index(value) for value in v]) for name, v in varied.items()}


def _separation(positive: Tensor, negative: Tensor, groupings: Mapping[str, Tensor]) -> LayerSeparation:
    pairs = len(positive)
    states = torch.cat([positive, negative])  # (2 pairs, hidden)
    states = states - states.mean(dim=0)  # what all prompts share separates nothing, and costs digits
    gram = states @ states.T
    on_differences = gram[:, :pairs] - gram[:, pairs:]  # (2 pairs, pairs): each state on each difference
    by_factor = {name: _leave_one_group_out(on_differences, groups) for name, groups in groupings.items()}
    worst = min(by_factor, key=lambda name: by_factor[name]["d_prime"])
    return LayerSeparation(worst=worst, by_factor=by_factor)


def _leave_one_group_out(on_differences: Tensor, groups: Tensor) -> Separation:
    pairs = len(groups)
    kept = (groups[None, :] != torch.arange(int(groups.max()) + 1)[:, None]).double()  # (groups, pairs)
    weights = kept / kept.sum(dim=1, keepdim=True)  # a row makes the mean difference of a group's training pairs
    projected = on_differences @ weights.T  # (2 pairs, groups): every state on every direction
    positive, negative = projected[:pairs], projected[pairs:]
    middle = (weights * ((positive + negative) / 2).T).sum(dim=1)  # (groups,) of the training pairs
    length = (weights * (positive - negative).T).sum(dim=1).clamp_min(0).sqrt()  # (groups,) norm of the direction
    scaled = torch.where(length > 0, (projected - middle) / length, torch.zeros_like(projected))
    own = torch.cat([groups, groups])
    held_out = scaled[torch.arange(2 * pairs), own]
    return _compare(held_out[:pairs], held_out[pairs:])


def _compare(positive: Tensor, negative: Tensor) -> Separation:
    spread = ((positive.var() + negative.var()) / 2).sqrt()
    distance = positive.mean() - negative.mean()
    order = (positive[:, None] - negative[None, :]).sign()  # ties count half
    return Separation(
        d_prime=float(distance / spread) if spread > 0 else 0.0,
        auroc=float((order.mean() + 1) / 2),
    )
