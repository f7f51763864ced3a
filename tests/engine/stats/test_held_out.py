"""Held-out projections: equal to a plain loop for any chunk size."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from engine.stats.groups import MOST_UNITS, PAIRS, Pairs, Sides, group_by_factors, group_pairs, pairs_of
from engine.stats.held_out import HeldOut, hold_out, sum_units
from tests.engine.stats.contrasts import (
    FACTORS,
    all_factors,
    capture_of,
    d_prime_by_hand,
    noise,
    numbers_of,
    projected_by_hand,
    values_of,
)
from tests.engine.stats.contrasts import Sides as Arrays

FEW = all_factors()


@pytest.fixture
def sides() -> Arrays:
    positive, negative = noise(np.random.default_rng(0), len(FEW))
    positive[:, 0] += 1.0
    return positive, negative


def all_at_once(sides: Arrays) -> Pairs:
    return pairs_of(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]))


def seven_at_a_time(sides: Arrays) -> Pairs:
    def chunks() -> Iterator[Sides]:
        for start in range(0, len(sides[0]), 7):
            yield torch.from_numpy(sides[0][start : start + 7]), torch.from_numpy(sides[1][start : start + 7])

    return chunks


def groupings() -> dict[str, torch.Tensor]:
    return {factor: torch.from_numpy(numbers_of(FEW, factor)) for factor in FACTORS}


def assert_projected(held_out: HeldOut, expected: Arrays) -> None:
    for side, by_hand in zip(held_out.sides, expected, strict=True):
        np.testing.assert_allclose(side.numpy(), by_hand, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", [all_at_once, seven_at_a_time])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_projections_equal_a_plain_loop_over_the_groups(cut: type, offset: float, sides: Arrays) -> None:
    """Also if all states are far from the origin, like massive activations."""
    found = hold_out(cut((sides[0] + offset, sides[1] + offset)), groupings()).by_factor
    assert list(found) == list(FACTORS)
    for factor, held_out in found.items():
        expected = projected_by_hand(sides, values_of(FEW, factor))
        if not offset:
            assert_projected(held_out, expected)
        assert held_out.d_prime == pytest.approx(d_prime_by_hand(expected), rel=1e-9 if not offset else 1e-7)


def test_many_groups_and_pairs_without_factors_are_dealt_into_units() -> None:
    """70 topics or 300 pairs form 65 units; folds stay intact, and the projections are those of the folds."""
    sides = noise(np.random.default_rng(1), 300)
    held_out = hold_out(all_at_once(sides), group_pairs(capture_of([sides], None))).by_factor[PAIRS]
    assert_projected(held_out, projected_by_hand(sides, [pair % 5 for pair in range(300)]))
    assert len(held_out.moments.groups) == MOST_UNITS
    assert held_out.moments.pairs.sum() == 300
    assert held_out.moments.groups.tolist() == [unit % 5 for unit in range(MOST_UNITS)]
    topics = group_by_factors(all_factors(3, 1, 70))["topic"]
    assert sorted(set(topics.tolist())) == list(range(MOST_UNITS))


def test_states_of_any_dtype_are_summed_in_float64() -> None:
    one = torch.full((4, 3), 256.0, dtype=torch.bfloat16)
    sums = sum_units(pairs_of(one + 2, one), [torch.arange(4)])  # the middle, 257, does not exist in bfloat16
    assert sums.middle.tolist() == [257.0] * 3
    assert sums.units[0].differences.tolist() == [[2.0] * 3] * 4


def test_sums_are_those_of_each_unit(sides: Arrays) -> None:
    topics = numbers_of(FEW, "topic")
    sums = sum_units(seven_at_a_time(sides), [torch.from_numpy(topics)])
    middles = (sides[0] + sides[1]) / 2
    for unit in range(topics.max() + 1):
        own = topics == unit
        np.testing.assert_allclose(sums.units[0].differences[unit], (sides[0] - sides[1])[own].sum(0), rtol=1e-9)
        np.testing.assert_allclose(sums.units[0].middles[unit], (middles - middles.mean(0))[own].sum(0), atol=1e-9)
        assert sums.units[0].pairs[unit] == own.sum()
    assert sums.size == pytest.approx(max(np.linalg.norm(side, axis=1).max() for side in sides))
    assert sums.longest == pytest.approx(np.linalg.norm(sides[0] - sides[1], axis=1).max())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_states_are_detected(bad: float, sides: Arrays) -> None:
    assert hold_out(all_at_once(sides), groupings()).extent.finite
    sides[1][40, 3] = bad
    assert not hold_out(seven_at_a_time(sides), groupings()).extent.finite


def test_equal_classes_project_to_zero(sides: Arrays) -> None:
    for held_out in hold_out(all_at_once((sides[0], sides[0])), groupings()).by_factor.values():
        assert held_out.d_prime == 0.0
        assert held_out.sides[0].abs().max() == 0.0
