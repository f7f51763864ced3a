"""Random directions: their covariance is that of the states within the classes."""

from pathlib import Path

import numpy as np
import pytest

import engine
from engine.errors import RequestError
from engine.steering.controls import load_source, random_directions
from tests.engine.stats.contrasts import Sides, capture_of


def stretched(pairs: int = 400) -> Sides:
    """Classes 50 apart along the first axis; states vary along the second and third, and hardly along the others."""
    rng = np.random.default_rng(0)
    spread = np.array([0.1, 5.0, 3.0, *[0.1] * 5])
    positive, negative = rng.normal(size=(2, pairs, 8)) * spread
    positive[:, 0] += 50
    return positive, negative


def test_they_vary_as_the_states_do_within_the_classes() -> None:
    data = capture_of([stretched()], None)
    direction = engine.extract_direction(data, 0)
    drawn = random_directions(data, direction, 500, seed=3)
    vectors = np.stack([one["vector"].double().numpy() for one in drawn])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    squares = (vectors**2).mean(axis=0)
    assert squares[1] > squares[2] > 0.2
    assert squares[[0, 3, 4, 5, 6, 7]].max() < 0.01
    assert abs(vectors.mean(axis=0)).max() < 0.15  # either sign


def test_their_class_means_are_the_mean_projections() -> None:
    sides = stretched()
    data = capture_of([sides], None)
    direction = engine.extract_direction(data, 0)
    for one in random_directions(data, direction, 3):
        vector = one["vector"].double().numpy()
        assert one["positive_mean"] == pytest.approx((sides[0] @ vector).mean(), rel=1e-4)
        assert one["negative_mean"] == pytest.approx((sides[1] @ vector).mean(), rel=1e-4, abs=1e-4)
        assert (one["layer"], one["norm"]) == (0, direction["norm"])


def test_the_seed_decides() -> None:
    data = capture_of([stretched(20)], None)
    direction = engine.extract_direction(data, 0)
    first, again, other = (random_directions(data, direction, 1, seed)[0]["vector"] for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_states_that_do_not_vary_are_refused() -> None:
    data = capture_of([(np.ones((4, 5)), np.zeros((4, 5)))], None)
    direction = engine.extract_direction(data, 0)
    with pytest.raises(RequestError, match="do not vary within the classes at layer 0"):
        random_directions(data, direction, 1)


def test_the_contrast_of_saved_directions_is_found(tmp_path: Path) -> None:
    data = capture_of([stretched(12)], None)
    engine.save_activations(data, "mine", store=tmp_path)
    engine.save_directions({0: engine.extract_direction(data, 0)}, "other", store=tmp_path, capture="mine")
    for name in ("mine", "other", "other.directions.safetensors"):
        found = load_source(name, store=tmp_path)
        assert found is not None
        assert found["num_pairs"] == 12
        assert load_source(tmp_path / name) is not None
    (tmp_path / "mine.pt").unlink()
    assert load_source("other", store=tmp_path) is None
