"""Held-out projections from inner products: each resample is what the same data would have given from scratch."""

import numpy as np
import pytest
import torch

from engine.stats.gram import HeldOut, PairGram, project_held_out
from engine.stats.groups import group_pairs
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
PAIRS = len(FEW)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def sides(rng: np.random.Generator) -> Sides:
    positive, negative = noise(rng, PAIRS)
    positive[:, 0] += 1.0
    return positive, negative


def gram_of(sides: Sides) -> PairGram:
    return PairGram.of(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]))


def column(values: Array) -> torch.Tensor:
    return torch.from_numpy(values)[:, None]


def groups_of(factor: str) -> torch.Tensor:
    return torch.from_numpy(numbers_of(FEW, factor))


def assert_projected(held_out: HeldOut, expected: Sides, resample: int = 0) -> None:
    """Both sides lie where the plain loop puts them."""
    differences, middles = held_out.differences[:, resample].numpy(), held_out.middles[:, resample].numpy()
    np.testing.assert_allclose(differences, expected[0] - expected[1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(middles, (expected[0] + expected[1]) / 2, rtol=1e-9, atol=1e-9)


def separation_of(sides: Sides, times: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None) -> dict[str, float]:
    """D' by factor, run from scratch on a capture in which each pair lies so many times."""
    times = np.ones(PAIRS, dtype=np.int64) if times is None else times
    factors = [FEW[i] for i in np.repeat(np.arange(PAIRS), times)]
    (layer,) = compute_separation(capture_of([repeated(sides, times)], factors)).values()
    return {factor: separation["d_prime"] for factor, separation in layer["by_factor"].items()}


def test_inner_products_are_those_of_differences_and_of_centred_middles(sides: Sides) -> None:
    differences = sides[0] - sides[1]
    middles = (sides[0] + sides[1]) / 2
    gram = gram_of(sides)
    np.testing.assert_allclose(gram.differences.numpy(), differences @ differences.T, rtol=1e-12)
    np.testing.assert_allclose(gram.middles.numpy(), (middles - middles.mean(axis=0)) @ differences.T, atol=1e-9)


def test_inner_products_are_float64_from_whatever_dtype() -> None:
    one = torch.full((4, 3), 256.0, dtype=torch.bfloat16)
    gram = PairGram.of(one + 2, one)  # the middle, 257, does not exist in bfloat16
    assert gram.differences.dtype == gram.middles.dtype == torch.float64
    assert (gram.differences == 12.0).all()


@pytest.mark.parametrize("factor", FACTORS)
def test_projections_are_those_of_a_loop_over_the_groups(sides: Sides, factor: str) -> None:
    held_out = project_held_out(gram_of(sides), groups_of(factor))
    assert_projected(held_out, projected_by_hand(sides, values_of(FEW, factor)))


@pytest.mark.parametrize("factor", FACTORS)
def test_weights_are_those_of_weighted_means(rng: np.random.Generator, sides: Sides, factor: str) -> None:
    weights = rng.exponential(size=PAIRS)
    held_out = project_held_out(gram_of(sides), groups_of(factor), weights=column(weights))
    expected = projected_by_hand(sides, values_of(FEW, factor), weights)
    assert_projected(held_out, expected)
    assert held_out.d_prime(column(weights)).item() == pytest.approx(d_prime_by_hand(expected, weights), rel=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_whole_weight_is_a_pair_that_often(rng: np.random.Generator, sides: Sides, factor: str) -> None:
    times = rng.integers(1, 4, size=PAIRS)
    held_out = project_held_out(gram_of(sides), groups_of(factor), weights=column(times.astype(np.float64)))
    again = np.repeat(groups_of(factor).numpy(), times)
    physically = project_held_out(gram_of(repeated(sides, times)), torch.from_numpy(again))
    for ours, theirs in ((held_out.differences, physically.differences), (held_out.middles, physically.middles)):
        torch.testing.assert_close(ours.repeat_interleave(torch.from_numpy(times), dim=0), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_groups_drawn_again_are_a_capture_of_those_groups(rng: np.random.Generator, sides: Sides, factor: str) -> None:
    """As many pairs as before, as groups are of one size: d' is the same to the last digits, also where one is lost."""
    groups = groups_of(factor).numpy()
    count = groups.max() + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=40).T  # (groups, resamples)
    drawn = drawn[:, (drawn > 0).sum(axis=0) > 2]  # fewer groups than three are not left out
    assert count == 3 or (drawn == 0).any()
    weights = torch.from_numpy(drawn[groups].astype(np.float64))
    scores = project_held_out(gram_of(sides), groups_of(factor), weights=weights).d_prime(weights)
    expected = [separation_of(sides, times)[factor] for times in drawn[groups].T]
    assert scores.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_sign_is_the_two_prompts_of_a_pair_in_each_others_place(
    rng: np.random.Generator, sides: Sides, factor: str
) -> None:
    signs = rng.choice([-1.0, 1.0], size=(PAIRS, 10))
    held_out = project_held_out(gram_of(sides), groups_of(factor), signs=torch.from_numpy(signs))
    for resample in range(10):
        physically = swapped(sides, signs[:, resample])
        assert_projected(held_out, projected_by_hand(physically, values_of(FEW, factor)), resample)
        assert held_out.d_prime()[resample].item() == pytest.approx(separation_of(physically)[factor], rel=1e-9)


def test_signs_and_weights_at_once(rng: np.random.Generator, sides: Sides) -> None:
    signs, weights = rng.choice([-1.0, 1.0], size=PAIRS), rng.exponential(size=PAIRS)
    held_out = project_held_out(gram_of(sides), groups_of("topic"), weights=column(weights), signs=column(signs))
    assert_projected(held_out, projected_by_hand(swapped(sides, signs), values_of(FEW, "topic"), weights))


def test_all_labels_swapped_is_the_same_as_none(sides: Sides) -> None:
    signs = torch.ones((PAIRS, 2), dtype=torch.float64)
    signs[:, 1] = -1
    scores = project_held_out(gram_of(sides), groups_of("persona"), signs=signs).d_prime()
    assert scores[1].item() == pytest.approx(scores[0].item(), rel=1e-12)


def test_weights_count_relative_to_each_other(rng: np.random.Generator, sides: Sides) -> None:
    weights = column(rng.exponential(size=PAIRS))
    gram, groups = gram_of(sides), groups_of("template")
    once = project_held_out(gram, groups, weights=weights).d_prime(weights)
    torch.testing.assert_close(project_held_out(gram, groups, weights=weights * 7).d_prime(weights * 7), once)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_d_prime_does_not_depend_on_scale_rotation_or_origin(
    rng: np.random.Generator, sides: Sides, scale: float
) -> None:
    turn, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    origin = rng.normal(size=24)
    turned = (scale * sides[0] @ turn + scale * origin, scale * sides[1] @ turn + scale * origin)
    assert separation_of(turned) == pytest.approx(separation_of(sides), rel=1e-9)


def test_d_prime_keeps_its_digits_far_from_the_origin(sides: Sides) -> None:
    """Massive activations: what all prompts share is a million times larger than what differs."""
    far = (sides[0] + 1e6, sides[1] + 1e6)
    assert separation_of(far) == pytest.approx(separation_of(sides), rel=1e-6)


def test_d_prime_of_projections_is_the_plain_formula(rng: np.random.Generator) -> None:
    positive, negative, weights = rng.normal(1.0, size=30), rng.normal(size=30), rng.exponential(size=30)
    held_out = HeldOut(column(positive - negative), column((positive + negative) / 2))
    plain = (positive.mean() - negative.mean()) / np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    assert held_out.d_prime().item() == pytest.approx(plain, rel=1e-12)
    expected = d_prime_by_hand((positive, negative), weights)
    assert held_out.d_prime(column(weights)).item() == pytest.approx(expected, rel=1e-12)


def test_d_prime_without_any_spread_is_zero_and_not_a_division_by_it() -> None:
    nothing = torch.zeros((5, 1), dtype=torch.float64)
    assert HeldOut(nothing, nothing).d_prime().tolist() == [0.0]
    assert HeldOut(nothing + 2, nothing).d_prime().tolist() == [0.0]


def test_resamples_do_not_touch_each_other(rng: np.random.Generator) -> None:
    """Each column of many is what it is alone, in folds of pairs without factors as well."""
    gram = gram_of(noise(rng, 13))
    groups = group_pairs(None, 13)["pairs"]
    weights = torch.from_numpy(rng.exponential(size=(13, 6)))
    together = project_held_out(gram, groups, weights=weights).d_prime(weights)
    alone = [project_held_out(gram, groups, weights=w[:, None]).d_prime(w[:, None]).item() for w in weights.T]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)
