"""The direction of a contrast at a layer: `extract_direction`.

In the sample: nothing is held out here. How well a direction holds on other prompts is for `rank_layers` to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast, get_args

import torch

from engine.capture.selection import captured_layer
from engine.errors import Remedy, RequestError, nearest
from engine.records.captures import ContrastData
from engine.records.files import Direction, Method
from engine.stats.contrast import require_contrast
from engine.stats.groups import last_states

if TYPE_CHECKING:
    from torch import Tensor

_NEGLIGIBLE = 1e-12  # of the size of the states: what rounding leaves of nothing
METHODS: tuple[str, ...] = get_args(Method)


class _NoDifferenceError(RequestError):
    """The two sides are equal at a layer."""


def extract_directions(data: ContrastData, method: str = "mean_diff") -> dict[int, Direction]:
    """The direction at every layer where the two sides differ, see `extract_direction`.

    Args:
        data: A contrast.
        method: One of the three.

    Raises:
        RequestError: There is no such method, or the sides differ at no layer.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[15, 16], max_samples=24)
        >>> sorted(extract_directions(contrast, "pca"))
        [15, 16]
    """
    require_contrast(data)
    found: dict[int, Direction] = {}
    refusal: RequestError | None = None
    for layer in data["layers"]:
        try:
            found[layer] = extract_direction(data, layer, method)
        except _NoDifferenceError as error:
            refusal = error
    if refusal is not None and not found:
        raise refusal
    return found


def extract_direction(data: ContrastData, layer: int, method: str = "mean_diff") -> Direction:
    """Find the direction from the negative to the positive side at the last kept token.

    - `mean_diff`: the mean of the pair differences.
    - `pca`: what the pair differences have most in common, their first singular vector. They are not centred, as
      principal components would be: that would take out the mean difference itself.
    - `logistic`: the normal of a logistic regression between the sides (L2, C = 1, states scaled to a root mean square
      of 1), as in linear probes (Alain and Bengio 2016, "Understanding Intermediate Layers Using Linear Classifiers").

    Args:
        data: A contrast.
        layer: One of its layers.
        method: One of the three.

    Returns:
        A unit vector along which the positive side projects higher, with where the two sides lie on it.

    Raises:
        RequestError: The layer was not captured, there is no such method, or the two sides do not differ.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> direction = extract_direction(contrast, 16)
        >>> direction["vector"].shape, direction["positive_mean"] > direction["negative_mean"]
        (torch.Size([576]), True)
    """
    require_contrast(data)
    layer = captured_layer(layer, data["layers"])
    if method not in METHODS:
        raise RequestError(
            f"there is no method {method!r}",
            expected=f"one of {', '.join(METHODS)}",
            next_step=nearest(method, METHODS),
        )
    positive, negative = last_states(data["positive"], layer), last_states(data["negative"], layer)  # (pairs, hidden)
    if not (torch.isfinite(positive).all() and torch.isfinite(negative).all()):
        raise RequestError(f"layer {layer} holds values that are not finite", next_step=Remedy.CAPTURE_IN_FLOAT32)
    found = _FINDERS[method](positive, negative)
    length = found.norm()
    if length == 0:
        raise _NoDifferenceError(
            f"the two sides do not differ at layer {layer}", next_step="choose a later layer, or prompts that differ"
        )
    unit = found / length
    ends = float((negative @ unit).mean()), float((positive @ unit).mean())
    if abs(ends[1] - ends[0]) <= _NEGLIGIBLE * float(torch.cat([positive, negative]).norm(dim=-1).mean()):
        raise _NoDifferenceError(
            f"the two sides have the same mean at layer {layer}, along what {method} finds",
            next_step="choose a later layer, another method, or prompts that differ",
        )
    if ends[1] < ends[0]:
        unit, ends = -unit, (-ends[0], -ends[1])
    return Direction(
        layer=layer,
        vector=unit.float(),
        negative_mean=ends[0],
        positive_mean=ends[1],
        method=cast("Method", method),
        concept=data["concept"],
        num_pairs=data["num_pairs"],
        provenance=data.get("provenance"),
    )


def _mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    return (positive - negative).mean(dim=0)


def _first_singular_vector(positive: Tensor, negative: Tensor) -> Tensor:
    _, lengths, vectors = torch.linalg.svd(positive - negative, full_matrices=False)
    first: Tensor = vectors[0] * lengths[0]  # of length 0 where no pair differs
    return first


def _logistic_normal(positive: Tensor, negative: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    if torch.equal(positive, negative):
        return torch.zeros_like(positive[0])
    states = torch.cat([positive, negative])
    states = states - states.mean(dim=0)
    sides = [1] * len(positive) + [0] * len(negative)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit((states / states.square().mean().sqrt()).numpy(), sides)
    return torch.from_numpy(fitted.coef_[0])


_FINDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_diff": _mean_difference,
    "pca": _first_singular_vector,
    "logistic": _logistic_normal,
}
