"""Held-out separation: equal to a plain computation, finds planted layers, and finds nothing in noise."""

import numpy as np
import pytest

from engine.records.captures import ContrastData, Factors
from engine.records.results import Separation
from engine.stats.separation import compute_separation
from tests.engine.stats.contrasts import (
    FACTORS,
    PERSONAS,
    Array,
    all_factors,
    auroc_by_hand,
    capture_of,
    d_prime_by_hand,
    noise,
    projected_by_hand,
    values_of,
    with_own_texts,
)


def by_hand(positive: Array, negative: Array, groups: list[str]) -> Separation:
    """The same three numbers with loops over groups and pairs and explicit directions."""
    projected = projected_by_hand((positive, negative), groups)
    return Separation(
        d_prime=d_prime_by_hand(projected),
        auroc=auroc_by_hand(projected),
        wrong_way=float(np.mean(projected[0] < projected[1])),
    )


def test_separation_equals_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    factors = all_factors()
    positive, negative = noise(rng, len(factors))
    positive[:, 0] += 1.5
    (layer,) = compute_separation(capture_of([(positive, negative)], factors)).values()
    for factor in FACTORS:
        expected = by_hand(positive, negative, values_of(factors, factor))
        assert layer["by_factor"][factor] == pytest.approx(expected, rel=1e-9)
        assert 0 < expected["wrong_way"] < 0.5
    assert layer["worst"] == min(layer["by_factor"], key=lambda name: layer["by_factor"][name]["d_prime"])


def worst(data: ContrastData) -> list[float]:
    return [layer["by_factor"][layer["worst"]]["d_prime"] for layer in compute_separation(data).values()]


def test_planted_layers_are_found_where_the_raw_norm_is_not() -> None:
    """States and noise grow a hundredfold with depth; the direction is planted at layers 3 and 4 of eight."""
    rng = np.random.default_rng(1)
    factors = all_factors()
    layers = []
    for depth in range(8):
        positive, negative = noise(rng, len(factors))
        positive[:, :3] += 2.0 * (depth in {3, 4})
        layers.append((positive * 2.0**depth, negative * 2.0**depth))
    raw = [np.linalg.norm((positive - negative).mean(axis=0)) for positive, negative in layers]
    scores = worst(capture_of(layers, factors))
    assert int(np.argmax(raw)) == 7
    assert set(np.argsort(scores)[-2:]) == {3, 4}
    assert min(scores[3], scores[4]) > 1.0 > max(scores[i] for i in (0, 1, 2, 5, 6, 7))


def test_persona_specific_directions_do_not_count() -> None:
    """Every persona shifts its prompts in its own direction: new topics look separated, new personas do not."""
    rng = np.random.default_rng(2)
    factors = all_factors()
    positive, negative = noise(rng, len(factors), width=64)
    for i in range(PERSONAS):
        own = np.array([pair["persona"] == f"p{i}" for pair in factors])
        positive[own] += 4.0 * np.eye(64)[i]
    (layer,) = compute_separation(capture_of([(positive, negative)], factors)).values()
    assert layer["worst"] == "persona"
    assert layer["by_factor"]["persona"]["d_prime"] < 0.5
    assert layer["by_factor"]["topic"]["d_prime"] > 1.0


def test_chance_scores_nothing_on_average() -> None:
    rng = np.random.default_rng(3)
    factors = all_factors()
    layers = [noise(rng, len(factors)) for _ in range(400)]
    separations = compute_separation(capture_of(layers, factors)).values()
    for factor in FACTORS:
        values = [layer["by_factor"][factor]["d_prime"] for layer in separations]
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values)) + 0.05


def test_pairs_without_factors_are_held_out_in_folds() -> None:
    rng = np.random.default_rng(4)
    positive, negative = noise(rng, 10)
    positive[:, 0] += 3.0
    (layer,) = compute_separation(capture_of([(positive, negative)], None)).values()
    assert layer["worst"] == "pairs"
    assert layer["by_factor"]["pairs"] == pytest.approx(by_hand(positive, negative, [f"{i % 5}" for i in range(10)]))


def test_a_factor_with_fewer_than_three_values_cannot_be_held_out() -> None:
    rng = np.random.default_rng(5)
    factors = [Factors(persona="only", template=f"t{i % 2}", topic=f"{i % 3}") for i in range(6)]
    (layer,) = compute_separation(capture_of([noise(rng, 6)], factors)).values()
    assert set(layer["by_factor"]) == {"topic"}


@pytest.mark.parametrize("pairs", [1, 3])
def test_too_few_pairs_have_no_score(pairs: int) -> None:
    assert compute_separation(capture_of([noise(np.random.default_rng(6), pairs)], None)) == {}


def test_wrong_way_is_the_share_of_misordered_pairs() -> None:
    """Two of twelve pairs are reversed along the only axis; a large midpoint does not hide it."""
    rng = np.random.default_rng(7)
    middles, gaps = 100 * rng.normal(size=(12, 1)), np.ones((12, 1))
    gaps[[3, 8]] = -1
    (layer,) = compute_separation(capture_of([(middles + gaps, middles - gaps)], None)).values()
    assert layer["by_factor"]["pairs"]["wrong_way"] == pytest.approx(2 / 12)


def test_equal_projections_count_half_although_they_are_rounded() -> None:
    """Along a single axis of integers most prompts tie with some prompts of the other class."""
    rng = np.random.default_rng(9)
    factors = all_factors()
    positive, negative = (rng.integers(4, 9, size=(len(factors), 1)).astype(np.float64) for _ in range(2))
    positive += 1
    (layer,) = compute_separation(with_own_texts(capture_of([(positive, negative)], factors))).values()
    for factor in FACTORS:
        projected = projected_by_hand((positive, negative), values_of(factors, factor))
        expected = auroc_by_hand((projected[0].round(6), projected[1].round(6)))
        assert layer["by_factor"][factor]["auroc"] == pytest.approx(expected, rel=1e-9)


def test_swapping_the_classes_changes_no_score() -> None:
    """The direction changes sign with the labels."""
    rng = np.random.default_rng(8)
    positive, negative = noise(rng, 20)
    (one,) = compute_separation(capture_of([(positive, negative)], None)).values()
    (other,) = compute_separation(capture_of([(negative, positive)], None)).values()
    assert one["by_factor"]["pairs"] == pytest.approx(other["by_factor"]["pairs"], rel=1e-9)


def test_equal_classes_score_zero_without_division_by_zero() -> None:
    same = np.ones((6, 4))
    (layer,) = compute_separation(with_own_texts(capture_of([(same, same)], None))).values()
    assert layer["by_factor"]["pairs"] == {"d_prime": 0.0, "auroc": 0.5, "wrong_way": 0.5}


def test_classes_without_any_spread_score_zero_without_division_by_zero() -> None:
    """Without spread d' is undefined, but the order of the prompts is not."""
    one, other = np.full((8, 4), 3.0), np.full((8, 4), 1.0)
    (layer,) = compute_separation(with_own_texts(capture_of([(one, other)], None))).values()
    assert layer["by_factor"]["pairs"] == {"d_prime": 0.0, "auroc": 1.0, "wrong_way": 0.0}
