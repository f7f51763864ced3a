"""Directions of a contrast, extracted from all of its pairs.

Nothing is held out here; `rank_layers` measures how well a direction generalizes to other prompts.
"""

from __future__ import annotations

from typing import cast

from engine.capture.selection import captured_layer
from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.files import AUTO_METHOD, METHODS, Direction, Method, MethodComparison
from engine.stats.contrast import require_contrast
from engine.stats.fitting import (
    Fitted,
    NoDifferenceError,
    fit_direction,
    fit_mean_difference,
    require_finite,
    require_method,
)
from engine.stats.groups import last_states, pairs_at
from engine.stats.methods import compare_methods


def extract_directions(
    data: ContrastData, method: str = "mean_diff", *, leading: int | None = None
) -> dict[int, Direction]:
    """Extract the direction at every layer where the classes differ.

    Args:
        data: A contrast.
        method: `mean_diff`, `pca`, `logistic`, `lda` or `auto`, see `extract_direction`.
        leading: With `auto`, the layer at which the methods are compared; the middle one by default.

    Returns:
        Layer to direction, without the layers where the classes do not differ.

    Raises:
        RequestError: The method is unknown, the states are not finite, or the classes do not differ at any layer.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[15, 16], max_samples=24)
        >>> sorted(extract_directions(contrast, "pca"))
        [15, 16]
    """
    require_contrast(data)
    require_method(method, (*METHODS, AUTO_METHOD))
    layers = data["layers"]
    compared = None
    if method == AUTO_METHOD:
        compared = compare_methods(data, layers[len(layers) // 2] if leading is None else leading)
    chosen = compared["best"] if compared else cast("Method", method)
    found: dict[int, Direction] = {}
    refusal: RequestError | None = None
    for layer in layers:
        try:
            found[layer] = _extract(data, layer, chosen, compared)
        except NoDifferenceError as error:
            refusal = error
    if refusal is not None and not found:
        raise refusal
    return found


def extract_direction(data: ContrastData, layer: int, method: str = "mean_diff") -> Direction:
    """Extract the direction from the negative to the positive class at one layer.

    It uses the states of the last kept token of each prompt, in float64.

    - `mean_diff`: mean of the pair differences.
    - `pca`: first singular vector of the pair differences. Unlike principal components, the differences are not
      centered, because centering would remove the mean difference itself.
    - `logistic`: normal vector of a logistic regression between the classes (L2, C = 1, states scaled to a root mean
      square of 1), as in linear probes (Alain and Bengio 2016, "Understanding Intermediate Layers Using Linear
      Classifiers").
    - `lda`: linear discriminant, the inverse covariance within the classes times the mean difference. The covariance is
      shrunk towards a multiple of the identity (Ledoit and Wolf 2004, "A well-conditioned estimator for
      large-dimensional covariance matrices"), since a capture has fewer pairs than dimensions.
    - `auto`: the one of these that separates held-out pairs best at this layer, see `compare_methods`.

    Args:
        data: A contrast.
        layer: A captured layer.
        method: `mean_diff`, `pca`, `logistic`, `lda` or `auto`.

    Returns:
        A unit vector along which the positive class projects higher, with the mean projection of each class and the
        mean norm of the states, the unit of strength in `steer`. Its `method` is the one that `auto` chose, and
        `methods` has the comparison.

    Raises:
        RequestError: The layer was not captured, the method is unknown, the states are not finite, or the classes do
            not differ.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> direction = extract_direction(contrast, 16)
        >>> direction["vector"].shape, direction["positive_mean"] > direction["negative_mean"]
        (torch.Size([576]), True)
    """
    require_contrast(data)
    layer = captured_layer(layer, data["layers"])
    require_method(method, (*METHODS, AUTO_METHOD))
    compared = compare_methods(data, layer) if method == AUTO_METHOD else None
    return _extract(data, layer, compared["best"] if compared else cast("Method", method), compared)


def _extract(data: ContrastData, layer: int, method: Method, compared: MethodComparison | None) -> Direction:
    fitted = _fit(data, layer, method)
    direction = Direction(
        layer=layer,
        vector=fitted.vector.float(),
        negative_mean=fitted.negative_mean,
        positive_mean=fitted.positive_mean,
        method=method,
        concept=data["concept"],
        num_pairs=data["num_pairs"],
        provenance=data.get("provenance"),
        norm=fitted.norm,
    )
    if compared is not None:
        direction["methods"] = compared
    return direction


def _fit(data: ContrastData, layer: int, method: Method) -> Fitted:
    if method == "mean_diff":
        return fit_mean_difference(pairs_at(data, layer), layer)
    positive, negative = last_states(data["positive"], layer), last_states(data["negative"], layer)  # (pairs, hidden)
    require_finite(positive, negative, layer)
    return fit_direction(positive, negative, method, layer)
