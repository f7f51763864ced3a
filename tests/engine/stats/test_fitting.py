"""Fitted directions: equal to numpy's and scikit-learn's at any width, with few copies of the states."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import RequestError
from engine.records.files import Method
from engine.stats.fitting import NoDifferenceError, fit_direction, fit_mean_difference
from tests.engine.stats.contrasts import Array, Sides


def mixed(pairs: int, width: int, seed: int = 0) -> Sides:
    """Two classes with correlated noise of unequal variances and a large common part."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) * np.linspace(0.1, 3.0, width)
    positive, negative = (rng.normal(size=(pairs, width)) @ mix + 100 for _ in range(2))
    return positive + rng.normal(size=width), negative


def fitted(sides: Sides) -> Array:
    found: Array = fit_direction(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]), "lda", 0).vector.numpy()
    return found


def residuals_of(sides: Sides) -> Array:
    return np.concatenate([side - side.mean(axis=0) for side in sides])


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(("pairs", "width"), [(3, 40), (15, 40), (20, 40), (21, 40), (200, 40), (30, 1)])
def test_lda_is_the_inverse_shrunk_covariance_times_the_mean_difference(pairs: int, width: int) -> None:
    """With fewer residuals than dimensions, as many, and more."""
    sides = mixed(pairs, width)
    covariance, shrinkage = ledoit_wolf(residuals_of(sides), assume_centered=True)
    assert width == 1 or 0 < shrinkage < 1
    expected = np.linalg.solve(covariance, sides[0].mean(axis=0) - sides[1].mean(axis=0))
    np.testing.assert_allclose(fitted(sides), unit(expected), atol=1e-10)


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Records the number of values in the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
        return made


def test_lda_of_wide_states_makes_no_matrix_of_that_width() -> None:
    """The expected vector comes from the singular vectors of the residuals."""
    width = 8192
    rng = np.random.default_rng(1)
    scales = rng.gamma(1.0, size=width)
    positive, negative = (rng.normal(size=(24, width)) * scales + side for side in (0.3, 0.0))
    sides = positive, negative
    residuals = residuals_of(sides)
    shrinkage = ledoit_wolf_shrinkage(residuals, assume_centered=True)
    ridge = shrinkage * residuals.var(axis=0).mean()
    _, lengths, vectors = np.linalg.svd(residuals, full_matrices=False)
    eigenvalues = (1 - shrinkage) * lengths**2 / len(residuals)
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    expected = difference / ridge + vectors.T @ ((1 / (eigenvalues + ridge) - 1 / ridge) * (vectors @ difference))
    with Sizes() as sizes:  # type: ignore[no-untyped-call]  # as above
        found = fitted(sides)
    np.testing.assert_allclose(found, unit(expected), atol=1e-10)
    assert sizes.largest <= 48 * width


@pytest.mark.parametrize("pairs", [5, 40, 200])
def test_pca_is_the_first_singular_vector_of_the_differences(pairs: int) -> None:
    """With fewer pairs than dimensions, as many, and more."""
    positive, negative = mixed(pairs, 40)
    first = np.linalg.svd(positive - negative)[2][0]
    found = fit_direction(torch.from_numpy(positive), torch.from_numpy(negative), "pca", 0).vector.numpy()
    np.testing.assert_allclose(found, first * np.sign(first @ found), atol=1e-9)


@pytest.mark.parametrize("method", ["pca", "lda", "logistic"])
def test_fitting_makes_no_tensor_of_more_than_both_classes(method: Method) -> None:
    positive, negative = map(torch.from_numpy, mixed(200, 40))
    kept = positive.clone(), negative.clone()
    with Sizes() as sizes:  # type: ignore[no-untyped-call]  # as above
        fit_direction(positive, negative, method, 0)
    assert sizes.largest <= (200 if method == "pca" else 400) * 40
    assert torch.equal(positive, kept[0])
    assert torch.equal(negative, kept[1])


def test_the_mean_difference_is_fitted_in_chunks() -> None:
    positive, negative = map(torch.from_numpy, mixed(50, 40))

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(torch.split(positive, 8), torch.split(negative, 8), strict=True)

    found, whole = fit_mean_difference(pairs, 0), fit_direction(positive, negative, "mean_diff", 0)
    vector = unit((positive - negative).mean(dim=0).numpy())
    states = np.concatenate([positive, negative])
    np.testing.assert_allclose(found.vector.numpy(), vector, atol=1e-12)
    for one in (found, whole):
        expected = ((negative.numpy() @ vector).mean(), (positive.numpy() @ vector).mean())
        assert (one.negative_mean, one.positive_mean) == pytest.approx(expected, rel=1e-12)
        assert one.norm == pytest.approx(np.linalg.norm(states, axis=1).mean(), rel=1e-12)
    negative[49, 3] = torch.nan
    with pytest.raises(RequestError, match="layer 0 has non-finite values"):
        fit_mean_difference(pairs, 0)
    negative[:] = positive
    with pytest.raises(NoDifferenceError):
        fit_mean_difference(pairs, 0)


def test_without_spread_lda_is_the_mean_difference() -> None:
    sides = np.tile([3.0, 4.0, 0.0], (5, 1)), np.zeros((5, 3))
    np.testing.assert_allclose(fitted(sides), [0.6, 0.8, 0.0], atol=1e-12)


def test_lda_avoids_the_only_axis_with_spread() -> None:
    """No shrinkage is estimated here, and a covariance of rank one has no inverse."""
    positive = np.array([[5.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    vector = fitted((positive, positive - [1.0, 1.0, 0.0]))
    np.testing.assert_allclose(vector, [0.0, 1.0, 0.0], atol=1e-4)
