"""Fit a direction to the states of both classes, by each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError, similar
from engine.records.files import METHODS, Method
from engine.remedies import Remedy

if TYPE_CHECKING:
    from torch import Tensor

    from engine.stats.groups import Pairs

_NEGLIGIBLE = 1e-12  # relative to the norm of the states: rounding error of a zero difference
_LEAST_SHRINKAGE = 1e-6  # keeps the covariance invertible where none is estimated


class NoDifferenceError(RequestError):
    """The two classes are equal at a layer."""


@dataclass(frozen=True)
class Fitted:
    """A direction fitted to the states of both classes.

    Attributes:
        vector: Unit vector, `(hidden,)`, float64; the positive class projects higher.
        negative_mean: Mean projection of the negative class.
        positive_mean: Mean projection of the positive class.
        norm: Mean norm of the states.
    """

    vector: Tensor
    negative_mean: float
    positive_mean: float
    norm: float


def require_method(method: str, known: tuple[str, ...] = METHODS) -> None:
    """Require the name of a method.

    Raises:
        RequestError: The method is unknown.
    """
    if method not in known:
        raise RequestError(
            f"there is no method {method!r}",
            expected=f"one of {', '.join(known)}",
            next_step=similar(method, known),
        )


def require_finite(positive: Tensor, negative: Tensor, layer: int) -> None:
    """Require finite states of both classes.

    Raises:
        RequestError: A value is infinite or not a number.
    """
    if not (torch.isfinite(positive).all() and torch.isfinite(negative).all()):
        raise RequestError(f"layer {layer} has non-finite values", next_step=Remedy.CAPTURE_IN_FLOAT32)


def fit_direction(positive: Tensor, negative: Tensor, method: Method, layer: int) -> Fitted:
    """Fit the direction from the negative to the positive class; see `extract_direction` for the methods.

    Args:
        positive: States of the positive prompts, `(pairs, hidden)`, float64, finite.
        negative: States of their negative partners, in the same order.
        method: One of `METHODS`.
        layer: Layer number, for error messages.

    Raises:
        NoDifferenceError: The classes do not differ.
    """
    means = positive.mean(dim=0), negative.mean(dim=0)
    return _fitted(_FINDERS[method](positive, negative), *means, mean_norm(positive, negative), method, layer)


def fit_mean_difference(pairs: Pairs, layer: int) -> Fitted:
    """Fit the mean difference with one chunk of the pairs in memory at a time.

    Args:
        pairs: The pairs.
        layer: Layer number, for error messages.

    Raises:
        NoDifferenceError: The classes do not differ.
        RequestError: A state is not finite.
    """
    count, sums, norms = 0, torch.zeros(1, dtype=torch.float64), 0.0
    for positive, negative in pairs():
        require_finite(positive, negative, layer)
        count += len(positive)
        sums = sums + torch.stack([(positive - negative).sum(dim=0), positive.sum(dim=0), negative.sum(dim=0)])
        norms += mean_norm(positive, negative) * len(positive)
    difference, positive, negative = sums / count
    return _fitted(difference, positive, negative, norms / count, "mean_diff", layer)


def mean_norm(positive: Tensor, negative: Tensor) -> float:
    """Mean norm of the states of both classes, `(pairs, hidden)` each."""
    return float(positive.norm(dim=-1).mean() + negative.norm(dim=-1).mean()) / 2


def _fitted(found: Tensor, positive: Tensor, negative: Tensor, norm: float, method: Method, layer: int) -> Fitted:
    """Scale a direction to length 1 and turn it towards the positive class.

    Args:
        found: The direction, `(hidden,)`.
        positive: Mean of the positive states, `(hidden,)`.
        negative: Mean of the negative states.
        norm: Mean norm of the states.
        method: How it was found.
        layer: Layer number.
    """
    length = found.norm()
    if length == 0:
        raise NoDifferenceError(
            f"the two classes do not differ at layer {layer}", next_step="choose a later layer, or prompts that differ"
        )
    unit = found / length
    ends = float(negative @ unit), float(positive @ unit)
    if abs(ends[1] - ends[0]) <= _NEGLIGIBLE * norm:
        raise NoDifferenceError(
            f"the two classes have the same mean along the {method} direction at layer {layer}",
            next_step="choose a later layer, another method, or prompts that differ",
        )
    return Fitted(unit, *ends, norm) if ends[0] < ends[1] else Fitted(-unit, -ends[0], -ends[1], norm)


def within_classes(positive: Tensor, negative: Tensor) -> Tensor:
    """Deviations of the states from the mean of their class, `(2 pairs, hidden)`."""
    states = torch.cat([positive, negative])
    for part in states.chunk(2):
        part -= part.mean(dim=0)
    return states


def _mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    return (positive - negative).mean(dim=0)


def _first_singular_vector(positive: Tensor, negative: Tensor) -> Tensor:
    """The first right singular vector of the differences, from the smaller of their two matrices of inner products."""
    differences = positive - negative  # (pairs, hidden)
    pairs, hidden = differences.shape
    products = differences @ differences.T if pairs <= hidden else differences.T @ differences
    first: Tensor = torch.linalg.eigh(products).eigenvectors[:, -1]  # of the largest eigenvalue
    found: Tensor = first @ differences if pairs <= hidden else first
    return found if differences.any() else torch.zeros_like(differences[0])


def _logistic_normal(positive: Tensor, negative: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    if torch.equal(positive, negative):
        return torch.zeros_like(positive[0])
    states = torch.cat([positive, negative])  # changed in place below: one copy of large captures
    states -= states.mean(dim=0)
    states /= states.norm() / states.numel() ** 0.5
    labels = [1] * len(positive) + [0] * len(negative)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(states.numpy(), labels)
    return torch.from_numpy(fitted.coef_[0])


def _shrinkage_discriminant(positive: Tensor, negative: Tensor) -> Tensor:
    """Multiply the mean difference by the inverse of the shrunk covariance within the classes.

    The covariance is ridge · I + weight · XᵀX, with the residuals X. Where there are fewer residuals than dimensions,
    it is inverted through the residuals' inner products (Woodbury identity), which never forms a matrix as wide as
    the states.
    """
    difference = _mean_difference(positive, negative)  # (hidden,)
    residuals = within_classes(positive, negative)
    count, width = residuals.shape
    products = residuals @ residuals.T if count <= width else residuals.T @ residuals
    variance = float(products.trace()) / (count * width)
    if variance == 0:
        return difference
    shrinkage = max(_shrinkage(residuals, products, variance), _LEAST_SHRINKAGE)
    ridge, weight = shrinkage * variance, (1 - shrinkage) / count
    inner = weight * products + ridge * torch.eye(len(products), dtype=products.dtype)
    if count > width:
        solved: Tensor = torch.linalg.solve(inner, difference)
        return solved
    explained: Tensor = residuals.T @ torch.linalg.solve(inner, residuals @ difference)
    return (difference - weight * explained) / ridge


def _shrinkage(residuals: Tensor, products: Tensor, variance: float) -> float:
    """Optimal weight of the multiple of the identity (Ledoit and Wolf 2004), from 0 to 1.

    The squared distance of the sample covariance from that multiple is split into its own sampling error and the rest.

    Args:
        residuals: `(count, hidden)`, mean 0.
        products: Their inner products, over dimensions or over residuals: both have the same norm.
        variance: Mean variance of a dimension.
    """
    count, width = residuals.shape
    squared_norm = float(products.square().sum()) / count**2  # of the sample covariance
    distance = squared_norm - width * variance**2
    error = (float(residuals.norm(dim=1).pow(4).mean()) - squared_norm) / count
    return min(error / distance, 1.0) if distance > 0 else 1.0


_FINDERS: dict[Method, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_diff": _mean_difference,
    "pca": _first_singular_vector,
    "logistic": _logistic_normal,
    "lda": _shrinkage_discriminant,
}
