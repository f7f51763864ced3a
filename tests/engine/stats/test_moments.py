"""Held-out d' of resamples from unit moments equals d' computed from scratch."""

import numpy as np
import pytest
import torch

from engine.stats.groups import PAIRS, pairs_of
from engine.stats.held_out import hold_out
from engine.stats.moments import UnitMoments, d_prime_of
from engine.stats.separation import compute_separation
from tests.engine.stats.contrasts import (
    FACTORS,
    Array,
    Sides,
    all_factors,
    capture_of,
    d_prime_by_hand,
    noise,
    numbers_of,
    projected_by_hand,
    repeated,
    swapped,
    values_of,
)

FEW = all_factors()
PAIRS_OF_FEW = len(FEW)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def sides(rng: np.random.Generator) -> Sides:
    positive, negative = noise(rng, PAIRS_OF_FEW)
    positive[:, 0] += 1.0
    return positive, negative


def groups_of(factor: str) -> torch.Tensor:
    return torch.from_numpy(numbers_of(FEW, factor))


def by_group(sides: Sides, factor: str) -> UnitMoments:
    """Units are whole groups."""
    return moments_of(sides, groups_of(factor), factor)


def by_pair(sides: Sides) -> UnitMoments:
    """Units are single pairs, held out in five folds, which are the topics here."""
    return moments_of(sides, torch.arange(PAIRS_OF_FEW), PAIRS)


def moments_of(sides: Sides, groups: torch.Tensor, name: str) -> UnitMoments:
    pairs = pairs_of(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]))
    return hold_out(pairs, {name: groups}).by_factor[name].moments


def column(values: Array) -> torch.Tensor:
    return torch.from_numpy(values)[:, None]


def separation_of(sides: Sides, times: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None) -> dict[str, float]:
    """Compute d' by factor from scratch, with each pair repeated."""
    times = np.ones(PAIRS_OF_FEW, dtype=np.int64) if times is None else times
    factors = [FEW[i] for i in np.repeat(np.arange(PAIRS_OF_FEW), times)]
    (layer,) = compute_separation(capture_of([repeated(sides, times)], factors)).values()
    return {factor: separation["d_prime"] for factor, separation in layer["by_factor"].items()}


@pytest.mark.parametrize("factor", FACTORS)
def test_without_weights_d_prime_is_that_of_the_projections(sides: Sides, factor: str) -> None:
    expected = d_prime_by_hand(projected_by_hand(sides, values_of(FEW, factor)))
    for moments in (by_group(sides, factor), *([by_pair(sides)] if factor == "topic" else [])):
        assert moments.d_prime().item() == pytest.approx(expected, rel=1e-9)


def test_weights_equal_weighted_means(rng: np.random.Generator, sides: Sides) -> None:
    weights = rng.exponential(size=PAIRS_OF_FEW)
    expected = d_prime_by_hand(projected_by_hand(sides, values_of(FEW, "topic"), weights), weights)
    assert by_pair(sides).d_prime(column(weights)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_resampled_groups_equal_a_capture_of_those_groups(rng: np.random.Generator, sides: Sides, factor: str) -> None:
    """Groups of one size keep the number of pairs, so d' agrees to the last digits even if a group is lost."""
    groups = groups_of(factor).numpy()
    count = groups.max() + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=40).T  # (groups, resamples)
    drawn = drawn[:, (drawn > 0).sum(axis=0) > 2]  # at least three groups are needed to hold one out
    assert count == 3 or (drawn == 0).any()
    scores = by_group(sides, factor).d_prime(torch.from_numpy(drawn.astype(np.float64)))
    expected = [separation_of(sides, times)[factor] for times in drawn[groups].T]
    assert scores.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_negative_sign_equals_swapped_prompts(rng: np.random.Generator, sides: Sides) -> None:
    signs = rng.choice([-1.0, 1.0], size=(PAIRS_OF_FEW, 10))
    scores = by_pair(sides).d_prime(signs=torch.from_numpy(signs))
    for resample in range(10):
        physically = swapped(sides, signs[:, resample])
        assert scores[resample].item() == pytest.approx(separation_of(physically)["topic"], rel=1e-9)


def test_signs_and_weights_at_once(rng: np.random.Generator, sides: Sides) -> None:
    signs, weights = rng.choice([-1.0, 1.0], size=PAIRS_OF_FEW), rng.exponential(size=PAIRS_OF_FEW)
    expected = d_prime_by_hand(projected_by_hand(swapped(sides, signs), values_of(FEW, "topic"), weights), weights)
    score = by_pair(sides).d_prime(column(weights), column(signs)).item()
    assert score == pytest.approx(expected, rel=1e-9)


def test_all_labels_swapped_is_the_same_as_none(sides: Sides) -> None:
    signs = torch.ones((4, 2), dtype=torch.float64)
    signs[:, 1] = -1
    scores = by_group(sides, "persona").d_prime(signs=signs)
    assert scores[1].item() == pytest.approx(scores[0].item(), rel=1e-12)


def test_weights_count_relative_to_each_other(rng: np.random.Generator, sides: Sides) -> None:
    weights = column(rng.exponential(size=3))
    moments = by_group(sides, "template")
    torch.testing.assert_close(moments.d_prime(weights * 7), moments.d_prime(weights))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_d_prime_does_not_depend_on_scale_rotation_or_origin(
    rng: np.random.Generator, sides: Sides, scale: float
) -> None:
    turn, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    origin = rng.normal(size=24)
    turned = (scale * sides[0] @ turn + scale * origin, scale * sides[1] @ turn + scale * origin)
    assert separation_of(turned) == pytest.approx(separation_of(sides), rel=1e-9)


def test_d_prime_keeps_its_digits_far_from_the_origin(rng: np.random.Generator, sides: Sides) -> None:
    """Massive activations: the shared component is a million times larger than the differences."""
    far = (sides[0] + 1e6, sides[1] + 1e6)
    assert separation_of(far) == pytest.approx(separation_of(sides), rel=1e-6)
    weights = torch.from_numpy(rng.exponential(size=(5, 20)))
    torch.testing.assert_close(
        by_group(far, "topic").d_prime(weights), by_group(sides, "topic").d_prime(weights), rtol=1e-6, atol=0
    )


def test_d_prime_is_the_plain_formula(rng: np.random.Generator) -> None:
    positive, negative = rng.normal(1.0, size=30), rng.normal(size=30)
    plain = (positive.mean() - negative.mean()) / np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    middles, differences = (positive + negative) / 2, positive - negative
    distance, middle, squares = (
        torch.tensor(values.mean()) for values in (differences, middles, middles**2 + differences**2 / 4)
    )
    assert d_prime_of(distance, middle, squares, 30).item() == pytest.approx(plain, rel=1e-12)


def test_d_prime_without_any_spread_is_zero_and_not_a_division_by_it(sides: Sides) -> None:
    nothing = torch.zeros(1)
    assert d_prime_of(nothing, nothing, nothing, 5).tolist() == [0.0]
    assert d_prime_of(nothing + 2, nothing, nothing + 1, 5).tolist() == [0.0]
    same = by_group((sides[0], sides[0]), "topic")
    assert same.d_prime(signs=torch.ones((5, 2), dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_resamples_are_independent(rng: np.random.Generator) -> None:
    """Each resample gives the same result alone, also in folds of pairs without factors."""
    moments = moments_of(noise(rng, 13), torch.arange(13), PAIRS)
    weights = torch.from_numpy(rng.exponential(size=(13, 6)))
    alone = [moments.d_prime(w[:, None]).item() for w in weights.T]
    assert moments.d_prime(weights).tolist() == pytest.approx(alone, rel=1e-12)
