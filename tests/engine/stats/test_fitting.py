"""Shrinkage discriminants: equal to scikit-learn's covariance and numpy's solve, at any width."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.stats.fitting import fit_direction
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


def test_without_spread_lda_is_the_mean_difference() -> None:
    sides = np.tile([3.0, 4.0, 0.0], (5, 1)), np.zeros((5, 3))
    np.testing.assert_allclose(fitted(sides), [0.6, 0.8, 0.0], atol=1e-12)


def test_lda_avoids_the_only_axis_with_spread() -> None:
    """No shrinkage is estimated here, and a covariance of rank one has no inverse."""
    positive = np.array([[5.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    vector = fitted((positive, positive - [1.0, 1.0, 0.0]))
    np.testing.assert_allclose(vector, [0.0, 1.0, 0.0], atol=1e-4)
