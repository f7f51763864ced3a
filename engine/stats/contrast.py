"""Descriptive statistics of a contrast: norms and cosines of its differences.

They describe layers and are not suitable for ranking them: the raw norm grows with depth for any concept, and the
cosine of the class means stays near 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.errors import CaptureError, RequestError
from engine.records.captures import ActivationData, CaptureData, ContrastData, model_differences
from engine.records.checks import plain_factors, require_capture
from engine.records.results import LayerDiff
from engine.remedies import Remedy
from engine.stats.groups import chunked
from engine.stats.wordings import SharedPrompts, pair_prompts, share_prompts, wordings_of

if TYPE_CHECKING:
    from torch import Tensor

_MUST_AGREE = ("model", "site", "positions")


def compute_contrastive_diff(pos_data: CaptureData, neg_data: CaptureData | None = None) -> dict[int, LayerDiff]:
    """Compare the two classes at the last kept token of each layer.

    Args:
        pos_data: Capture of the positive prompts, or a contrast, which holds both classes.
        neg_data: Capture of the negative prompts.

    Returns:
        Layer to the norm of (mean positive - mean negative), that norm divided by the mean norm of the states of both
        classes, the cosine of the class means, and the mean cosine between the differences of two distinct pairs that
        share no prompt; all computed in float64.

    Raises:
        RequestError: One class is missing, or the captures were made differently and cannot be compared.

    Example:
        >>> diffs = compute_contrastive_diff(capture_from_concept(model, tokenizer, "honesty", max_samples=4))
        >>> sorted(diffs[16])
        ['cosine_sim', 'diff_norm', 'pair_cosine', 'relative_norm']
    """
    for data in [pos_data] if neg_data is None else [pos_data, neg_data]:
        require_capture(data)
    if "positive" in pos_data:
        if neg_data is not None:
            raise RequestError("a contrast already holds both classes", next_step="omit the second argument")
        positive, negative = pos_data["positive"], pos_data["negative"]
    elif neg_data is not None:
        if "positive" in neg_data:
            raise RequestError("the second argument is a contrast", expected="a capture of the negative prompts")
        positive, negative = [pos_data], [neg_data]
        _require_comparable(pos_data, neg_data)
    else:
        raise RequestError("the negative class is missing", expected="two captures, or one contrast")
    ends = pair_prompts(pos_data) if "positive" in pos_data else (wordings_of(positive[0]), wordings_of(negative[0]))
    shared = share_prompts(*ends) if len(ends[0]) == len(ends[1]) else None
    layers = positive[0]["captured_layers"]
    return {layer: _difference(positive, negative, layer, shared) for layer in layers}


def require_contrast(data: CaptureData) -> None:
    """Require a contrast whose classes, layers and factors match, as a caller may have changed it.

    Raises:
        RequestError: This is not a capture, it holds prompts without classes, or its parts do not match.
    """
    require_capture(data)
    if "positive" not in data:
        raise RequestError(
            "this is a capture of prompts: it has no positive and negative class",
            expected="a contrast",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    counts = [len(data["positive"]), len(data["negative"])]
    if counts != [data["num_pairs"]] * 2:
        raise RequestError(
            f"the contrast has {counts[0]} positive and {counts[1]} negative prompts, but num_pairs is"
            f" {data['num_pairs']}",
            expected="as many prompts in each class as there are pairs",
        )
    _require_one_width(data)
    factors = data.get("factors")
    if factors is None:
        return
    if not isinstance(factors, list | tuple):
        raise RequestError(f"the factors are a {type(factors).__name__}", expected="a list with one set per pair")
    try:
        plain_factors(factors, data["num_pairs"] if factors else 0)
    except CaptureError as error:
        raise RequestError(error.problem, expected=error.expected, next_step=error.next_step) from None


def _require_one_width(data: ContrastData) -> None:
    """Refuse prompts of other layers or widths; states that are read on access come from one checked file."""
    for layer in data["layers"]:
        widths = set()
        for prompt in (*data["positive"], *data["negative"]):
            states = prompt["activations"]
            if layer not in states:
                raise RequestError(
                    f"a prompt of the contrast has no states of layer {layer}", expected="every layer for every prompt"
                )
            if isinstance(states, dict):
                widths.add(states[layer].shape[-1])
        if len(widths) > 1:
            raise RequestError(
                f"the prompts have states of the widths {sorted(widths)} at layer {layer}",
                expected="prompts captured with one model",
            )


@dataclass
class _ClassSums:
    """Sums over the last states of one class, float64."""

    count: int = 0
    total: Tensor | float = 0.0
    norms: float = 0.0

    def add(self, states: Tensor) -> None:
        self.count += len(states)
        self.total = self.total + states.sum(dim=0)
        self.norms += float(states.norm(dim=-1).sum())

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.total) / self.count


def _difference(
    positive: list[ActivationData], negative: list[ActivationData], layer: int, shared: SharedPrompts | None
) -> LayerDiff:
    classes = _ClassSums(), _ClassSums()
    for sums, prompts in zip(classes, (positive, negative), strict=True):
        for states in chunked(prompts, layer):
            sums.add(states)
    mean_positive, mean_negative = (sums.mean for sums in classes)  # (hidden,)
    diff_norm = (mean_positive - mean_negative).norm()
    scale = sum(sums.norms for sums in classes) / sum(sums.count for sums in classes)
    return LayerDiff(
        diff_norm=float(diff_norm),
        relative_norm=float(diff_norm / scale),
        cosine_sim=float(torch.cosine_similarity(mean_positive, mean_negative, dim=0)),
        pair_cosine=None if shared is None else _pair_cosine(positive, negative, layer, shared),
    )


def _pair_cosine(
    positive: list[ActivationData], negative: list[ActivationData], layer: int, shared: SharedPrompts
) -> float | None:
    """Mean cosine between the differences of two distinct pairs that share no prompt.

    Two pairs with a prompt in common have its state in both differences, which are alike for that reason alone.
    Excluding these, and each pair with itself, makes it 0 on average if the differences have nothing in common. None if
    there are no two such pairs that differ.
    """
    sums: Tensor | None = None  # of all pairs, and of those with a shared prompt, `(1 + prompts, hidden + 1)`
    apart, done = 0.0, 0
    for states, partners in zip(chunked(positive, layer), chunked(negative, layer), strict=True):
        differences = states - partners
        lengths = differences.norm(dim=-1, keepdim=True)
        differs = lengths[:, 0] > 0
        units = torch.cat([differences / lengths, torch.ones_like(lengths)], dim=1)  # the last column counts pairs
        units[~differs] = 0.0
        if sums is None:
            sums = torch.zeros(1 + len(shared.signs), units.shape[1], dtype=units.dtype)
        sums[0] += units.sum(dim=0)
        chunk = slice(done, done + len(units))
        for places in shared.places:
            kept = places[chunk] >= 0
            sums.index_add_(0, 1 + places[chunk][kept], units[kept])
        apart += float(shared.excess[chunk][differs].sum())
        done += len(units)
    if sums is None:
        return None
    squares = torch.cat([torch.ones(1, dtype=sums.dtype), shared.signs]) @ sums.square()
    count = float(squares[-1]) + apart
    return (float(squares[:-1].sum()) + apart) / count if count > 0 else None


def _require_comparable(one: ActivationData, other: ActivationData) -> None:
    differing = []
    if "provenance" in one and "provenance" in other:
        first, second = one["provenance"], other["provenance"]
        fields = [(field, str(dict(first)[field]), str(dict(second)[field])) for field in _MUST_AGREE]
        differing = [entry for entry in fields if entry[1] != entry[2]] + model_differences(first, second)
    reasons = [f"{field} ({mine} and {theirs})" for field, mine, theirs in differing]
    if one["captured_layers"] != other["captured_layers"]:
        reasons.append(f"captured layers ({one['captured_layers']} and {other['captured_layers']})")
    widths = [next(iter(data["activations"].values())).shape[-1] for data in (one, other)]
    if widths[0] != widths[1]:
        reasons.append(f"width ({widths[0]} and {widths[1]})")
    if reasons:
        raise RequestError(
            f"the two captures cannot be compared: they differ in {', '.join(reasons)}",
            next_step="capture both the same way",
        )
